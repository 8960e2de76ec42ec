//! Clients that vanish without a word: two network namespaces with a cable between them, which is then pulled.
//!
//! `cargo test --test vanished`, as root. It starts itself twice more, as the server in one namespace and as all clients in
//! the other, and asks the server by its standard input, which no network can take away.

mod support;

use http_body_util::BodyExt as _;
use peak_alloc::PeakAlloc;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use support::{Client, Http, Via, watched::Watched};
use tidings::{Hub, KeepAlive, Left, net::Connections};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Half of them over HTTP/2.
const CLIENTS: usize = 500;
/// These never send anything, and are sent nothing: only the kernel's probes can find that they are gone.
const SILENT: usize = 20;
const HEARTBEAT: Duration = Duration::from_secs(1);
const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(3);
/// For a machine that is busy.
const SLACK: Duration = Duration::from_millis(500);
/// For what does not depend on the network.
const LONG: Duration = Duration::from_secs(60);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 123, 45, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 123, 45, 2);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server", via] => server(if *via == "axum" { Via::Axum } else { Via::Hyper }),
        ["clients", address] => clients(address.parse().unwrap()),
        _ => {
            for via in ["hyper", "axum"] {
                vanish(via);
            }
        }
    }
}

fn vanish(via: &str) {
    let namespaces = Namespaces::new();
    let mut server = Server::start(&namespaces, via);

    // Once, they leave as clients do, so that the memory that a server keeps for itself is there.
    let clients = start_clients(&namespaces, &server);
    server.wait_for(|stats| stats.open == CLIENTS + SILENT);
    drop(clients);
    let before = server.wait_for(Stats::nobody_left);
    assert_eq!((before.left, before.stalled + before.vanished), (CLIENTS, 0), "{before:?}");

    let clients = start_clients(&namespaces, &server);
    let with = server.wait_for(|stats| stats.open == CLIENTS + SILENT);
    assert_eq!(with.subscriptions, CLIENTS);
    namespaces.pull();
    let pulled = Instant::now();
    let after = server.wait_for(Stats::nobody_left);
    let elapsed = pulled.elapsed();
    println!("{via}: before, with clients, after {elapsed:.2?}:\n{before:?}\n{with:?}\n{after:?}");
    assert!(elapsed < HEARTBEAT + DEAD_PEER_TIMEOUT + SLACK, "{elapsed:?}");
    assert_eq!(after.stalled + after.vanished, CLIENTS, "and it is known why");
    assert!(after.heap_kib < before.heap_kib + 64, "what was held for them is given back");
    // The allocator may keep pages for those who come next.
    assert!(after.resident_kib < with.resident_kib + 1024, "and it does not grow");
    drop(clients);
}

/// What the server says of itself.
#[derive(Debug, Default)]
struct Stats {
    open: usize,
    subscriptions: usize,
    stalled: usize,
    vanished: usize,
    cut: usize,
    left: usize,
    heap_kib: usize,
    resident_kib: usize,
}

impl Stats {
    fn nobody_left(&self) -> bool {
        self.open == 0 && self.subscriptions == 0 && self.left + self.stalled + self.vanished + self.cut >= CLIENTS
    }

    /// How those who have left since then did.
    fn count(&mut self, before: Left, now: Left) {
        let count = |of: fn(Left) -> u64| usize::try_from(of(now) - of(before)).unwrap();
        self.left = count(|left| left.disconnected);
        self.stalled = count(|left| left.stalled);
        self.vanished = count(|left| left.vanished);
        self.cut = count(|left| left.cut);
        assert_eq!(now.total() - before.total(), (self.left + self.stalled + self.vanished + self.cut) as u64);
    }

    fn write(&self) -> String {
        let Self { open, subscriptions, stalled, vanished, cut, left, heap_kib, resident_kib } = self;
        format!("{open} {subscriptions} {stalled} {vanished} {cut} {left} {heap_kib} {resident_kib}")
    }

    fn read(line: &str) -> Self {
        let numbers: Vec<usize> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        let [open, subscriptions, stalled, vanished, cut, left, heap_kib, resident_kib] = numbers[..] else {
            panic!("{line}")
        };
        Self { open, subscriptions, stalled, vanished, cut, left, heap_kib, resident_kib }
    }
}

/// The server's part: answers every line of its input with a line of figures.
#[tokio::main(flavor = "current_thread")]
async fn server(via: Via) {
    let connections = Connections::new().dead_peer_timeout(DEAD_PEER_TIMEOUT);
    let hub = Hub::builder().keep_alive(KeepAlive::new().interval(HEARTBEAT)).build();
    let listener = TcpListener::bind((SERVER, 0)).await.unwrap();
    let server = Watched::on(listener, via, connections, hub);
    println!("{}", server.address);
    let mut questions = questions();
    let mut stats = Stats::default();
    let mut before = server.hub.stats().left;
    while questions.recv().await.is_some() {
        let left = server.hub.stats().left;
        stats.count(before, left);
        stats.open = server.connections.open();
        stats.subscriptions = server.subscriptions();
        stats.heap_kib = HEAP.current_usage() / 1024;
        stats.resident_kib = resident_kib();
        println!("{}", stats.write());
        // What is counted are those of one round.
        if stats.nobody_left() {
            (stats, before) = (Stats::default(), left);
        }
    }
}

/// The lines of the standard input, until it ends.
fn questions() -> tokio::sync::mpsc::UnboundedReceiver<()> {
    let (ask, questions) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(|_| ask.send(()).ok()).for_each(drop));
    questions
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The clients' part: they read until the standard input ends.
#[tokio::main(flavor = "current_thread")]
async fn clients(address: SocketAddr) {
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let http = if n % 2 == 0 { Http::One } else { Http::Two };
        let (client, response) = Client::get(http, address, "/", &[]).await;
        clients.spawn(async move {
            let mut body = response.into_body();
            while body.frame().await.is_some_and(|frame| frame.is_ok()) {}
            drop(client);
        });
    }
    println!("ready");
    let mut end = questions();
    while end.recv().await.is_some() {}
}

/// Two namespaces with a cable between them; nothing of it is seen outside, and nothing is left of it.
struct Namespaces {
    server: String,
    clients: String,
}

impl Namespaces {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        let name = format!("tidings-{}", std::process::id());
        let namespaces = Self { server: format!("{name}-server"), clients: format!("{name}-clients") };
        let Self { server, clients } = &namespaces;
        ip(&format!("netns add {server}"));
        ip(&format!("netns add {clients}"));
        ip(&format!("link add veth0 netns {server} type veth peer name veth0 netns {clients}"));
        for (namespace, address) in [(server, SERVER), (clients, CLIENT)] {
            ip(&format!("-n {namespace} address add {address}/24 dev veth0"));
            ip(&format!("-n {namespace} link set veth0 up"));
        }
        namespaces
    }

    fn pull(&self) {
        ip(&format!("-n {} link set veth0 down", self.clients));
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.clients] {
            // Perhaps it was not made, and a test that has failed has said why.
            let _ = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    let status = status.expect("this test needs `ip`: apt-get install iproute2");
    assert!(
        status.success(),
        "ip {arguments}: this test needs root, and a system that lets it make network namespaces"
    );
}

/// This program in a part of its own, until it is dropped.
struct Part {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Part {
    fn start(namespace: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(std::env::current_exe().unwrap()).args(arguments);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let questions = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, questions, answers }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "it should run");
        line
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Server {
    part: Part,
    address: String,
}

impl Server {
    fn start(namespaces: &Namespaces, via: &str) -> Self {
        let mut part = Part::start(&namespaces.server, &["server", via]);
        let address = part.line().trim().to_owned();
        Self { part, address }
    }

    /// What it says as soon as it says what is wanted.
    fn wait_for(&mut self, wanted: impl Fn(&Stats) -> bool) -> Stats {
        let end = Instant::now() + LONG;
        loop {
            self.part.questions.write_all(b"?\n").unwrap();
            let stats = Stats::read(&self.part.line());
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < end, "{stats:?}");
            sleep(Duration::from_millis(10));
        }
    }
}

/// All clients, when they have been answered.
fn start_clients(namespaces: &Namespaces, server: &Server) -> Part {
    let mut part = Part::start(&namespaces.clients, &["clients", &server.address]);
    assert_eq!(part.line(), "ready\n");
    part
}
