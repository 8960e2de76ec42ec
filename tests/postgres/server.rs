//! A real `PostgreSQL` in a folder of its own, reached through a socket in that folder; both are gone when it is dropped.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};
use tokio_postgres::{Client, Config, NoTls};

pub(crate) struct Postgres {
    /// The data, and the socket.
    folder: PathBuf,
    programs: PathBuf,
}

impl Postgres {
    /// Starts a new server, which makes sure of its commits as one in production does.
    pub(crate) fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("tidings-postgres-{}-{number}", process::id()));
        let server = Self { folder, programs: programs() };
        let arguments =
            ["--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--locale", "C", "--no-sync"];
        server.run(server.command("initdb").args(arguments));
        server.launch();
        server
    }

    /// Starts it again after [`stop`](Self::stop), and waits until it answers.
    pub(crate) fn launch(&self) {
        self.run(self.command("pg_ctl").args(["-w", "-o", &self.options(), "-l"]).arg(self.log_file()).arg("start"));
    }

    /// Stops it as an operator does.
    pub(crate) fn stop(&self) {
        self.run(self.command("pg_ctl").args(["-w", "-m", "fast", "stop"]));
    }

    /// Kills it in the middle of whatever it does, and starts it again.
    pub(crate) fn crash(&self) {
        let options = self.options();
        let restart = ["-w", "-m", "immediate", "-o", &options, "-l"];
        self.run(self.command("pg_ctl").args(restart).arg(self.log_file()).arg("restart"));
    }

    /// Copies what it has on disk, while it is stopped.
    pub(crate) fn back_up(&self) {
        self.run(as_its_user("cp").arg("-a").arg(&self.folder).arg(self.backup()));
    }

    /// Puts back what was copied, while it is stopped.
    pub(crate) fn restore(&self) {
        fs::remove_dir_all(&self.folder).unwrap();
        fs::rename(self.backup(), &self.folder).unwrap();
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.folder).user("postgres").dbname("postgres");
        config
    }

    /// The same as [`config`](Self::config), for a command line.
    pub(crate) fn url(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.folder.display())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }

    /// A connection beside those of the store.
    pub(crate) async fn connect(&self) -> Client {
        let (client, connection) = self.config().connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn options(&self) -> String {
        format!("-k {} -c listen_addresses=", self.folder.display())
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    fn backup(&self) -> PathBuf {
        self.folder.with_extension("backup")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = as_its_user(self.programs.join(program));
        command.arg("-D").arg(&self.folder);
        command
    }

    fn run(&self, command: &mut Command) {
        // A server that stays would hold a pipe open.
        let status = command.stdout(Stdio::null()).status().expect("it should start");
        let log = || fs::read_to_string(self.log_file()).unwrap_or_default();
        assert!(status.success(), "{command:?} ended with {status}: {}", log());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let stop = ["-w", "-m", "immediate", "stop"];
        let _ = self.command("pg_ctl").args(stop).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(self.backup());
    }
}

/// Debian keeps the server's programs of each version in a folder of their own.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = versions.map(|version| version.path().join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    folders
        .chain(env::split_paths(&path))
        .filter(|folder| folder.join("initdb").is_file())
        .max()
        .expect("PostgreSQL's server is not installed: apt-get install postgresql")
}

/// The server refuses to be root.
fn as_its_user(program: impl AsRef<Path>) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program.as_ref());
        command
    } else {
        Command::new(program.as_ref())
    };
    command.current_dir("/");
    command
}
