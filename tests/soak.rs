//! Ten minutes of clients who come, are cut, are slow and come back, of topics that begin and are finished: nothing is lost
//! without a report, and memory stays level.
//!
//! `TIDINGS_SOAK_SECONDS=600 cargo test --release --test soak`. It starts itself once more, as the server.

mod support;

use axum::{
    Router,
    extract::{Query, State},
};
use http::request::Parts;
use http_body_util::BodyExt as _;
use peak_alloc::PeakAlloc;
use serde::Deserialize;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use support::{Client, Http};
use tidings::{
    Event, EventType, Hub, KeepAlive, Limit, Start, Topic,
    net::{Connections, MakeWithPeer},
    replay::Ring,
    test_util::EventReader,
};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const PRODUCERS: usize = 30;
const CLIENTS: usize = 300;
const END: EventType = EventType::from_static("end");
/// Who hears nothing for so long has been forgotten.
const LONG: Duration = Duration::from_secs(30);

fn main() {
    if std::env::args().nth(1).as_deref() == Some("server") {
        return serve();
    }
    let seconds = std::env::var("TIDINGS_SOAK_SECONDS").map_or(600, |text| text.parse().expect("a number of seconds"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(soak(Duration::from_secs(seconds)));
}

async fn soak(time: Duration) {
    let mut server = Server::start();
    let (begun, totals) = (Instant::now(), Arc::<Totals>::default());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(follow_topics(server.address, begun + time, Arc::clone(&totals)));
    }
    let (mut early, mut late) = (Memory::default(), Memory::default());
    // The first minute, or a part of it where there is less time.
    let warm = Duration::from_secs(60).min(time / 3);
    while begun.elapsed() < time {
        sleep(Duration::from_secs(1)).await;
        while let Some(failed) = clients.try_join_next() {
            failed.unwrap();
        }
        let memory = server.memory();
        let phase = if begun.elapsed() < warm { &mut early } else { &mut late };
        phase.raise(&memory);
        if begun.elapsed().as_secs() % 30 == 0 {
            println!("{:4} s  {memory:?}  {totals:?}", begun.elapsed().as_secs());
        }
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    server.ask("stop");
    let left = server.wait_until_empty().await;
    println!("in the first part {early:?}, after it {late:?}; in the end {left:?}");
    println!("{totals:?}");
    println!("server: {}", server.ask("stats"));
    let published = totals.published.load(Relaxed);
    let (received, reported) = (totals.received.load(Relaxed), totals.reported.load(Relaxed));
    println!("published to those who followed: {published} = {received} received + {reported} reported as missing");
    assert_eq!(published, received + reported);
    assert!(totals.topics.load(Relaxed) > 0 && reported > 0 && totals.cuts.load(Relaxed) > 0, "all of it happened");
    assert!(totals.turned_away.load(Relaxed) > 0 && totals.ends.load(Relaxed) > totals.turned_away.load(Relaxed));
    assert!(late.heap_kib <= early.heap_kib + early.heap_kib / 5, "the heap grows");
    assert!(late.resident_kib <= early.resident_kib + early.resident_kib / 5, "resident memory grows");
    assert!(left.heap_kib < early.heap_kib / 2, "what was held for clients and topics is given back");
}

/// What the clients have seen.
#[derive(Debug, Default)]
struct Totals {
    /// Of the topics that were followed to their end, by those who did.
    published: AtomicU64,
    received: AtomicU64,
    reported: AtomicU64,
    topics: AtomicU64,
    cuts: AtomicU64,
    ends: AtomicU64,
    turned_away: AtomicU64,
}

async fn follow_topics(address: SocketAddr, until: Instant, totals: Arc<Totals>) {
    while Instant::now() < until {
        let topic = get(address, "/topic").await;
        follow(address, &topic, &totals).await;
    }
}

/// Follows one topic to its end, however often it is cut; checks that there is no hole without a report.
async fn follow(address: SocketAddr, topic: &str, totals: &Totals) {
    let (mut last_id, mut first, mut next) = (String::new(), None, 0);
    // Also if it was cut right after it was told.
    let (mut received, mut reported, mut told) = (0, 0, false);
    loop {
        let headers = [("last-event-id", last_id.as_str())];
        let headers = if last_id.is_empty() { &[][..] } else { &headers[..] };
        let Some((client, response)) =
            Client::try_get(Http::One, address, &format!("/events?topic={topic}"), headers).await
        else {
            panic!("the server should answer");
        };
        assert_eq!(response.status(), 200, "{topic} {last_id}");
        let mut reader = EventReader::new(response.into_body());
        let (mut read, cut_after) = (0, fastrand::u32(1..400));
        let mut began = false;
        loop {
            let next_event = timeout(LONG, reader.try_next()).await.expect("heartbeats should come");
            // A clean end, or one that was cut by the server.
            let Ok(Some(event)) = next_event else {
                totals.ends.fetch_add(1, Relaxed);
                totals.turned_away.fetch_add(u64::from(!began), Relaxed);
                break;
            };
            began = true;
            match event.event_type.as_str() {
                "tidings-gap" => told = true,
                "beat" | "cursor" => {}
                kind => {
                    let number: u64 = event.data.parse().unwrap();
                    let expected = *first.get_or_insert(number);
                    let expected = if next == 0 { expected } else { next };
                    assert!(number >= expected, "{topic}: {number} came again after {next}");
                    assert!(number == expected || told, "{topic}: {number} in place of {expected}, and nobody said so");
                    reported += number - expected;
                    (received, next, told) = (received + 1, number + 1, false);
                    if kind == "end" {
                        totals.published.fetch_add(next - first.unwrap_or(0), Relaxed);
                        totals.received.fetch_add(received, Relaxed);
                        totals.reported.fetch_add(reported, Relaxed);
                        totals.topics.fetch_add(1, Relaxed);
                        return;
                    }
                }
            }
            last_id = event.last_event_id;
            read += 1;
            if read == cut_after {
                totals.cuts.fetch_add(1, Relaxed);
                break;
            }
            if fastrand::u32(0..2000) == 0 {
                // It does not read for a while.
                sleep(Duration::from_millis(fastrand::u64(0..5000))).await;
            }
        }
        // What came without being an event of its own counts too, after a clean end.
        if !reader.last_event_id().is_empty() && read != cut_after {
            reader.last_event_id().clone_into(&mut last_id);
        }
        drop((reader, client));
        let pause = if fastrand::u32(0..10) == 0 { 0..5000 } else { 0..100 };
        sleep(Duration::from_millis(fastrand::u64(pause))).await;
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    let (_client, response) = Client::get(Http::One, address, path, &[]).await;
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

#[derive(Debug, Default)]
struct Memory {
    heap_kib: usize,
    resident_kib: usize,
    subscriptions: usize,
    topics: usize,
}

impl Memory {
    fn raise(&mut self, other: &Self) {
        self.heap_kib = self.heap_kib.max(other.heap_kib);
        self.resident_kib = self.resident_kib.max(other.resident_kib);
        self.subscriptions = self.subscriptions.max(other.subscriptions);
        self.topics = self.topics.max(other.topics);
    }
}

/// The server in a process of its own, asked by its standard input.
struct Server {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = command.arg("server").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let questions = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        Self { process, questions, answers, address: line.trim().parse().expect("it should start") }
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.questions, "{question}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the server should run");
        line.trim().to_owned()
    }

    fn memory(&mut self) -> Memory {
        let line = self.ask("memory");
        let numbers: Vec<usize> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let [heap_kib, resident_kib, subscriptions, topics] = numbers[..] else { panic!("{line}") };
        Memory { heap_kib, resident_kib, subscriptions, topics }
    }

    /// What is left once everybody is gone, and nothing is kept any more.
    async fn wait_until_empty(&mut self) -> Memory {
        let end = Instant::now() + 2 * LONG;
        loop {
            let memory = self.memory();
            if memory.subscriptions == 0 && memory.topics == 0 || Instant::now() > end {
                return memory;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Clone)]
struct App {
    hub: Hub,
    topics: Arc<Mutex<Vec<Topic>>>,
}

#[derive(Deserialize)]
struct Followed {
    topic: String,
}

#[tokio::main(flavor = "current_thread")]
async fn serve() {
    // Small enough that those who are slow or away for long have gaps.
    let ring =
        Ring::new().events_per_topic(150).max_age(Duration::from_secs(10)).keep_finished(Duration::from_secs(15));
    let hub = Hub::builder()
        .ring(ring)
        .window_events(40)
        .keep_alive(KeepAlive::new().interval(Duration::from_millis(500)).event(EventType::from_static("beat")))
        .cursor_moves(tidings::CursorMoves::Named(EventType::from_static("cursor")))
        .retry(Duration::from_millis(50))
        // So that some are turned away, and streams expire.
        .max_subscriptions(CLIENTS * 9 / 10)
        .max_lifetime(Duration::from_secs(5))
        .build();
    let app = App { hub: hub.clone(), topics: Arc::default() };
    let connections =
        Connections::new().write_deadline(Duration::from_secs(3)).dead_peer_timeout(Duration::from_secs(5));
    let router = Router::new()
        .route(
            "/events",
            axum::routing::get(async |State(app): State<App>, Query(asked): Query<Followed>, request: Parts| {
                let topic = Topic::new(&asked.topic).unwrap();
                let limit = Limit::per(asked.topic, CLIENTS);
                app.hub.subscribe(topic).start(Start::Earliest).for_request(&request).limit(limit)
            }),
        )
        .route(
            "/topic",
            axum::routing::get(async |State(app): State<App>| {
                let topics = app.topics.lock().unwrap();
                topics[fastrand::usize(..topics.len())].name().to_owned()
            }),
        )
        .with_state(app.clone());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = connections.listen(listener).unwrap();
    let mut producers = JoinSet::new();
    for n in 0..PRODUCERS {
        let first = Topic::new(format!("{n}-0")).unwrap();
        app.topics.lock().unwrap().push(first);
        producers.spawn(produce(app.clone(), n));
    }
    println!("{address}");
    tokio::spawn(async move { axum::serve(listener, MakeWithPeer::new(router)).await });
    let mut questions = questions();
    while let Some(question) = questions.recv().await {
        let stats = hub.stats();
        match question.as_str() {
            "memory" => {
                let heap = HEAP.current_usage() / 1024;
                println!("{heap} {} {} {}", resident_kib(), stats.subscriptions, stats.topics);
            }
            "stop" => {
                producers.shutdown().await;
                // Nothing is published any more that would let go what is too old.
                let nudge = hub.clone();
                tokio::spawn(async move {
                    let topic = Topic::from_static("nudge");
                    for _ in 0..200 {
                        let _ = nudge.publish(&topic, Event::new()).await;
                        let _ = nudge.forget(&topic).await;
                        sleep(Duration::from_millis(200)).await;
                    }
                });
                println!("stopped");
            }
            _ => println!("{stats:?}"),
        }
    }
}

/// Publishes to one topic after the other.
async fn produce(app: App, producer: usize) {
    for round in 1.. {
        let topic = app.topics.lock().unwrap()[producer].clone();
        let count = fastrand::u64(100..1500);
        for number in 0..count {
            let event = Event::new().data(number.to_string()).comment("x".repeat(fastrand::usize(0..200)));
            app.hub.publish(&topic, event).await.unwrap();
            // In bursts now and then.
            if fastrand::u32(0..20) > 0 {
                sleep(Duration::from_millis(fastrand::u64(0..30))).await;
            }
        }
        // Those who ask from now on follow the next one.
        app.topics.lock().unwrap()[producer] = Topic::new(format!("{producer}-{round}")).unwrap();
        app.hub.finish(&topic, Some(Event::new().event_type(END).data(count.to_string()))).await.unwrap();
    }
}

/// The lines of the standard input, until it ends.
fn questions() -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (ask, questions) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().map_while(|line| ask.send(line.ok()?).ok()).for_each(drop));
    questions
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
