//! How many instructions the usual work takes, counted by valgrind: a figure that does not depend on what else the machine
//! does.
//!
//! ```sh
//! .ci/instructions             # compares with `benches/instructions.txt`
//! .ci/instructions --update    # writes that file
//! ```
//!
//! Events have 128 bytes where nothing else is said. What is made before and dropped after is not counted, nor what is done
//! once in a process: all has run before.
//!
//! - `encode`: one event, the making of it included.
//! - `publish`: 100 events to a topic that nobody follows, with a log that is full.
//! - `deliver`: a number of events to 100 subscribers, the publishing included, until each has everything.
//! - `replay`: 1,000 events for a client that comes back, the first one to read them or a later one.
//! - `single_stream`: 100 tokens, one by one, without a hub.
//!
//! A large copy counts by the byte, not by what it takes: the C library uses an instruction that repeats itself.

#![allow(missing_docs, reason = "of what the macros make")]

mod common;

use crate::common::NEWS;
use bytes::Bytes;
use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use http_body::Body;
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tidings::{Event, EventId, Hub, SubscriptionBody};

const USUAL_ID: &str = "0.0.1rtv1m3fmcw2d";
const SUBSCRIBERS: usize = 100;
const PUBLISHED: usize = 100;
const TOKENS: usize = 100;

fn encoded(text: &str) -> Bytes {
    common::event(text).encode(Some(&EventId::from(1234)))
}

fn text(bytes: usize) -> Arc<str> {
    let text = common::text(bytes);
    encoded(&text);
    text
}

#[library_benchmark]
#[bench::bytes_128(text(128))]
#[bench::bytes_1024(text(1024))]
#[bench::bytes_16384(text(16 * 1024))]
fn encode(text: Arc<str>) -> (Bytes, Arc<str>) {
    (encoded(&text), text)
}

/// One whose ids are of the usual length: a part of them is random, and one digit shorter in one hub of four.
fn comparable(make: impl Fn() -> Hub) -> Hub {
    let is_usual = |hub: &Hub| hub.subscribe(NEWS).cursor().is_some_and(|id| id.to_string().len() == USUAL_ID.len());
    std::iter::repeat_with(make).find(is_usual).unwrap()
}

fn full_hub() -> (Hub, Arc<str>) {
    (common::fill(comparable(Hub::new), &[NEWS]), common::text(128))
}

#[library_benchmark]
#[bench::no_subscriber(full_hub())]
fn publish((hub, text): (Hub, Arc<str>)) -> (Hub, Arc<str>) {
    (0..PUBLISHED).for_each(|_| common::publish(&hub, &NEWS, &text));
    (hub, text)
}

struct Subscribed {
    hub: Hub,
    text: Arc<str>,
    bodies: Vec<Pin<Box<SubscriptionBody>>>,
}

impl Subscribed {
    /// Lists have grown to the number of subscribers.
    fn new() -> Self {
        common::enter_for_good();
        let hub = full_hub().0;
        let bodies = (0..SUBSCRIBERS).map(|_| common::subscriber(&hub, &NEWS)).collect();
        let this = Self { hub, text: common::text(128), bodies };
        (0..3).fold(this, |this, _| this.deliver(1))
    }

    fn deliver(mut self, events: usize) -> Self {
        (0..events).for_each(|_| common::publish(&self.hub, &NEWS, &self.text));
        for body in &mut self.bodies {
            assert!(common::read(body) > events * self.text.len());
        }
        self
    }
}

#[library_benchmark]
#[bench::one_event(1, Subscribed::new())]
#[bench::burst_of_40(40, Subscribed::new())]
fn deliver(events: usize, subscribed: Subscribed) -> Subscribed {
    subscribed.deliver(events)
}

/// A log that no client has read.
fn unread(make: impl Fn() -> Hub) -> (Hub, String) {
    // Whatever is done once in a process.
    read_before(&make);
    common::hub_with_missed(comparable(make))
}

/// A log that another client has read from the same place.
fn read_before(make: impl Fn() -> Hub) -> (Hub, String) {
    common::enter_for_good();
    let (hub, id) = common::hub_with_missed(comparable(make));
    replayed(&hub, &id);
    (hub, id)
}

fn replayed(hub: &Hub, id: &str) -> Pin<Box<SubscriptionBody>> {
    let mut body = common::resumed(hub, id);
    assert!(common::read(&mut body) > common::MISSED * 128);
    body
}

#[library_benchmark]
#[bench::window_first(unread(Hub::new))]
#[bench::window(read_before(Hub::new))]
#[bench::ring(read_before(|| Hub::builder().window_events(256).build()))]
fn replay((hub, id): (Hub, String)) -> (Hub, String, Pin<Box<SubscriptionBody>>) {
    let body = replayed(&hub, &id);
    (hub, id, body)
}

type Token = (Arc<AtomicBool>, Box<dyn Body<Data = Bytes, Error = Infallible> + Unpin>);

fn stream() -> Token {
    common::enter_for_good();
    let ready: Arc<AtomicBool> = Arc::default();
    let mut body = common::sse(common::one_by_one(Arc::clone(&ready), || Event::new().data(common::TOKEN)));
    ready.store(true, Relaxed);
    common::deliver(&mut body);
    (ready, Box::new(body))
}

#[library_benchmark]
#[bench::one_by_one(stream())]
fn single_stream((ready, mut body): Token) -> Token {
    for _ in 0..TOKENS {
        ready.store(true, Relaxed);
        common::deliver(&mut body);
    }
    (ready, body)
}

library_benchmark_group!(name = all, benchmarks = [encode, publish, deliver, replay, single_stream]);

main!(
    // No caches: they are not simulated well enough to say more than the instructions do.
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = all
);
