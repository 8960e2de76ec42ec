//! Two nodes on one Redis, publishers on both, and a hundred clients that never stay long at either: while all is well, while
//! Redis is restarted or out of reach, and when it has lost what it had.
//!
//! Needs Debian's `redis-server`, and is run by name: `cargo test --test redis_nodes`.

mod support;

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use support::{Client, Http, Server, Via, network::Network, redis::Redis};
use tidings::{
    Event, FeedStats, Hub, KeepAlive, Topic,
    replay::{Record, RedisStore},
    test_util::EventReader,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const T: Topic = Topic::from_static("t");
const CLIENTS: usize = 100;
const EVENTS: u64 = 20_000;

/// More than any of this takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

struct Node {
    hub: Hub,
    server: Server,
}

impl Node {
    async fn on(redis: SocketAddr) -> Self {
        let store =
            RedisStore::builder(format!("redis://{redis}/")).events_per_topic(100_000).bytes_per_topic(64 << 20);
        let hub = Hub::builder()
            .retry(Duration::from_millis(60))
            .keep_alive(KeepAlive::new().interval(Duration::from_millis(500)))
            .open(store.open().await.unwrap())
            .await
            .unwrap();
        let server = Server::start(Via::Axum, hub.handler_for(T)).await;
        Self { hub, server }
    }

    /// Both, once they hear each other.
    async fn two_on(redis: [SocketAddr; 2]) -> [Self; 2] {
        let nodes = [Self::on(redis[0]).await, Self::on(redis[1]).await];
        let start = Instant::now();
        while !nodes.iter().all(|node| node.feed().connected) {
            assert!(start.elapsed() < PATIENCE, "a feed is there at first");
            sleep(Duration::from_millis(5)).await;
        }
        nodes
    }

    fn feed(&self) -> FeedStats {
        self.hub.stats().feed.unwrap()
    }
}

/// What a client got, in its order.
#[derive(Clone, Debug, PartialEq)]
enum Got {
    /// With its position: the run that an id names is the log's at the time.
    Event {
        position: String,
        data: String,
    },
    Gap,
}

/// How far the publishers and the clients are.
struct Progress {
    acknowledged: AtomicU64,
    /// The number of the newest event that each client has.
    newest: Vec<AtomicU64>,
}

impl Progress {
    fn new() -> Arc<Self> {
        let newest = (0..CLIENTS).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { acknowledged: AtomicU64::new(0), newest })
    }

    async fn until(&self, what: &str, is_there: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is_there(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {} are acknowledged", self.acknowledged.load(SeqCst));
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_acknowledged(&self, count: u64) {
        self.until("waiting for publishers", |all| all.acknowledged.load(SeqCst) >= count).await;
    }

    async fn until_all_have(&self, number: u64) {
        let all_have = |all: &Self| all.newest.iter().all(|newest| newest.load(SeqCst) >= number);
        self.until(&format!("waiting for clients to have {number}"), all_have).await;
    }
}

/// A client that goes from one node to the other every 1 to 300 ms, until it has the event that is called `last`.
async fn wander(nodes: [SocketAddr; 2], n: usize, begin: String, last: String, progress: Arc<Progress>) -> Vec<Got> {
    let (mut got, mut last_event_id) = (Vec::new(), begin);
    for round in n.. {
        let headers = [("last-event-id", &*last_event_id)];
        let asked = timeout(PATIENCE, Client::try_get(Http::One, nodes[round % 2], "/", &headers)).await;
        let (_client, response) = asked.expect("an answer").expect("a response");
        assert_eq!(response.status(), 200);
        let mut reader = EventReader::new(response.into_body());
        let stays = sleep(Duration::from_millis(fastrand::u64(1..=300)));
        tokio::pin!(stays);
        loop {
            let event = tokio::select! {
                () = &mut stays => break,
                event = reader.try_next() => event,
            };
            let Ok(Some(event)) = event else {
                // It was sent away, or its stream has failed: it comes back when it was told to.
                sleep(Duration::from_millis(reader.retry_ms().unwrap_or(60))).await;
                break;
            };
            if event.event_type == "tidings-gap" {
                got.push(Got::Gap);
                continue;
            }
            if let Ok(number) = event.data.parse() {
                progress.newest[n].fetch_max(number, SeqCst);
            }
            let position = event.last_event_id.split('.').next().unwrap_or_default().to_owned();
            got.push(Got::Event { position, data: event.data });
            if matches!(got.last(), Some(Got::Event { data, .. }) if *data == last) {
                return got;
            }
        }
        if !reader.last_event_id().is_empty() {
            last_event_id = reader.last_event_id().to_owned();
        }
    }
    unreachable!()
}

fn clients(nodes: &[Node; 2], last: &str, progress: &Arc<Progress>) -> JoinSet<Vec<Got>> {
    let begin = nodes[0].hub.subscribe(T).cursor().unwrap().to_string();
    let addresses = [nodes[0].server.address, nodes[1].server.address];
    (0..CLIENTS).map(|n| wander(addresses, n, begin.clone(), last.to_owned(), Arc::clone(progress))).collect()
}

/// Publishes until it is known to be stored, as a careful publisher would.
async fn publish(hub: &Hub, name: &str) {
    let start = Instant::now();
    loop {
        let record = Record::new(T, Event::new().data(name)).with_idempotency_key(name);
        match hub.publish_record(record).await {
            Ok(_) => return,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{name}: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Four publishers, two on each node.
fn publishers(nodes: &[Node; 2], progress: &Arc<Progress>) -> JoinSet<()> {
    let each = EVENTS / 4;
    let publisher = |n: u64| {
        let (hub, progress) = (nodes[usize::from(n % 2 == 1)].hub.clone(), Arc::clone(progress));
        async move {
            for event in 0..each {
                publish(&hub, &format!("{n}/{event}")).await;
                progress.acknowledged.fetch_add(1, SeqCst);
                // So that there is time for something to happen in the middle.
                if event % 4 == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
    };
    (0..4).map(publisher).collect()
}

/// Every client has every event once, in one order, the same for all, and was never told of a gap.
fn assert_exact(all: &[Vec<Got>]) {
    assert_eq!(all.len(), CLIENTS);
    let first = &all[0];
    assert!(all.iter().all(|one| one == first), "they differ");
    let mut names: Vec<&str> = first
        .iter()
        .map(|got| match got {
            Got::Event { data, .. } => data.as_str(),
            Got::Gap => panic!("a gap"),
        })
        .collect();
    assert_eq!(names.pop(), Some("the end"));
    assert_eq!(names.len() as u64, EVENTS);
    for n in 0..4 {
        let prefix = format!("{n}/");
        let own: Vec<u64> =
            names.iter().filter_map(|name| name.strip_prefix(&prefix)).map(|event| event.parse().unwrap()).collect();
        assert!(own.iter().copied().eq(0..EVENTS / 4), "those of publisher {n} are in their order");
    }
}

/// Everything from the first event to the last, while something happens.
async fn run(nodes: &[Node; 2], happens: impl AsyncFnOnce(&Progress)) {
    let start = Instant::now();
    let progress = Progress::new();
    let clients = clients(nodes, "the end", &progress);
    let publishers = publishers(nodes, &progress);
    happens(&progress).await;
    timeout(PATIENCE, publishers.join_all()).await.expect("all is published");
    let published = start.elapsed();
    publish(&nodes[0].hub, "the end").await;
    let all = timeout(PATIENCE, clients.join_all()).await.expect("all clients have the last event");
    assert_exact(&all);
    let [one, two] = [nodes[0].feed(), nodes[1].feed()];
    println!("{EVENTS} events published in {published:?}, received in {:?}; {one:?}, {two:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_move_between_two_nodes_have_every_event_once_and_in_one_order() {
    let redis = Redis::start().await;
    let nodes = Node::two_on([redis.address, redis.address]).await;
    run(&nodes, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn also_while_redis_is_restarted_three_times() {
    let mut redis = Redis::durable().await;
    let nodes = Node::two_on([redis.address, redis.address]).await;
    run(&nodes, async |progress| {
        for restart in 1..=3 {
            progress.until_acknowledged(restart * EVENTS / 4).await;
            redis.kill();
            // Long enough for connections to fail, and for publishers to wait.
            sleep(Duration::from_millis(500)).await;
            redis.start_again().await;
        }
    })
    .await;
    assert!(nodes.iter().all(|node| node.feed().interruptions >= 3));
}

async fn while_one_node_is_cut_off(silently: bool) {
    let redis = Redis::start().await;
    let line = Network::to(redis.address).await;
    let nodes = Node::two_on([redis.address, line.address]).await;
    run(&nodes, async |progress| {
        progress.until_acknowledged(EVENTS / 4).await;
        let cut = Instant::now();
        line.break_down(silently);
        progress.until("the node knows", |_| !nodes[1].feed().connected).await;
        println!("known after {:?}", cut.elapsed());
        sleep(Duration::from_secs(5).saturating_sub(cut.elapsed())).await;
        line.repair();
    })
    .await;
    assert!(nodes[0].feed().interruptions == 0 && nodes[1].feed().interruptions > 0);
    assert!(nodes[1].feed().missed > 0 || nodes[1].feed().skips > 0, "{:?}", nodes[1].feed());
}

#[tokio::test(flavor = "multi_thread")]
async fn also_while_one_node_is_cut_off_for_five_seconds() {
    while_one_node_is_cut_off(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn also_while_one_node_hears_nothing_for_five_seconds() {
    while_one_node_is_cut_off(true).await;
}

/// Numbered events, on either node, each acknowledged before the next.
async fn publish_numbers(nodes: &[Node; 2], numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        publish(&nodes[usize::from(number % 2 == 1)].hub, &number.to_string()).await;
    }
}

/// Between any two events that do not follow each other, a client was told of a gap.
fn assert_nothing_is_silent(n: usize, got: &[Got], last: u64) {
    let (mut before, mut told) = (0, false);
    for one in got {
        match one {
            Got::Gap => told = true,
            Got::Event { data, .. } => {
                let number: u64 = data.parse().unwrap();
                assert!(number == before + 1 || told && number > before, "client {n}: {number} follows {before}");
                (before, told) = (number, false);
            }
        }
    }
    assert_eq!(before, last, "client {n} is stuck");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_flushed_or_restored_is_a_gap_for_every_client_and_then_the_new_events() {
    // What is on disk is only what is saved on purpose.
    let mut redis = Redis::start().await;
    let nodes = Node::two_on([redis.address, redis.address]).await;
    let progress = Progress::new();
    let clients = clients(&nodes, "3000", &progress);
    let (dump, copy) = (redis.folder.join("dump.rdb"), redis.folder.join("copy.rdb"));
    let gaps_of = |got: &[Got]| got.iter().filter(|got| **got == Got::Gap).count();

    publish_numbers(&nodes, 1..=500).await;
    progress.until_all_have(500).await;
    redis.command::<()>(&["SAVE"]).await;
    fs::copy(&dump, &copy).unwrap();
    publish_numbers(&nodes, 501..=1000).await;
    progress.until_all_have(1000).await;

    // Flushed: another log.
    redis.command::<()>(&["FLUSHALL"]).await;
    publish_numbers(&nodes, 1001..=1500).await;
    progress.until_all_have(1500).await;

    // Restored from the dump, which is of the first log and older than what everybody has.
    redis.kill();
    fs::copy(&copy, &dump).unwrap();
    redis.start_again().await;
    publish_numbers(&nodes, 1501..=2000).await;
    progress.until_all_have(2000).await;

    // And once more to the same moment of the same log, past which positions have been given twice already.
    redis.kill();
    fs::copy(&copy, &dump).unwrap();
    redis.start_again().await;
    publish_numbers(&nodes, 2001..=3000).await;

    let all = timeout(PATIENCE, clients.join_all()).await.expect("nobody is stuck");
    for (n, got) in all.iter().enumerate() {
        assert_nothing_is_silent(n, got, 3000);
        assert!(gaps_of(got) >= 3, "client {n} was told of {} gaps", gaps_of(got));
    }
    println!("gaps that a client was told of: {:?}", all.iter().map(|got| gaps_of(got)).collect::<Vec<_>>());
    println!("{:?}, {:?}", nodes[0].feed(), nodes[1].feed());
}
