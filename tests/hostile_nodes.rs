//! What goes wrong between a log that nodes share and a hub that hears of it late, or learns of it in two ways.

mod support;

use futures_util::StreamExt as _;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::nodes::{Log, next_text, open, settle, text};
use tidings::{
    EndReason, GapReason, Hub, LagBudget, Message, Start, Subscription, Topic, Topics,
    replay::{AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore, Ring},
    test_util::next_message,
};
use tokio::time::{Instant, sleep, timeout};

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");

/// Whether it has nothing, and waits.
async fn is_open(subscription: &mut Subscription) -> bool {
    timeout(Duration::from_millis(1), subscription.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_forgotten_before_the_page_does_not_end_who_read_the_page() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    settle().await;
    log.cut(0);
    two.publish(T, text("a")).await.unwrap();
    let seen = two.publish(T, text("b")).await.unwrap();
    two.finish(T, None).await.unwrap();
    two.forget(T).await.unwrap();
    let after = two.publish(T, text("after")).await.unwrap();
    // Who was at the other node is further than this one's feed.
    let mut client = one.subscribe(T).resume(seen);
    let Message::Gap(gap) = next_message(&mut client).await.unwrap() else { panic!("a gap") };
    assert_eq!(gap.reason, GapReason::Evicted);
    assert_eq!(next_text(&mut client).await, "after");
    assert!(is_open(&mut client).await);

    // The feed comes to the end, and not yet to the place where that was forgotten.
    log.halt_after(0, 3);
    log.heal(0);
    settle().await;
    assert!(is_open(&mut client).await, "{:?}", client.end_reason());
    let mut other = one.subscribe(T).resume(after);
    settle().await;
    assert!(is_open(&mut other).await, "{:?}", other.end_reason());
    log.let_go(0);
    settle().await;
    two.publish(T, text("later")).await.unwrap();
    assert_eq!(next_text(&mut client).await, "later");
    assert_eq!(next_text(&mut other).await, "later");
    // An end that comes after all that is one.
    two.finish(T, None).await.unwrap();
    for subscription in [&mut client, &mut other] {
        assert!(subscription.next().await.is_none());
        assert_eq!(subscription.end_reason(), Some(EndReason::Finished));
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_from_before_a_topic_was_forgotten_ends_nobody_after_a_new_run() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    settle().await;
    log.cut(0);
    log.replace();
    two.finish(T, None).await.unwrap();
    // The page is of a run that the hub does not know. Before it knows where that is, the topic begins anew.
    log.before_head(|log| {
        log.forget(T).unwrap();
        log.append(&[Record::new(U, text("another"))].into()).unwrap().remove(0).unwrap();
    });
    let mut early = one.subscribe(T).start(Start::Earliest);
    let _ = is_open(&mut early).await;
    let mut late = one.subscribe(T);
    assert!(is_open(&mut late).await);
    settle().await;
    assert!(is_open(&mut late).await, "{:?}", late.end_reason());
    log.heal(0);
    settle().await;
    assert!(is_open(&mut late).await, "{:?}", late.end_reason());
    let mut fresh = one.subscribe(T);
    settle().await;
    assert!(is_open(&mut fresh).await, "{:?}", fresh.end_reason());
    two.publish(T, text("new")).await.unwrap();
    assert_eq!((next_text(&mut late).await, next_text(&mut fresh).await), ("new".into(), "new".into()));
}

#[tokio::test(start_paused = true)]
async fn what_the_feed_left_out_is_no_credit_for_who_may_not_lag() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    let mut slow = one.subscribe(T).lag_budget(LagBudget::new().events(10));
    two.publish(T, text(0)).await.unwrap();
    assert_eq!(next_text(&mut slow).await, "0");
    log.cut(0);
    for n in 1..=100 {
        two.publish(T, text(n)).await.unwrap();
    }
    log.skip(0);
    log.heal(0);
    for n in 1..=100 {
        assert_eq!(next_text(&mut slow).await, n.to_string());
    }
    // As far as it may be behind, and further.
    for n in 101..=110 {
        two.publish(T, text(n)).await.unwrap();
    }
    settle().await;
    assert_eq!(next_text(&mut slow).await, "101");
    while next_text(&mut slow).await != "110" {}
    for n in 0..90 {
        two.publish(T, text(n)).await.unwrap();
    }
    settle().await;
    let mut got = 0;
    while slow.next().await.is_some() {
        got += 1;
        assert!(got < 90, "it was given all of it");
    }
    assert_eq!(slow.end_reason(), Some(EndReason::Lagged));
}

#[tokio::test(start_paused = true)]
async fn notices_of_which_the_store_panicked_take_no_room_for_good() {
    let log = Log::new();
    let hub = open(&log).await;
    let mut reader = hub.subscribe(T);
    settle().await;
    assert!(is_open(&mut reader).await);
    log.break_notify(0, true);
    // As many as may wait.
    for n in 0..1024 {
        hub.publish_ephemeral(T, text(n)).unwrap();
    }
    assert!(hub.publish_ephemeral(T, text("one more")).unwrap_err().is_busy());
    settle().await;
    log.break_notify(0, false);
    hub.publish_ephemeral(T, text("there")).unwrap();
    let Message::Event(event) = next_message(&mut reader).await.unwrap() else { panic!("an event") };
    assert_eq!(event.record().data().as_deref(), Some("there"));
}

#[tokio::test(start_paused = true)]
async fn who_reads_while_other_topics_are_forgotten_comes_to_the_end_all_the_same() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    log.forget_during_reads(Some(U));
    let mut subscription = one.subscribe(T);
    let early = timeout(Duration::from_millis(1), subscription.next()).await;
    assert!(early.is_err(), "{early:?}");
    two.publish(T, text("a")).await.unwrap();
    assert_eq!(next_text(&mut subscription).await, "a");
}

/// What one client saw, against what the log had.
struct Client {
    subscription: Subscription,
    node: usize,
    last: Cursor,
    /// Up to where it was told that it missed something.
    told: Option<Cursor>,
}

impl Client {
    fn take(&mut self, message: Message, stored: &[Cursor]) {
        match message {
            Message::Event(event) => {
                let (at, last) = (event.cursor(), self.last);
                assert_eq!(at.run(), last.run(), "another run without a word, after {last}");
                assert!(at.position() > last.position(), "{at} after {last}");
                let told = self.told.map_or(0, Cursor::position);
                let is_missed = |one: &&Cursor| {
                    one.run() == at.run()
                        && one.position() < at.position()
                        && one.position() > last.position().max(told)
                };
                assert_eq!(stored.iter().find(is_missed), None, "missed between {last} and {at}, told {:?}", self.told);
                self.last = at;
            }
            Message::Gap(gap) if gap.through.run() != self.last.run() => {
                assert_eq!(gap.reason, GapReason::Foreign);
                (self.last, self.told) = (gap.through, None);
            }
            Message::Gap(gap) => self.told = Some(gap.through),
            other => panic!("{other:?}"),
        }
    }

    async fn look(&mut self, most: usize, stored: &[Cursor]) {
        for _ in 0..most {
            let Ok(next) = timeout(Duration::from_millis(1), self.subscription.next()).await else { return };
            self.take(next.unwrap().unwrap(), stored);
        }
    }
}

/// One log, two nodes, some clients, and whatever can happen to them.
async fn turmoil(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let log = Log::over(Ring::new().events_per_topic(random.usize(3..40)));
    let builder = || Hub::builder().window_events(8).page(4, 1 << 16);
    let hubs = [builder().open(log.node()).await.unwrap(), builder().open(log.node()).await.unwrap()];
    let topics = || Topics::new([T, U]).unwrap();
    let mut stored: Vec<Cursor> = Vec::new();
    let mut states = HashMap::new();
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..150 {
        let node = random.usize(..2);
        let topic = if random.bool() { T } else { U };
        match random.u32(..100) {
            0..25 => stored.push(hubs[node].publish(topic, text(1)).await.unwrap()),
            25..40 => {
                let key = random.usize(..3);
                let new = hubs[node].publish_latest(&topic, key.to_string(), text(2)).await.unwrap();
                stored.push(new);
                // Nobody need have what another took the place of.
                let older = states.insert((topic, key), new);
                stored.retain(|one| Some(*one) != older);
            }
            40..60 if !clients.is_empty() => {
                let at = random.usize(..clients.len());
                clients[at].look(random.usize(1..6), &stored).await;
            }
            60..70 if !clients.is_empty() => {
                let at = random.usize(..clients.len());
                let client = &mut clients[at];
                client.node = 1 - client.node;
                // From the place that it was given; what it was told and got nothing after it is told again.
                client.told = None;
                let subscription = hubs[client.node].subscribe(topics()).resume(client.last);
                // Zero is none.
                client.subscription = subscription.min_interval(Duration::from_millis(random.u64(..5)));
            }
            70..76 => {
                let subscription = hubs[node].subscribe(topics());
                let last = subscription.cursor().unwrap();
                clients.push(Client { subscription, node, last, told: None });
            }
            76..80 => log.cut(node),
            80..85 => log.heal(node),
            85..87 => log.skip(node),
            87..90 => log.halt_after(node, random.usize(..5)),
            90..94 => log.let_go(node),
            94..96 => hubs[node].forget(topic).await.unwrap(),
            96 => {
                log.replace();
                stored.clear();
            }
            97 => log.break_feed(node, random.bool()),
            _ => settle().await,
        }
    }
    for node in 0..2 {
        log.heal(node);
        log.let_go(node);
    }
    sleep(Duration::from_secs(5)).await;
    let end = [hubs[0].publish(T, text("end")).await.unwrap(), hubs[1].publish(U, text("end")).await.unwrap()];
    stored.extend(end);
    settle().await;
    for client in &mut clients {
        client.look(usize::MAX, &stored).await;
        assert_eq!(client.last, end[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_misses_anything_silently_or_has_it_twice_whatever_happens_to_two_nodes() {
    for seed in 0..300 {
        let done = tokio::spawn(turmoil(seed)).await;
        assert!(done.is_ok(), "seed {seed}");
    }
}

/// A log in memory that takes its time, and remembers how much it was given at once.
#[derive(Clone)]
struct Slow {
    ring: Arc<Ring>,
    batches: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Slow {
    /// What it refuses, after it has tried for long.
    const REFUSED: &str = "refused";
    /// What it never answers.
    const NEVER: &str = "never";

    fn new() -> Self {
        Self { ring: Arc::new(Ring::new()), batches: Arc::default() }
    }
}

impl ReplayStore for Slow {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.ring.head().await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        sleep(Duration::from_secs(1)).await;
        let bytes = records.iter().map(|record| record.body().len()).sum();
        self.batches.lock().unwrap().push((records.len(), bytes));
        if records.iter().any(|record| record.data().as_deref() == Some(Self::REFUSED)) {
            sleep(Duration::from_secs(3)).await;
            return Err(AppendError::refused("it is away"));
        }
        if records.iter().any(|record| record.data().as_deref() == Some(Self::NEVER)) {
            std::future::pending::<()>().await;
        }
        self.ring.append(records).await
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        self.ring.read(read).await
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.ring.forget(topic).await
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_waited_for_a_slow_store_are_not_one_batch_that_is_too_much_for_it() {
    let store = Slow::new();
    let hub = Hub::builder().open(store.clone()).await.unwrap();
    let publish = |count: usize, body: String| {
        let publishing = (0..count).map(|_| hub.publish(T, text(&body)));
        futures_util::future::join_all(publishing.collect::<Vec<_>>())
    };
    let outcomes = publish(10_000, "small".into()).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let outcomes = publish(30, "x".repeat(1_000_000)).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let batches = store.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().map(|(count, _)| count).sum::<usize>(), 10_030);
    // Servers and their clients have bounds of their own, of some 32 MiB.
    assert!(batches.iter().all(|&(count, bytes)| count <= 4096 && bytes <= 9_000_000), "{batches:?}");
    // And yet they share: 10,000 one by one would take hours.
    assert!(batches.len() < 20, "{batches:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_good_behind_a_batch_that_is_never_answered() {
    let store = Slow::new();
    let hub = Hub::builder().open(store.clone()).await.unwrap();
    let publish = |topic, body| {
        let hub = hub.clone();
        tokio::spawn(async move { hub.publish(topic, text(body)).await })
    };
    let first = publish(T, "first");
    settle().await;
    // Once that is stored, these come together.
    let lost = publish(T, Slow::NEVER);
    settle().await;
    let forgotten = tokio::spawn({
        let hub = hub.clone();
        async move { hub.forget(U).await }
    });
    settle().await;
    let behind = publish(U, "behind");
    first.await.unwrap().unwrap();
    assert!(lost.await.unwrap().unwrap_err().is_unknown());
    let longest = Duration::from_secs(60);
    assert!(timeout(longest, forgotten).await.expect("an answer").unwrap().is_err());
    assert!(timeout(longest, behind).await.expect("an answer").unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_store_that_is_away_once_for_each_batch_before_theirs() {
    let hub = Hub::builder().open(Slow::new()).await.unwrap();
    let first = tokio::spawn({
        let hub = hub.clone();
        async move { hub.publish(T, text("first")).await }
    });
    settle().await;
    let begun = Instant::now();
    // Three batches, if all were given to the store.
    let publishing = (0..10_000).map(|_| hub.publish(T, text(Slow::REFUSED)));
    let outcomes = futures_util::future::join_all(publishing.collect::<Vec<_>>()).await;
    first.await.unwrap().unwrap();
    assert!(outcomes.iter().all(Result::is_err));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}
