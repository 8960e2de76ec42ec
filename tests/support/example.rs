//! The examples as they are run by a user.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};

/// Builds an example, as the test was built, and says where it is.
pub(crate) fn build(name: &str) -> PathBuf {
    let release = if cfg!(debug_assertions) { None } else { Some("--release") };
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", name, "--message-format", "json-render-diagnostics"])
        .args(release)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the example should compile");
    let messages = String::from_utf8(output.stdout).unwrap();
    let executable = messages.lines().find_map(|message| {
        let message: serde_json::Value = serde_json::from_str(message).unwrap();
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.expect("cargo should say where the example is")
}

/// An example in a process of its own, on a free port; it ends with its value.
pub(crate) struct Example {
    pub(crate) address: SocketAddr,
    process: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Example {
    pub(crate) async fn start(executable: &Path, arguments: &[&str]) -> Self {
        let mut process = tokio::process::Command::new(executable)
            .args(["--port", "0"])
            .args(arguments)
            // Where one is to panic, a line says so.
            .env("RUST_BACKTRACE", "0")
            // Where one logs, it is to be read here if something is wrong.
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it should start");
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = stdout.next_line().await.unwrap().expect("it should print its address");
        let (_, address) = url.split_once("http://").expect("a URL");
        let address = address.parse().unwrap();
        Self { address, process, stdout }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next line that it prints.
    pub(crate) async fn line(&mut self) -> String {
        self.stdout.next_line().await.unwrap().expect("it should print a line")
    }

    /// Ends it as ctrl-c does, and waits for that.
    pub(crate) async fn interrupt(&mut self) -> ExitStatus {
        self.tell(Signal::INT);
        self.exited().await
    }

    /// Ends it as whoever runs services does, and waits for that.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.tell(Signal::TERM);
        self.exited().await
    }

    pub(crate) fn tell(&self, signal: Signal) {
        let id = self.process.id().expect("it should run").try_into().unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    pub(crate) async fn exited(&mut self) -> ExitStatus {
        self.process.wait().await.unwrap()
    }
}
