//! A real Redis on a free port, in a folder of its own; both are gone when it is dropped.

use super::installed;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// Far more than it takes to start on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Redis {
    pub(crate) address: SocketAddr,
    pub(crate) folder: PathBuf,
    options: Vec<String>,
    process: Child,
}

impl Redis {
    /// One that keeps nothing on disk unless it is told to.
    pub(crate) async fn start() -> Self {
        Self::with(&["--save", "", "--appendonly", "no"]).await
    }

    /// One that has on disk whatever it has acknowledged.
    pub(crate) async fn durable() -> Self {
        Self::with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// A node of a cluster, without any slots yet.
    pub(crate) async fn cluster_node() -> Self {
        Self::with(&["--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "60000"]).await
    }

    /// Takes on these slots of the cluster, and waits until it serves if they are all.
    pub(crate) async fn take_slots(&self, first: u16, last: u16) {
        // One by one, for 6.2.
        let slots: Vec<String> = (first..=last).map(|slot| slot.to_string()).collect();
        let words: Vec<&str> = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str)).collect();
        let _: String = self.command(&words).await;
        let is_whole = async || -> bool {
            let info: String = self.command(&["CLUSTER", "INFO"]).await;
            info.contains("cluster_state:ok")
        };
        while (first, last) == (0, 16383) && !is_whole().await {
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn with(options: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("tidings-redis-{}-{number}", process::id()));
        fs::create_dir(&folder).unwrap();
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        // A port that is free now may be taken by another test before Redis has it.
        loop {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
            // A node of a cluster listens at one that is higher by 10,000 too.
            if address.port() > 55_000 {
                continue;
            }
            let process = spawn(address, &folder, &options);
            let mut redis = Self { address, folder: folder.clone(), options: options.clone(), process };
            if redis.answers().await {
                return redis;
            }
            // Its folder goes with it.
            drop(redis);
            fs::create_dir(&folder).unwrap();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    /// Does anything, as an operator would.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_command(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub(crate) async fn try_command<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let client = redis::Client::open(self.url())?;
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(DEADLINE));
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]);
        cmd.query_async(&mut connection).await
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again at the same port, with what is on disk.
    pub(crate) async fn start_again(&mut self) {
        self.process = spawn(self.address, &self.folder, &self.options);
        assert!(self.answers().await, "Redis should start again: {}", self.log());
    }

    /// Stops it in the middle of whatever it does, with its connections open.
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.process), Signal::STOP).unwrap();
    }

    pub(crate) fn resume(&self) {
        kill_process(Pid::from_child(&self.process), Signal::CONT).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until it answers; false if another has its port.
    async fn answers(&mut self) -> bool {
        let start = Instant::now();
        loop {
            // Whether it is this one, and not another test's at the same port.
            let folder: redis::RedisResult<Vec<String>> = self.try_command(&["CONFIG", "GET", "dir"]).await;
            if folder.is_ok_and(|folder| folder.last().is_some_and(|folder| folder == self.folder.to_str().unwrap())) {
                return true;
            }
            if let Some(status) = self.process.try_wait().unwrap() {
                let log = self.log();
                assert!(log.contains("Address already in use"), "Redis ended with {status}: {log}");
                return false;
            }
            assert!(start.elapsed() < DEADLINE, "Redis should answer: {}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn spawn(address: SocketAddr, folder: &PathBuf, options: &[String]) -> Child {
    Command::new(installed("redis-server", "redis-server"))
        .arg("--bind")
        .arg(address.ip().to_string())
        .arg("--port")
        .arg(address.port().to_string())
        .arg("--dir")
        .arg(folder)
        .args(["--logfile", "log"])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("Redis should start")
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
