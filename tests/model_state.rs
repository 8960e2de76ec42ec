//! Random scripts over everything that a log can have: events, newest ones of a key, removals, ephemeral events, ends,
//! topics that are forgotten, and a ring with tight bounds. A client that comes back with its last id has every event once
//! and in order, or was told of a gap, or has the newer one of the key.
//!
//! `TIDINGS_SCRIPTS=100000 cargo test --release --test model_state` runs longer.

use futures_util::{FutureExt as _, StreamExt, future::poll_immediate};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};
use tidings::{
    EndReason, Event, GapPolicy, Hub, LagBudget, LastEventId, Message, Resume, Subscription, SubscriptionBody, Topic,
    Topics,
    replay::{Cursor, Kind, Record, Ring},
    test_util::EventReader,
};

const TOPICS: usize = 3;
const CLIENTS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Publish { topic: usize, kind: Kind, key: usize, size: usize },
    Ephemeral(usize),
    Connect(usize, How),
    Cut(usize),
    Read(usize, usize),
    Wait(u64),
    Forget(usize),
}

#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one setting")]
struct How {
    wire: bool,
    interval: bool,
    filter: bool,
    budget: bool,
    ends: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        30 => Just(Kind::Event),
        30 => Just(Kind::Latest),
        8 => Just(Kind::Removal),
        1 => Just(Kind::Finish)
    ];
    let how = any::<[bool; 5]>().prop_map(|[wire, interval, filter, budget, ends]| How {
        wire,
        interval,
        filter,
        budget: budget && interval,
        ends,
    });
    prop_oneof![
        20 => (0..TOPICS, kind, 0..3usize, 0..400usize)
            .prop_map(|(topic, kind, key, size)| Step::Publish { topic, kind, key, size }),
        6 => (0..TOPICS).prop_map(Step::Ephemeral),
        6 => (0..CLIENTS, how).prop_map(|(client, how)| Step::Connect(client, how)),
        3 => (0..CLIENTS).prop_map(Step::Cut),
        12 => (0..CLIENTS, 1..8usize).prop_map(|(client, count)| Step::Read(client, count)),
        3 => (0..40u64).prop_map(Step::Wait),
        1 => (0..TOPICS).prop_map(Step::Forget),
    ]
}

fn topic(index: usize) -> Topic {
    Topic::new(index.to_string()).unwrap()
}

struct Published {
    position: u64,
    topic: usize,
    key: Option<usize>,
    number: usize,
}

#[derive(Default)]
struct Truth {
    events: Vec<Published>,
    /// Behind which position, and of which topic.
    ephemerals: Vec<(u64, usize)>,
    published: usize,
}

impl Truth {
    fn is_replaced(&self, index: usize) -> bool {
        let it = &self.events[index];
        it.key.is_some() && self.events[index + 1..].iter().any(|newer| newer.topic == it.topic && newer.key == it.key)
    }
}

enum Stream {
    Messages(Box<Subscription>),
    Wire(EventReader<SubscriptionBody>),
}

struct Client {
    topics: Vec<usize>,
    id: Option<String>,
    how: Option<How>,
    stream: Option<Stream>,
    /// It has, or is not to have, the events up to here.
    at: u64,
    excused: u64,
    /// Of this connection.
    last_ephemeral: Option<usize>,
    ended: bool,
    ends_by_gap: usize,
}

#[derive(Debug)]
enum Seen {
    Number(usize),
    Ephemeral(usize),
    Gap(u64),
    End(Option<EndReason>),
    Other,
}

impl Client {
    fn passes(&self, number: usize) -> bool {
        !self.how.is_some_and(|how| how.filter) || number % 3 != 0
    }

    async fn connect(&mut self, hub: &Hub, truth: &Truth, how: How) {
        self.how = Some(How { filter: self.how.map_or(how.filter, |before| before.filter), ..how });
        let topics = Topics::new(self.topics.iter().copied().map(topic)).unwrap();
        let mut subscription = hub.subscribe(topics).resume(LastEventId::from(self.id.clone()));
        if how.interval {
            subscription = subscription.min_interval(Duration::from_secs(3));
        }
        if how.budget {
            subscription = subscription.lag_budget(LagBudget::new().events(4));
        }
        if how.ends {
            subscription = subscription.on_gap(GapPolicy::End);
        }
        if self.how.is_some_and(|how| how.filter) {
            subscription = subscription.filter(|record| record.label("skip").is_none());
        }
        let subscription = subscription.opened().await.unwrap();
        (self.last_ephemeral, self.ended) = (None, false);
        if subscription.outcome() == Some(Resume::Fresh) {
            // Of a topic that is finished it gets what is held.
            self.at = subscription.cursor().map_or(0, Cursor::position);
            self.excused = self.excused.max(truth.events.last().map_or(0, |it| it.position));
            self.id = subscription.cursor().map(|cursor| cursor.to_string());
        }
        self.stream = Some(if how.wire {
            Stream::Wire(EventReader::new(subscription.into_http_response().into_body()))
        } else {
            Stream::Messages(Box::new(subscription))
        });
    }

    async fn next(&mut self) -> Option<Seen> {
        let number = |data: &str| match data.strip_prefix('e') {
            Some(n) => Seen::Ephemeral(n.parse().unwrap()),
            None => Seen::Number(data.trim_end_matches('x').parse().unwrap()),
        };
        match self.stream.as_mut()? {
            Stream::Messages(subscription) => {
                let before = subscription.cursor();
                let next = poll_immediate(subscription.next()).await?;
                if let (Some(before), Some(after)) = (before, subscription.cursor()) {
                    assert!(after.position() >= before.position(), "the cursor went back");
                }
                Some(match next {
                    Some(Ok(Message::Event(entry))) => number(&entry.record().data().unwrap()),
                    Some(Ok(Message::Gap(gap))) => Seen::Gap(gap.through.position()),
                    Some(other) => panic!("{other:?}"),
                    None => Seen::End(subscription.end_reason()),
                })
            }
            Stream::Wire(reader) => {
                let next = reader.next().now_or_never()?;
                Some(match next {
                    Some(event) if event.event_type == "tidings-gap" => {
                        let through = event.data.split("\"through\":\"").nth(1).unwrap();
                        Seen::Gap(through.split('.').next().unwrap().parse().unwrap())
                    }
                    Some(event) if event.data.is_empty() => Seen::Other,
                    Some(event) => number(&event.data),
                    None => Seen::End(None),
                })
            }
        }
    }

    fn must_have(&self, truth: &Truth, before: u64) {
        for (index, it) in truth.events.iter().enumerate() {
            let missing = it.position > self.at
                && it.position < before
                && it.position > self.excused
                && self.topics.contains(&it.topic)
                && self.passes(it.number)
                && !truth.is_replaced(index);
            assert!(!missing, "{} at {} was skipped", it.number, it.position);
        }
    }

    async fn read(&mut self, truth: &Truth, count: usize) -> usize {
        for read in 0..count {
            let Some(seen) = self.next().await else { return read };
            match seen {
                Seen::Number(number) => {
                    let it = truth.events.iter().find(|it| it.number == number).expect("was published");
                    assert!(self.topics.contains(&it.topic) && self.passes(number), "not asked for");
                    assert!(it.position > self.at, "{number} at {} came again, or late", it.position);
                    self.must_have(truth, it.position);
                    self.at = it.position;
                }
                Seen::Ephemeral(number) => {
                    let (position, topic) = truth.ephemerals[number];
                    assert!(self.topics.contains(&topic));
                    assert!(self.last_ephemeral.is_none_or(|last| last < number), "ephemeral again, or out of order");
                    self.last_ephemeral = Some(number);
                    assert!(self.at <= position, "an ephemeral event came late");
                    self.must_have(truth, position + 1);
                }
                Seen::Gap(through) => self.excused = self.excused.max(through),
                Seen::End(reason) => {
                    if reason == Some(EndReason::Gap) {
                        self.ends_by_gap += 1;
                    }
                    self.cut();
                    self.ended = true;
                    return read + 1;
                }
                Seen::Other => {}
            }
        }
        count
    }

    fn cut(&mut self) {
        let id = match self.stream.take() {
            Some(Stream::Messages(subscription)) => subscription.cursor().map(|cursor| cursor.to_string()),
            Some(Stream::Wire(reader)) => Some(reader.last_event_id().to_owned()).filter(|id| !id.is_empty()),
            None => None,
        };
        if id.is_some() {
            self.id = id;
        }
    }
}

async fn run(script: Vec<Step>, other: bool, keep_latest: Option<u64>) {
    let mut ring =
        Ring::new().events_per_topic(6).bytes_per_topic(3_000).total_bytes(6_000).max_age(Duration::from_secs(60));
    if let Some(seconds) = keep_latest {
        ring = ring.keep_latest(Duration::from_secs(seconds));
    }
    let builder = Hub::builder().window_events(3).page(2, 1 << 20);
    let hub = if other { builder.open(Arc::new(ring)).await.unwrap() } else { builder.ring(ring).build() };
    let mut truth = Truth::default();
    let mut head = 0;
    let mut clients: Vec<Client> = [vec![0], vec![0, 1], vec![0, 1, 2], vec![2]]
        .map(|topics| Client {
            topics,
            id: None,
            how: None,
            stream: None,
            at: 0,
            excused: 0,
            last_ephemeral: None,
            ended: false,
            ends_by_gap: 0,
        })
        .into();
    for step in script {
        match step {
            Step::Publish { topic: index, kind, key, size } => {
                let number = truth.published;
                truth.published += 1;
                let event = Event::new().data(format!("{number}{}", "x".repeat(size)));
                let key_text = key.to_string();
                let mut record = match kind {
                    Kind::Latest => Record::latest(topic(index), key_text, event),
                    Kind::Removal => Record::removal(topic(index), key_text, event),
                    Kind::Finish => Record::finish(topic(index), Some(event)),
                    _ => Record::new(topic(index), event).with_key(key_text),
                };
                if number % 3 == 0 {
                    record = record.with_label("skip", "");
                }
                match hub.publish_record(record).await {
                    Ok(cursor) => {
                        head = cursor.position();
                        let key = matches!(kind, Kind::Latest | Kind::Removal).then_some(key);
                        truth.events.push(Published { position: head, topic: index, key, number });
                    }
                    Err(error) => assert!(error.is_finished(), "{error}"),
                }
            }
            Step::Ephemeral(index) => {
                let number = truth.ephemerals.len();
                if hub.publish_ephemeral(topic(index), Event::new().data(format!("e{number}"))).is_ok() {
                    truth.ephemerals.push((head, index));
                }
            }
            Step::Connect(client, how) => {
                if clients[client].stream.is_none() {
                    clients[client].connect(&hub, &truth, how).await;
                }
            }
            Step::Cut(client) => clients[client].cut(),
            Step::Read(client, count) => {
                clients[client].read(&truth, count).await;
            }
            Step::Wait(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            Step::Forget(index) => hub.forget(topic(index)).await.unwrap(),
        }
    }
    let calm = How { wire: false, interval: false, filter: false, budget: false, ends: false };
    for client in &mut clients {
        client.cut();
        for ends in [true, false] {
            client.connect(&hub, &truth, How { ends, ..calm }).await;
            while client.read(&truth, 100).await > 0 {}
            if ends && client.ended && client.ends_by_gap > 0 {
                client.ends_by_gap = 0;
                client.connect(&hub, &truth, How { ends, ..calm }).await;
                while client.read(&truth, 100).await > 0 {}
                assert_eq!(client.ends_by_gap, 0, "it was told of the same gap again");
            }
            client.cut();
        }
        client.must_have(&truth, u64::MAX);
    }
}

fn scripts() -> ProptestConfig {
    let cases = std::env::var("TIDINGS_SCRIPTS").ok().and_then(|count| count.parse().ok()).unwrap_or(500);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(scripts())]

    #[test]
    fn every_event_once_or_its_newer_one_or_a_gap(
        script in prop::collection::vec(step(), 1..80),
        other: bool,
        keep_latest in prop::option::of(10..120u64),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(script, other, keep_latest));
    }
}
