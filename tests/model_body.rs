//! Random scripts over the ring, read as bodies, as a connection reads them: in frames that several events share. Every
//! event comes once, in order and with its own bytes, or is replaced by a newer one of its key, or a gap is told.
//!
//! `TIDINGS_SCRIPTS=100000 cargo test --release --test model_body`

use http_body::Body as _;
use proptest::prelude::*;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};
use tidings::{
    Event, EventType, Hub, LagBudget, SubscriptionBody, Topic, Topics,
    replay::{Record, Ring},
};

const TOPICS: usize = 3;
const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// So many events of a topic, with data of this size; with a key, each takes the place of the one before.
    Publish {
        topic: usize,
        count: usize,
        size: usize,
        key: Option<u8>,
    },
    Ephemeral(usize),
    Finish(usize, bool),
    Forget(usize),
    /// So many frames.
    Read(usize, usize),
    Cut(usize),
    /// What the ring and the window hold is gone.
    Evict,
}

fn step() -> impl Strategy<Value = Step> {
    let key = prop_oneof![3 => Just(None), 1 => (0..2u8).prop_map(Some)];
    prop_oneof![
        8 => (0..TOPICS, 1..30usize, 0..700usize, key)
            .prop_map(|(topic, count, size, key)| Step::Publish { topic, count, size, key }),
        2 => (0..TOPICS).prop_map(Step::Ephemeral),
        1 => (0..TOPICS, any::<bool>()).prop_map(|(topic, with_event)| Step::Finish(topic, with_event)),
        1 => (0..TOPICS).prop_map(Step::Forget),
        10 => (0..CLIENTS, 1..8usize).prop_map(|(client, frames)| Step::Read(client, frames)),
        3 => (0..CLIENTS).prop_map(Step::Cut),
        1 => Just(Step::Evict),
    ]
}

fn topic(index: usize) -> Topic {
    Topic::new(index.to_string()).unwrap()
}

/// What was published at a position.
struct Published {
    position: u64,
    topic: usize,
    key: Option<u8>,
    /// Of an end without an event there is none.
    data: Option<String>,
}

#[derive(Default)]
struct Truth {
    log: Vec<Published>,
    finished: [bool; TOPICS],
    ephemerals: usize,
}

impl Truth {
    fn is_replaced(&self, one: &Published) -> bool {
        let newer = |it: &&Published| it.position > one.position && it.topic == one.topic && it.key == one.key;
        one.key.is_some() && self.log.iter().any(|it| newer(&it))
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

struct Client {
    topics: Vec<usize>,
    /// Some are watched for how far they are behind, which changes how they are counted and nothing else.
    budget: bool,
    id: Option<String>,
    body: Option<Pin<Box<SubscriptionBody>>>,
    /// Up to where it has everything, and up to where it was told that something is missing.
    seen: u64,
    told: u64,
    ephemerals: usize,
    woken: Arc<Flag>,
    waits: bool,
    /// Whether it had everything of topics that were finished.
    may_end: bool,
}

fn position(id: &str) -> u64 {
    id.split('.').next().unwrap().parse().unwrap()
}

impl Client {
    fn connect(&mut self, hub: &Hub, truth: &Truth) {
        let topics = Topics::new(self.topics.iter().map(|index| topic(*index))).unwrap();
        let mut subscription = hub.subscribe(topics);
        if self.budget {
            subscription = subscription.lag_budget(LagBudget::new().events(1_000_000));
        }
        if let Some(id) = &self.id {
            subscription = subscription.resume(id.as_str());
        }
        // What was told counts for the connection on which it was told.
        (self.told, self.waits, self.may_end) = (0, false, false);
        let response = subscription.into_http_response();
        let complete = response.status() == 204;
        if complete {
            self.has_ended(truth);
        }
        self.body = (!complete).then(|| Box::pin(response.into_body()));
    }

    /// Says whether there is nothing more.
    fn read(&mut self, truth: &Truth, frames: usize) -> bool {
        let waker = Waker::from(Arc::clone(&self.woken));
        for _ in 0..frames {
            let Some(body) = &mut self.body else { return true };
            if !self.waits {
                self.woken.0.store(false, Relaxed);
            }
            let polled = body.as_mut().poll_frame(&mut Context::from_waker(&waker));
            if polled.is_ready() {
                assert!(!self.waits || self.woken.0.load(Relaxed), "it was not woken");
            }
            self.waits = polled.is_pending();
            match polled {
                Poll::Ready(Some(frame)) => {
                    self.frame(truth, &frame.unwrap().into_data().unwrap());
                    self.may_end = self.are_finished(truth) && self.missing(truth, u64::MAX).is_none();
                }
                Poll::Ready(None) => {
                    // The end may have been decided on before a topic was forgotten.
                    if !self.may_end {
                        self.has_ended(truth);
                    }
                    self.body = None;
                }
                Poll::Pending if self.woken.0.load(Relaxed) => {}
                Poll::Pending => {
                    self.has_all(truth, u64::MAX);
                    return true;
                }
            }
        }
        false
    }

    fn frame(&mut self, truth: &Truth, bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.ends_with('\n'));
        for block in text.split_inclusive("\n\n") {
            let field = |name: &str| {
                let mut lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let value = lines.next().map(str::to_owned);
                assert!(lines.next().is_none(), "{name} twice in {block:?}");
                value
            };
            match (field("event").as_deref(), field("id"), field("data")) {
                (Some("tidings-gap"), _, Some(data)) => {
                    self.told = position(data.split(r#""through":""#).nth(1).unwrap());
                }
                (Some("ephemeral"), None, Some(data)) => {
                    let number: usize = data.parse().unwrap();
                    assert!(number > self.ephemerals, "an ephemeral event twice, or out of its order");
                    self.ephemerals = number;
                }
                (None, Some(id), data) => self.event(truth, id, data.as_deref()),
                (None, None, None) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// An event, or a block that only moves the id.
    fn event(&mut self, truth: &Truth, id: String, data: Option<&str>) {
        let at = position(&id);
        if let Some(data) = data {
            assert!(at > self.seen, "{at} after {}", self.seen);
            let found = truth.log.iter().find(|it| it.position == at).unwrap();
            assert!(self.topics.contains(&found.topic));
            assert_eq!(found.data.as_deref(), Some(data));
            self.has_all(truth, at - 1);
        } else if self.id.is_some() {
            self.has_all(truth, at);
        }
        (self.seen, self.id) = (at, Some(id));
    }

    fn are_finished(&self, truth: &Truth) -> bool {
        self.topics.iter().all(|index| truth.finished[*index])
    }

    fn has_ended(&self, truth: &Truth) {
        assert!(self.are_finished(truth), "it ended before its topics did");
        self.has_all(truth, u64::MAX);
    }

    /// Nothing is missing up to a position of which it was not told.
    fn has_all(&self, truth: &Truth, through: u64) {
        if let Some(missing) = self.missing(truth, through) {
            panic!("{} of topic {} did not come", missing.position, missing.topic);
        }
    }

    fn missing<'a>(&self, truth: &'a Truth, through: u64) -> Option<&'a Published> {
        let due = |it: &&Published| {
            let behind = it.position > self.seen.max(self.told) && it.position <= through;
            behind && self.topics.contains(&it.topic) && it.data.is_some() && !truth.is_replaced(it)
        };
        self.id.as_ref().and_then(|_| truth.log.iter().find(due))
    }
}

fn play(window: usize, ring: usize, script: &[Step]) {
    let hub = Hub::builder().window_events(window).ring(Ring::new().events_per_topic(ring)).build();
    let mut truth = Truth::default();
    let mut clients: [Client; CLIENTS] = std::array::from_fn(|index| Client {
        topics: if index < TOPICS { vec![index] } else { (0..TOPICS).collect() },
        budget: index % 2 == 1,
        id: None,
        body: None,
        seen: 0,
        told: 0,
        ephemerals: 0,
        woken: Arc::default(),
        waits: false,
        may_end: false,
    });
    for client in &mut clients {
        client.connect(&hub, &truth);
        client.read(&truth, 1);
    }
    let publish = |truth: &mut Truth, index: usize, record: Record, key, data| {
        if let Ok(cursor) = hub.publish_record_now(record) {
            truth.log.push(Published { position: cursor.position(), topic: index, key, data });
        }
    };
    for step in script {
        match *step {
            Step::Publish { topic: index, count, size, key } => {
                for number in 0..count {
                    let data = format!("{}.{number}.{}", truth.log.len(), "x".repeat(size));
                    let event = Event::new().data(&data);
                    let record = match key {
                        Some(key) => Record::latest(topic(index), key.to_string(), event),
                        None => Record::new(topic(index), event),
                    };
                    publish(&mut truth, index, record, key, Some(data));
                }
            }
            Step::Ephemeral(index) => {
                truth.ephemerals += 1;
                let event =
                    Event::new().event_type(EventType::from_static("ephemeral")).data(truth.ephemerals.to_string());
                let _ = hub.publish_ephemeral(topic(index), event);
            }
            Step::Finish(index, with_event) => {
                let data = with_event.then(|| format!("{}.end", truth.log.len()));
                let event = data.as_ref().map(|data| Event::new().data(data));
                publish(&mut truth, index, Record::finish(topic(index), event), None, data);
                truth.finished[index] = true;
            }
            Step::Forget(index) => {
                futures_util::FutureExt::now_or_never(hub.forget(topic(index))).unwrap().unwrap();
                truth.finished[index] = false;
            }
            Step::Read(client, frames) => drop(clients[client].read(&truth, frames)),
            Step::Cut(client) => clients[client].connect(&hub, &truth),
            Step::Evict => tidings::test_util::evict(&hub),
        }
    }
    for client in &mut clients {
        if client.body.is_some() {
            assert!(client.read(&truth, 10_000), "there is always more");
        }
        client.connect(&hub, &truth);
        assert!(client.read(&truth, 10_000), "there is always more");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("TIDINGS_SCRIPTS").ok().and_then(|count| count.parse().ok()).unwrap_or(500),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_event_comes_once_in_frames_that_are_shared(
        window in 0..60usize,
        more in 0..200usize,
        script in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _entered = runtime.enter();
        play(window, window + more, &script);
    }
}
