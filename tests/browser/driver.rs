//! A headless Chromium, driven by a `chromedriver` of its own; both are gone when it is dropped.

use crate::support::installed;
use fantoccini::{Client, ClientBuilder, Locator, wd::Capabilities};
use hyper_util::client::legacy::connect::HttpConnector;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::{
    env,
    fmt::Debug,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{self, Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// Far more than anything here takes on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(30);

const PACKAGES: &str = "chromium chromium-driver";

pub(crate) struct Browser {
    client: Client,
    // Dropped after the client, which talks to it.
    _driver: Driver,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let chromium = installed("chromium", PACKAGES);
        let driver = Driver::start();
        let options = json!({
            "binary": chromium,
            "args": [
                // Without a sandbox it runs as root, too; without the rest it talks to hosts that no test needs.
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                format!("--user-data-dir={}", driver.profile.display()),
            ],
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(Capabilities::from_iter([("goog:chromeOptions".to_owned(), options)]))
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .expect("chromedriver should start chromium");
        Self { client, _driver: driver }
    }

    pub(crate) async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    pub(crate) async fn reload(&self) {
        self.client.refresh().await.unwrap();
    }

    pub(crate) async fn click(&self, css: &str) {
        self.client.find(Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    pub(crate) async fn type_into(&self, css: &str, text: &str) {
        let field = self.client.find(Locator::Css(css)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    pub(crate) async fn run<T: DeserializeOwned>(&self, script: &str) -> T {
        let value = self.client.execute(script, Vec::new()).await.unwrap();
        serde_json::from_value(value).unwrap()
    }

    /// Runs the script again and again until what it returns is as wanted.
    pub(crate) async fn until<T: DeserializeOwned + Debug>(&self, script: &str, wanted: impl Fn(&T) -> bool) -> T {
        let start = Instant::now();
        loop {
            let value = self.run(script).await;
            if wanted(&value) {
                return value;
            }
            assert!(start.elapsed() < DEADLINE, "the page did not come to what was wanted: {value:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

struct Driver {
    process: Child,
    port: u16,
    profile: PathBuf,
    // Its pipe stays open for as long as it may write.
    _stdout: BufReader<ChildStdout>,
}

impl Driver {
    fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let profile = env::temp_dir().join(format!("tidings-browser-{}-{number}", process::id()));
        let mut process = Command::new(installed("chromedriver", PACKAGES))
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver should start");
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut said = String::new();
        // It says this when it listens.
        let port = loop {
            let start = said.len();
            assert_ne!(stdout.read_line(&mut said).unwrap(), 0, "chromedriver ended: {said}");
            if let Some((_, port)) = said[start..].split_once("started successfully on port ") {
                break port.trim_end().trim_end_matches('.').parse().unwrap();
            }
        };
        Self { process, port, profile, _stdout: stdout }
    }

    /// Asks for the end, because a `chromedriver` that is killed leaves its browser behind.
    fn shut_down(&self) -> std::io::Result<()> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(connection, "GET /shutdown HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")?;
        connection.read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.shut_down();
        crate::support::end(&mut self.process);
        // The last of the browser's processes may still be writing to it.
        for _ in 0..100 {
            if fs::remove_dir_all(&self.profile).is_ok() || !self.profile.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}
