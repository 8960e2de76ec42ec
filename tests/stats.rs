//! The numbers of a hub add up.

use futures_util::{FutureExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use std::time::Duration;
use tidings::{
    Event, Hub, KeepAlive, Lag, Message, Start, Stats, Subscription, SubscriptionBody, Topic,
    replay::Ring,
    test_util::{Fault, FaultyStore, foreign_id},
};

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");

enum Reader {
    Stream(Box<Subscription>),
    Body(std::pin::Pin<Box<SubscriptionBody>>),
}

impl Reader {
    /// Takes what is there, or one thing. As bytes, because a body joins events.
    fn read(&mut self, all: bool) -> u64 {
        let mut bytes = 0;
        loop {
            let read = match self {
                Self::Stream(stream) => match stream.next().now_or_never() {
                    Some(Some(Ok(Message::Event(event)))) => Some(event.frame().len()),
                    Some(Some(Ok(_))) => Some(0),
                    Some(other) => panic!("{other:?}"),
                    None => None,
                },
                Self::Body(body) => match body.frame().now_or_never() {
                    Some(Some(Ok(frame))) => Some(frame.into_data().unwrap().len()),
                    Some(other) => panic!("{other:?}"),
                    None => None,
                },
            };
            match read {
                Some(read) => bytes += read as u64,
                None => return bytes,
            }
            if !all {
                return bytes;
            }
        }
    }
}

fn read_all(readers: &mut [Reader]) {
    for reader in readers {
        reader.read(true);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_published_is_delivered_left_out_or_reported_to_each() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let ring = Ring::new().events_per_topic(random.usize(20..200));
        let hub = Hub::builder().ring(ring).window_events(random.usize(5..20)).page(10, 4096).build();
        let mut readers: Vec<_> = (0..20)
            .map(|n| {
                let subscription = hub.subscribe(T).keep_alive(KeepAlive::off());
                let subscription = match n % 4 {
                    0 | 1 => subscription,
                    _ => subscription.filter(|record| record.key() != Some("odd")),
                };
                match n % 2 {
                    0 => Reader::Stream(Box::new(subscription)),
                    _ => Reader::Body(Box::pin(subscription.into_http_response().into_body())),
                }
            })
            .collect();
        read_all(&mut readers);
        let published: u64 = random.u64(100..1000);
        for n in 0..published {
            let key = if n % 2 == 0 { "even" } else { "odd" };
            let record = tidings::replay::Record::new(T, Event::new().data("x".repeat(random.usize(0..500))));
            hub.publish_record(record.with_key(key)).await.unwrap();
            for reader in &mut readers {
                match random.u32(0..400) {
                    0 => drop(reader.read(true)),
                    1..40 => drop(reader.read(false)),
                    _ => {}
                }
            }
        }
        read_all(&mut readers);
        let stats = hub.stats();
        assert_eq!((stats.published.events, stats.subscriptions), (published, 20));
        let sum = stats.delivered.events + stats.filtered + stats.gaps.positions;
        assert_eq!(published * 20, sum, "seed {seed}: {stats:?}");
        assert_eq!(stats.lag, Lag::default_of(20));
        assert_eq!((stats.gaps.reports == 0, stats.topics), (stats.gaps.positions == 0, 1));
        drop(readers);
        assert_eq!(hub.stats().left.disconnected, 20);
    }
}

/// What nobody of so many is behind.
trait DefaultOf {
    fn default_of(count: usize) -> Self;
}

impl DefaultOf for Lag {
    fn default_of(count: usize) -> Self {
        let mut lag = Self::default();
        lag.subscriptions[0] = count;
        lag
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_are_those_of_the_wire_and_lag_is_in_positions() {
    let hub = Hub::new();
    let mut stream = Reader::Stream(Box::new(hub.subscribe(T)));
    let mut body = Box::pin(hub.subscribe(T).into_http_response().into_body());
    let opening = body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    stream.read(true);
    for n in 0..50 {
        hub.publish(T, Event::new().data(n.to_string())).await.unwrap();
        hub.publish(U, Event::new()).await.unwrap();
    }
    let stats = hub.stats();
    assert_eq!((stats.lag.max, stats.lag.subscriptions), (100, [0, 0, 2, 0, 0, 0]));
    assert_eq!((stats.published.events, stats.delivered.events), (100, 0));
    let read = stream.read(true);
    assert_eq!((hub.stats().delivered.events, hub.stats().delivered.bytes), (50, read));
    let read = read + Reader::Body(body).read(true);
    let stats = hub.stats();
    assert_eq!((stats.delivered.events, stats.delivered.bytes), (100, read), "{opening}");
}

#[tokio::test(start_paused = true)]
async fn beginnings_are_counted_by_how_they_came_out() {
    let hub = Hub::builder().ring(Ring::new().events_per_topic(2)).window_events(1).build();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(hub.publish(T, Event::new().data(n.to_string())).await.unwrap());
    }
    let _open = [
        hub.subscribe(T).into_http_response(),
        hub.subscribe(T).start(Start::Earliest).into_http_response(),
        hub.subscribe(T).resume(ids[4]).into_http_response(),
        hub.subscribe(T).resume(ids[3]).into_http_response(),
        hub.subscribe(T).resume(ids[0]).into_http_response(),
        hub.subscribe(T).resume(foreign_id()).into_http_response(),
        hub.subscribe(T).resume("what?").into_http_response(),
    ];
    let Stats { opened, evicted, .. } = hub.stats();
    let counts = (opened.fresh, opened.resumed, opened.evicted, opened.foreign, opened.malformed);
    assert_eq!((counts, opened.total(), evicted), ((2, 2, 1, 1, 1), 7, 3));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_ephemeral_events_and_failures_are_counted() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    let mut body = Box::pin(hub.subscribe(T).into_http_response().into_body());
    for _ in 0..4 {
        body.frame().await.unwrap().unwrap();
    }
    assert_eq!(hub.stats().heartbeats, 3, "the first frame is the opening");
    hub.publish_ephemeral(T, Event::new().data("1")).unwrap();
    body.frame().await.unwrap().unwrap();
    let stats = hub.stats();
    assert_eq!((stats.ephemeral, stats.published.events, stats.delivered.events), (1, 0, 0));

    for fault in [Fault::Refused, Fault::Unknown] {
        faults.next_append(fault);
        hub.publish(T, Event::new()).await.unwrap_err();
    }
    faults.next_append(Fault::Hangs);
    hub.publish(T, Event::new()).await.unwrap_err();
    faults.release();
    faults.next_forget(Fault::Refused);
    hub.forget(T).await.unwrap_err();
    faults.next_read(Fault::Refused);
    hub.subscribe(T).start(Start::Earliest).opened().await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let errors = hub.stats().store_errors;
    assert_eq!((errors.append, errors.read), (3, 2));
}
