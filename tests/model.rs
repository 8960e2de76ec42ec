//! Random scripts against a model: whatever happens, a client that comes back with its last id sees every event of its
//! topics once and in order, or is told of a gap before the first event after it.
//!
//! `TIDINGS_SCRIPTS=100000 cargo test --release --test model` runs longer; a failure prints the shortest script.

use futures_util::{StreamExt, future::poll_immediate};
use proptest::prelude::*;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tidings::{
    Event, GapReason, Hub, LastEventId, Message, Subscription, Topic, Topics,
    replay::{AppendError, Cursor, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Run},
};

const TOPICS: usize = 3;
const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    /// The store takes it, or not, and does not say which.
    PublishUnknown(usize, bool),
    /// A client connects with what it has, if it is not connected.
    Connect(usize),
    Cut(usize),
    /// A client reads up to so many messages; those who do not read lag behind.
    Read(usize, usize),
    /// The store forgets all but so many of the newest events.
    Evict(usize),
    /// The hub and its store are opened anew; so many of the newest events were lost.
    Restart(usize),
    /// The log is lost altogether.
    NewLog,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..TOPICS).prop_map(Step::Publish),
        1 => (0..TOPICS, any::<bool>()).prop_map(|(topic, stored)| Step::PublishUnknown(topic, stored)),
        4 => (0..CLIENTS).prop_map(Step::Connect),
        2 => (0..CLIENTS).prop_map(Step::Cut),
        6 => (0..CLIENTS, 1..6usize).prop_map(|(client, count)| Step::Read(client, count)),
        1 => (0..6usize).prop_map(Step::Evict),
        1 => (0..3usize).prop_map(Step::Restart),
        1 => Just(Step::NewLog),
    ]
}

/// A log that can lose its end, and be opened anew.
#[derive(Clone)]
struct Log(Arc<Mutex<LogState>>);

struct LogState {
    run: Run,
    /// Where each run began.
    began: Vec<u64>,
    position: u64,
    records: Vec<(Cursor, Record)>,
    floors: [u64; TOPICS],
    next_unknown: Option<bool>,
}

fn topic(index: usize) -> Topic {
    Topic::new(format!("{index}")).unwrap()
}

fn index(topic: &Topic) -> usize {
    topic.name().parse().unwrap()
}

impl Log {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(LogState {
            run: Run::new_log(),
            began: vec![0],
            position: 0,
            records: Vec::new(),
            floors: [0; TOPICS],
            next_unknown: None,
        })))
    }

    fn evict(&self, keep: usize) {
        let mut log = self.0.lock().unwrap();
        let gone = log.records.len().saturating_sub(keep);
        let gone: Vec<_> = log.records.drain(..gone).collect();
        for (cursor, record) in gone {
            log.floors[index(record.topic())] = cursor.position();
        }
    }

    fn reopen(&self, lost: usize) {
        let mut log = self.0.lock().unwrap();
        let kept = log.records.len().saturating_sub(lost);
        if kept < log.records.len() {
            log.position = log.records[kept].0.position() - 1;
            log.records.truncate(kept);
        }
        log.run.number += 1;
        let position = log.position;
        log.began.push(position);
    }
}

impl ReplayStore for Log {
    async fn head(&self) -> Result<Cursor, ReadError> {
        let log = self.0.lock().unwrap();
        Ok(log.run.at(log.position))
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let mut log = self.0.lock().unwrap();
        let unknown = log.next_unknown.take();
        if unknown == Some(false) {
            return Err(AppendError::unknown("scripted"));
        }
        let mut outcomes = Vec::new();
        for record in records.iter() {
            log.position += 1;
            let cursor = log.run.at(log.position);
            log.records.push((cursor, record.clone()));
            outcomes.push(Ok(cursor));
        }
        if unknown.is_some() { Err(AppendError::unknown("scripted")) } else { Ok(outcomes) }
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let log = self.0.lock().unwrap();
        let head = log.run.at(log.position);
        let ReadFrom::After(after) = read.from else { unreachable!("no client here asks for it") };
        let later = usize::try_from(after.run().number).unwrap().saturating_add(1);
        let good_up_to = log.began.iter().skip(later).min().copied().unwrap_or(log.position);
        let same = after.run().epoch == log.run.epoch && after.run().number <= log.run.number;
        if !same || after.position() > good_up_to {
            return Ok(Page::foreign(head));
        }
        let mut page = Page::new(head);
        page.floor = read.topics.iter().map(|topic| log.floors[index(topic)]).max().unwrap_or(0);
        for (cursor, record) in &log.records {
            if cursor.position() > after.position() && read.topics.contains(record.topic()) {
                if page.entries.len() == read.max_events {
                    page.through = log.run.at(page.entries.last().unwrap().cursor().position());
                    break;
                }
                page.push(*cursor, record.clone());
            }
        }
        Ok(page)
    }

    async fn forget(&self, _: Topic) -> Result<(), ReadError> {
        unreachable!("no hub here forgets")
    }
}

/// What is true: every event of the log as it is, each by a number of its own.
#[derive(Default)]
struct Truth {
    events: Vec<(u64, usize)>,
}

/// What a client may see next: the events from `at` on, without a hole, but for holes that a gap excuses.
#[derive(Default)]
struct Expected {
    at: usize,
    excused: u64,
    must_gap: bool,
}

impl Expected {
    fn skipped<'a>(&self, truth: &'a Truth, topics: &[usize], to: usize) -> Option<&'a (u64, usize)> {
        truth.events[self.at.min(to)..to]
            .iter()
            .find(|(position, topic)| topics.contains(topic) && *position > self.excused)
    }

    fn event(&mut self, truth: &Truth, topics: &[usize], position: u64) {
        assert!(!self.must_gap, "what the client had was lost, and it was not told");
        let found = truth.events.iter().position(|(p, _)| *p == position).expect("the event is in the log");
        assert!(found >= self.at, "an event was repeated, or came too late");
        assert!(topics.contains(&truth.events[found].1), "an event of a topic that was not asked for");
        assert_eq!(self.skipped(truth, topics, found), None, "an event was skipped");
        self.at = found + 1;
    }

    fn gap(&mut self, truth: &Truth, reason: GapReason, through: u64) {
        if reason != GapReason::Evicted {
            self.at = truth.events.iter().position(|(p, _)| *p > through).unwrap_or(truth.events.len());
        }
        self.excused = through;
        self.must_gap = false;
    }
}

#[derive(Default)]
struct Client {
    topics: Vec<usize>,
    id: Option<String>,
    subscription: Option<Subscription>,
    expected: Expected,
}

impl Client {
    async fn connect(&mut self, hub: &Hub, truth: &Truth) {
        let topics = Topics::new(self.topics.iter().copied().map(topic)).unwrap();
        let subscription = hub.subscribe(topics).resume(LastEventId::from(self.id.clone()));
        let subscription = subscription.opened().await.unwrap();
        if subscription.outcome() == Some(tidings::Resume::Fresh) {
            self.expected = Expected { at: truth.events.len(), ..Expected::default() };
        }
        self.subscription = Some(subscription);
    }

    async fn read(&mut self, truth: &Truth, count: usize) -> usize {
        let Some(subscription) = &mut self.subscription else { return 0 };
        for read in 0..count {
            match poll_immediate(subscription.next()).await {
                Some(Some(Ok(Message::Event(entry)))) => {
                    self.expected.event(truth, &self.topics, entry.cursor().position());
                }
                Some(Some(Ok(Message::Gap(gap)))) => self.expected.gap(truth, gap.reason, gap.through.position()),
                Some(other) => panic!("{other:?}"),
                None => return read,
            }
        }
        count
    }

    fn cut(&mut self) {
        // While a gap is still to be reported, the client has no new id.
        if let Some(cursor) = self.subscription.take().and_then(|subscription| subscription.cursor()) {
            self.id = Some(cursor.to_string());
        }
    }

    /// The newest events were lost, down to so many.
    fn lose(&mut self, kept: usize) {
        self.cut();
        self.expected.must_gap |= self.id.is_some() && self.expected.at > kept;
        self.expected.at = self.expected.at.min(kept);
    }
}

async fn run(script: Vec<Step>) {
    let mut log = Log::new();
    let open = async |log: &Log| Hub::builder().window_events(3).page(2, 1 << 20).open(log.clone()).await.unwrap();
    let mut hub = open(&log).await;
    let mut truth = Truth::default();
    let mut clients: Vec<Client> =
        [vec![0], vec![0, 1], vec![0, 1, 2]].map(|topics| Client { topics, ..Client::default() }).into();
    for step in script {
        match step {
            Step::Publish(index) => {
                let id = hub.publish(topic(index), Event::new().data("")).await.unwrap();
                truth.events.push((id.position(), index));
            }
            Step::PublishUnknown(index, stored) => {
                log.0.lock().unwrap().next_unknown = Some(stored);
                assert!(hub.publish(topic(index), Event::new().data("")).await.unwrap_err().is_unknown());
                // Until the hub has asked the store.
                tokio::time::sleep(Duration::from_millis(1)).await;
                if stored {
                    truth.events.push((log.0.lock().unwrap().position, index));
                }
            }
            Step::Connect(client) => {
                if clients[client].subscription.is_none() {
                    clients[client].connect(&hub, &truth).await;
                }
            }
            Step::Cut(client) => clients[client].cut(),
            Step::Read(client, count) => {
                clients[client].read(&truth, count).await;
            }
            Step::Evict(keep) => log.evict(keep),
            Step::Restart(lost) => {
                log.reopen(lost);
                let position = log.0.lock().unwrap().position;
                let kept = truth.events.iter().filter(|(p, _)| *p <= position).count();
                truth.events.truncate(kept);
                for client in &mut clients {
                    client.lose(kept);
                }
                hub = open(&log).await;
            }
            Step::NewLog => {
                log = Log::new();
                truth.events.clear();
                for client in &mut clients {
                    client.lose(0);
                    client.expected.must_gap = client.id.is_some();
                }
                hub = open(&log).await;
            }
        }
    }
    // In the end everyone comes back, and has everything.
    for client in &mut clients {
        client.cut();
        client.connect(&hub, &truth).await;
        while client.read(&truth, 100).await > 0 {}
        assert!(!client.expected.must_gap, "what the client had was lost, and it was not told");
        assert_eq!(client.expected.skipped(&truth, &client.topics, truth.events.len()), None, "an event never came");
    }
}

fn scripts() -> ProptestConfig {
    let cases = std::env::var("TIDINGS_SCRIPTS").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000);
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(scripts())]

    #[test]
    fn every_event_once_and_in_order_or_a_gap(script in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(script));
    }
}
