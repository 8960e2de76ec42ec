//! A real nginx with the page's own configuration, in a folder of its own; both are gone when it is dropped.

use crate::support::{Client, Http, installed};
use http_body_util::BodyExt as _;
use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, time::sleep};

/// Far more than nginx takes to start on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(30);

const PAGE: &str = include_str!("../../src/deploying.md");

pub(crate) struct Nginx {
    http1: SocketAddr,
    http2: SocketAddr,
    process: Child,
    folder: PathBuf,
}

impl Nginx {
    /// Starts nginx as the page says, but for these directives of the location of the events.
    pub(crate) async fn start(upstream: SocketAddr, directives: &[&str]) -> Self {
        let program = installed("nginx", "nginx");
        // A port that is free now may be taken by another test before nginx has it.
        loop {
            if let Some(nginx) = Self::try_start(&program, upstream, directives).await {
                return nginx;
            }
        }
    }

    pub(crate) fn address(&self, http: Http) -> SocketAddr {
        match http {
            Http::One => self.http1,
            Http::Two => self.http2,
        }
    }

    /// What it has logged that is worth an operator's attention.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("error.log")).unwrap_or_default()
    }

    async fn try_start(program: &Path, upstream: SocketAddr, directives: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("tidings-nginx-{}-{number}", process::id()));
        fs::create_dir(&folder).unwrap();
        let [http1, http2] = free_ports();
        let configuration = folder.join("nginx.conf");
        fs::write(&configuration, configure(upstream, http1, http2, directives, &folder)).unwrap();
        let process = Command::new(program)
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(&configuration)
            .arg("-e")
            .arg(folder.join("error.log"))
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx should start");
        let mut nginx = Self { http1, http2, process, folder };
        let start = Instant::now();
        while !nginx.answers().await {
            if let Some(status) = nginx.process.try_wait().unwrap() {
                let log = nginx.log();
                assert!(log.contains("Address already in use"), "nginx ended with {status}: {log}");
                return None;
            }
            assert!(start.elapsed() < DEADLINE, "nginx should answer: {}", nginx.log());
            sleep(Duration::from_millis(10)).await;
        }
        Some(nginx)
    }

    /// Whether it is this nginx that answers, and not another test's server at the same port.
    async fn answers(&self) -> bool {
        if TcpStream::connect(self.http1).await.is_err() {
            return false;
        }
        let (_client, response) = Client::get(Http::One, self.http1, "/which-nginx", &[]).await;
        let text = response.into_body().collect().await.unwrap().to_bytes();
        text == self.folder.to_str().unwrap().as_bytes()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // One that is killed leaves its workers behind.
        let id = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        crate::support::end(&mut self.process);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn free_ports() -> [SocketAddr; 2] {
    // Both at once, so that they are two.
    let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// The page's configuration, with other addresses, without TLS, and with other directives where the events are.
fn configure(upstream: SocketAddr, http1: SocketAddr, http2: SocketAddr, directives: &[&str], folder: &Path) -> String {
    let (_, block) = PAGE.split_once("```nginx\n").expect("the page has a configuration");
    let (block, _) = block.split_once("```").unwrap();
    // Without TLS there is no negotiation: HTTP/2 has a port of its own.
    let listen = format!("listen {http1};\n    listen {http2} http2;");
    let which = format!("location = /which-nginx {{ return 200 \"{}\"; }}", folder.display());
    let block = replace_once(block, "127.0.0.1:3000", &upstream.to_string());
    let block = replace_once(&block, "listen 443 ssl http2;", &format!("{listen}\n    {which}"));
    let (before, events) = block.split_once("location /events {\n").expect("the events have a location");
    let (events, after) = events.split_once("    }\n").unwrap();
    let overridden = |line: &&str| {
        let name = |directive: &str| directive.split_whitespace().next().map(str::to_owned);
        !directives.iter().any(|directive| name(directive) == name(line))
    };
    let events: Vec<_> = events.lines().filter(overridden).chain(directives.iter().copied()).collect();
    let server = format!("{before}location /events {{\n{}\n    }}\n{after}", events.join("\n"));
    let server: Vec<_> = server.lines().filter(|line| !line.trim().starts_with("ssl_")).collect();
    format!(
        "daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 512; }}
http {{
access_log off;
client_body_temp_path client;
proxy_temp_path proxy;
fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi;
scgi_temp_path scgi;
{}
}}
",
        server.join("\n")
    )
}

/// Replaces what the page must have for this test to mean something.
fn replace_once(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}
