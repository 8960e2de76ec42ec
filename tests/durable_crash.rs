//! A server on a log on disk that is killed a hundred times, under publishers and clients: what was acknowledged is there
//! each time, and each client has all of it in the end, once and in order.
//!
//! `cargo test --test durable_crash`. It starts itself as the server. It prints its seed, which `TIDINGS_SEED` repeats as far
//! as the machine does, and `TIDINGS_KILLS` is for another number.

#[path = "durable/folder.rs"]
mod folder;

use bytes::Bytes;
use folder::Folder;
use http::{Request, Uri, request::Parts};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::ready,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tidings::{
    Event, Hub, Start, Topic, Topics,
    replay::{Durable, Read, ReadFrom, ReplayStore as _},
    test_util::EventReader,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

const TOPICS: [Topic; 3] = [Topic::from_static("a"), Topic::from_static("b"), Topic::from_static("c")];
const PUBLISHERS: usize = 6;
const CLIENTS: usize = 12;
/// Who hears nothing for so long has been forgotten.
const LONG: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server", path, policy, load] => serve(Path::new(path), policy, load),
        _ => kill_again_and_again(),
    }
}

/// The server's part: publishes as fast as it can, and says what was acknowledged.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn serve(path: &Path, policy: &str, load: &str) {
    let builder = Durable::builder();
    let builder = if policy == "later" { builder.sync_every(Duration::from_millis(30)) } else { builder };
    let hub = Hub::builder().window_events(16).open(builder.open(path).await.unwrap()).await.unwrap();
    let follow = hub.clone();
    let events = hub.handler(move |parts: Parts| ready(follow.subscribe(topics(&parts.uri)).start(Start::Earliest)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    println!("at {}", listener.local_addr().unwrap());
    if load != "idle" {
        for publisher in 0..PUBLISHERS {
            tokio::spawn(publish(hub.clone(), format!("{load}-{publisher}")));
        }
    }
    axum::serve(listener, axum::Router::new().route_service("/events", events)).await.unwrap();
}

async fn publish(hub: Hub, name: String) {
    for n in 0.. {
        let topic = &TOPICS[fastrand::usize(..TOPICS.len())];
        let text = format!("{name}-{n}");
        let filler = "x".repeat(fastrand::usize(..300));
        let id = hub.publish(topic, Event::new().data(&text).comment(filler)).await.unwrap();
        let mut out = std::io::stdout().lock();
        // Nobody listens any more to a server that is killed.
        let _ = writeln!(out, "ack {} {text}", id.position());
        let _ = out.flush();
    }
}

fn topics(uri: &Uri) -> Topics {
    let names = uri.query().unwrap_or_default().split(',');
    Topics::new(names.map(|name| Topic::new(name).unwrap())).unwrap()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn kill_again_and_again() {
    let seed = std::env::var("TIDINGS_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    let kills = std::env::var("TIDINGS_KILLS").map_or(100, |text| text.parse().unwrap());
    println!("TIDINGS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let begun = Instant::now();
    let folder = Folder::new();
    let path = folder.another();
    let (address, addresses) = watch::channel(None);
    let mut clients = JoinSet::new();
    let followed: Vec<Follower> = (0..CLIENTS).map(|n| Follower::new(n, addresses.clone())).collect();
    for follower in &followed {
        clients.spawn(follower.clone().follow());
    }
    let mut acknowledged = BTreeMap::new();
    let mut early = 0;
    for round in 0..kills {
        let policy = if random.bool() { "first" } else { "later" };
        let mut server = Server::start(&path, policy, &round.to_string());
        if random.u32(..5) == 0 {
            // While it opens the log.
            sleep(Duration::from_millis(random.u64(..40))).await;
            early += 1;
        } else {
            let at = server.address().await;
            address.send_replace(Some(at));
            sleep(Duration::from_millis(random.u64(..300))).await;
        }
        let more = server.kill().await;
        if let Some(failed) = clients.try_join_next() {
            failed.unwrap();
        }
        for (position, text) in more {
            let older = acknowledged.insert(position, text);
            assert_eq!(older, None, "position {position} was acknowledged before");
        }
        // A copy, so that it is the next server that finds what the kill has left.
        let copy = folder.another();
        if path.exists() {
            folder::copy(&path, &copy);
            check(&held(&copy).await, &acknowledged, round);
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
    let all = held(&path).await;
    check(&all, &acknowledged, kills);
    let mut server = Server::start(&path, "first", "idle");
    address.send_replace(Some(server.address().await));
    for follower in &followed {
        follower.wait_for(&all, &mut clients).await;
    }
    server.kill().await;
    clients.shutdown().await;
    let connects: usize = followed.iter().map(|follower| follower.seen.lock().unwrap().connects).sum();
    let (count, extra) = (acknowledged.len(), all.len() - acknowledged.len());
    println!(
        "{kills} kills ({early} while it was opening) in {:.0?}: {count} events acknowledged, {extra} more stored, {CLIENTS} clients \
         connected {connects} times, each has all of its events once and in order",
        begun.elapsed()
    );
    assert!(count > kills && connects > CLIENTS, "all of it happened");
}

/// Position, topic and text.
type Held = BTreeMap<u64, (String, String)>;

/// What a log has.
async fn held(path: &Path) -> Held {
    let log = Durable::open(path).await.unwrap();
    let mut held = Held::new();
    let mut from = ReadFrom::Earliest;
    loop {
        let page = log.read(Read::new(Topics::new(TOPICS).unwrap(), from)).await.unwrap();
        assert_eq!(page.floor, 0, "nothing had to go");
        if page.entries.is_empty() {
            return held;
        }
        for entry in &page.entries {
            let record = entry.record();
            let one = (record.topic().name().to_owned(), record.data().unwrap().into_owned());
            assert!(held.insert(entry.cursor().position(), one).is_none());
        }
        from = ReadFrom::After(page.through);
    }
}

/// Whether what was acknowledged is there, where it was said to be, and once.
fn check(held: &Held, acknowledged: &BTreeMap<u64, String>, round: usize) {
    for (position, text) in acknowledged {
        let found = held.get(position).map(|(_, text)| text);
        assert_eq!(found, Some(text), "after kill {round}, at position {position}");
    }
    let texts: BTreeSet<_> = held.values().map(|(_, text)| text).collect();
    assert_eq!(texts.len(), held.len(), "after kill {round}: something is there twice");
}

/// This program as the server, until it is killed.
struct Server {
    process: Child,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Server {
    fn start(path: &Path, policy: &str, load: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("server").arg(path).args([policy, load]);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (send, lines) = tokio::sync::mpsc::unbounded_channel();
        // It ends with the output, so with the server.
        std::thread::spawn(move || output.lines().map_while(|line| send.send(line.ok()?).ok()).for_each(drop));
        Self { process, lines }
    }

    async fn address(&mut self) -> SocketAddr {
        let line = timeout(LONG, self.lines.recv()).await.expect("it opens the log").expect("it runs");
        line.strip_prefix("at ").unwrap().parse().unwrap()
    }

    /// Kills it. What it has acknowledged since it was started.
    async fn kill(&mut self) -> BTreeMap<u64, String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let mut acknowledged = BTreeMap::new();
        while let Some(line) = self.lines.recv().await {
            // The last line may have been cut off.
            let mut words = line.split(' ');
            if let (Some("ack"), Some(position), Some(text), None) =
                (words.next(), words.next(), words.next(), words.next())
            {
                if text.split('-').filter(|part| !part.is_empty()).count() == 3 {
                    let older = acknowledged.insert(position.parse().unwrap(), text.to_owned());
                    assert_eq!(older, None, "position {position} was acknowledged before");
                }
            }
        }
        acknowledged
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that comes back each time, with the last id that it saw.
#[derive(Clone)]
struct Follower {
    topics: BTreeSet<String>,
    addresses: watch::Receiver<Option<SocketAddr>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Position and text.
    events: Vec<(u64, String)>,
    connects: usize,
}

impl Follower {
    fn new(n: usize, addresses: watch::Receiver<Option<SocketAddr>>) -> Self {
        // Each of one topic, of two, or of all.
        let topics = TOPICS.iter().cycle().skip(n).take(n % 3 + 1).map(|topic| topic.name().to_owned()).collect();
        Self { topics, addresses, seen: Arc::default() }
    }

    async fn follow(mut self) {
        let mut last = String::new();
        loop {
            let address = *self.addresses.wait_for(Option::is_some).await.unwrap();
            if let Some(address) = address {
                self.connect(address, &mut last).await;
            }
            // Where nobody answers, another server comes, or the test has ended.
            let _ = timeout(Duration::from_millis(5), self.addresses.changed()).await;
        }
    }

    /// Follows until the connection is cut.
    async fn connect(&self, address: SocketAddr, last: &mut String) -> Option<()> {
        let io = TokioIo::new(TcpStream::connect(address).await.ok()?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let mut request = Request::get(format!("/events?{}", names.join(","))).header("host", address.to_string());
        if !last.is_empty() {
            request = request.header("last-event-id", &*last);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.ok()?;
        assert_eq!(response.status(), 200);
        self.seen.lock().unwrap().connects += 1;
        let mut events = EventReader::new(response.into_body());
        loop {
            let event = events.try_next().await;
            if !events.last_event_id().is_empty() {
                events.last_event_id().clone_into(last);
            }
            let event = event.ok()??;
            assert_eq!(event.event_type, "message", "nothing was lost, so nobody is told of a gap: {event:?}");
            let position = event.last_event_id.split('.').next().unwrap().parse().unwrap();
            self.seen.lock().unwrap().events.push((position, event.data));
        }
    }

    /// Waits until it has as many events as there are, and compares them.
    async fn wait_for(&self, all: &Held, clients: &mut JoinSet<()>) {
        let mine = all.iter().filter(|(_, (topic, _))| self.topics.contains(topic));
        let mine: Vec<(u64, String)> = mine.map(|(position, (_, text))| (*position, text.clone())).collect();
        let begun = Instant::now();
        while self.seen.lock().unwrap().events.len() < mine.len() {
            if let Some(failed) = clients.try_join_next() {
                failed.unwrap();
            }
            let seen = self.seen.lock().unwrap().events.len();
            assert!(begun.elapsed() < LONG, "{:?} has {seen} of {} events", self.topics, mine.len());
            sleep(Duration::from_millis(10)).await;
        }
        let seen = self.seen.lock().unwrap();
        for (n, (seen, mine)) in seen.events.iter().zip(&mine).enumerate() {
            assert_eq!(seen, mine, "event {n} of {:?}", self.topics);
        }
        assert_eq!(seen.events.len(), mine.len(), "{:?}", self.topics);
    }
}
