//! Several hubs over one log.

use crate::support::{
    Client, Http,
    example::{self, Example},
};
use crate::{
    DEADLINE, TOPIC, next, open,
    postgres_store::{PostgresStore, Retention},
    proxy::Proxy,
    server::Postgres,
};
use futures_util::StreamExt as _;
use http::StatusCode;
use http_body_util::BodyExt as _;
use tidings::{
    Event, Hub, Message, Topic,
    replay::{Cursor, Feed, FeedItem, Notice, Record, ReplayStore as _},
    test_util::{EventReader, next_message},
};
use tokio::{task::block_in_place, time::timeout};

fn text(number: u32) -> Event {
    Event::new().data(number.to_string())
}

async fn hub(server: &Postgres) -> Hub {
    Hub::builder().open(open(server.config()).await).await.unwrap()
}

async fn item(feed: &mut Feed) -> FeedItem {
    timeout(DEADLINE, feed.next()).await.expect("the feed should say something").expect("it should not end")
}

/// The next record, whether or not it was missed.
async fn record(feed: &mut Feed) -> (Cursor, Record) {
    loop {
        match item(feed).await {
            FeedItem::Record(cursor, record) => return (cursor, record),
            FeedItem::Caught { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Waits until it listens, which it does from when it is first asked.
async fn caught(feed: &mut Feed) -> u64 {
    match item(feed).await {
        FeedItem::Caught { missed } => missed,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hubs_show_the_same_events_in_the_same_order() {
    const EVENTS: u32 = 200;
    let server = Postgres::start();
    let hubs = [hub(&server).await, hub(&server).await];
    let readers: Vec<_> = hubs.iter().map(|hub| hub.subscribe(TOPIC)).collect();
    let publishers: Vec<_> = hubs
        .iter()
        .zip([0, EVENTS])
        .map(|(hub, first)| {
            let hub = hub.clone();
            tokio::spawn(async move {
                for number in first..first + EVENTS {
                    hub.publish(TOPIC, text(number)).await.unwrap();
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    for mut reader in readers {
        let mut events = Vec::new();
        for _ in 0..EVENTS * 2 {
            events.push(next(&mut reader).await.expect("there is no gap"));
        }
        seen.push(events);
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert_eq!(seen[0], seen[1]);
    for first in [0, EVENTS] {
        let of_one: Vec<_> = seen[0].iter().copied().filter(|n| (first..first + EVENTS).contains(n)).collect();
        assert_eq!(of_one, (first..first + EVENTS).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_feed_tells_records_ends_and_what_is_forgotten_in_their_order() {
    let server = Postgres::start();
    let store = open(server.config()).await;
    let other = Topic::from_static("other");
    let mut feed = store.feed(store.head().await.unwrap()).unwrap();
    store.append([Record::new(TOPIC, text(1)), Record::new(&other, text(2))].into()).await.unwrap();
    store.forget(TOPIC).await.unwrap();
    store.forget(Topic::from_static("never heard of")).await.unwrap();
    store.append([Record::new(TOPIC, text(3)), Record::finish(&other, None)].into()).await.unwrap();
    let told = async {
        let mut told = Vec::new();
        while told.len() < 5 {
            match item(&mut feed).await {
                FeedItem::Record(cursor, record) => told.push((cursor.position(), record.topic().clone(), false)),
                FeedItem::Forgotten(topic, cursor) => told.push((cursor.position(), topic, true)),
                FeedItem::Caught { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        told
    };
    // Also what was gone before the feed looked.
    let expected =
        [(1, TOPIC, false), (2, other.clone(), false), (3, TOPIC, true), (4, TOPIC, false), (5, other, false)];
    assert_eq!(told.await, expected);
}

#[tokio::test]
async fn a_feed_skips_what_is_no_longer_held() {
    let server = Postgres::start();
    let retention = Retention { events_per_topic: Some(2), ..Retention::default() };
    let store = PostgresStore::open(server.config(), "tidings", retention).await.unwrap();
    let start = store.head().await.unwrap();
    for number in 0..4 {
        store.append([Record::new(TOPIC, text(number))].into()).await.unwrap();
    }
    let newest = store.head().await.unwrap();
    let mut feed = store.feed(start).unwrap();
    assert!(matches!(item(&mut feed).await, FeedItem::Skip(place) if place == newest));
    assert_eq!(caught(&mut feed).await, 0);

    // So it does where too much was forgotten.
    let other = Topic::from_static("other");
    store.append([Record::new(&other, text(0))].into()).await.unwrap();
    store.append(vec![Record::latest(TOPIC, "k", text(0)); 1001].into()).await.unwrap();
    store.forget(other).await.unwrap();
    let newest = store.head().await.unwrap();
    let mut late = store.feed(start.run().at(4)).unwrap();
    assert!(matches!(item(&mut late).await, FeedItem::Skip(place) if place == newest));

    let mut feed = store.feed(newest).unwrap();
    store.append([Record::new(TOPIC, text(4))].into()).await.unwrap();
    assert_eq!(record(&mut feed).await.1.data().unwrap(), "4");
}

#[tokio::test]
async fn notices_reach_every_node_in_their_order_however_large() {
    let server = Postgres::start();
    let stores = [open(server.config()).await, open(server.config()).await];
    let mut feeds = Vec::new();
    for store in &stores {
        let mut feed = store.feed(store.head().await.unwrap()).unwrap();
        assert_eq!(caught(&mut feed).await, 0);
        feeds.push(feed);
    }
    let large = "x".repeat(100_000);
    let sent = Record::new(TOPIC, Event::new().data(&*large)).with_label("a\0", "b").with_key("k\0");
    let notices = vec![Notice::Ephemeral(sent), Notice::Control(vec![0, 1, 255].into())];
    stores[0].notify(notices).await.unwrap();
    stores[1].append([Record::new(TOPIC, text(1))].into()).await.unwrap();
    stores[1].notify(vec![Notice::Control("last".into())]).await.unwrap();
    for feed in &mut feeds {
        match item(feed).await {
            FeedItem::Notice(Notice::Ephemeral(record)) => {
                assert_eq!(record.data().unwrap(), large);
                assert_eq!((record.key(), record.label("a\0")), (Some("k\0"), Some("b")));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(item(feed).await, FeedItem::Notice(Notice::Control(bytes)) if bytes[..] == [0, 1, 255]));
        assert_eq!(record(feed).await.1.data().unwrap(), "1");
        assert!(matches!(item(feed).await, FeedItem::Notice(Notice::Control(bytes)) if bytes == "last"));
    }
    let held = stores[0].read(tidings::replay::Read::new(TOPIC, tidings::replay::ReadFrom::Earliest)).await.unwrap();
    assert_eq!(held.entries.len(), 1);
}

#[tokio::test]
async fn ephemeral_events_reach_who_is_with_another_node() {
    let server = Postgres::start();
    let hubs = [hub(&server).await, hub(&server).await];
    let mut readers: Vec<_> = hubs.iter().map(|hub| hub.subscribe(TOPIC)).collect();
    // What is stored shows that both are there.
    hubs[1].publish(TOPIC, text(0)).await.unwrap();
    for reader in &mut readers {
        assert_eq!(next(reader).await, Some(0));
    }
    hubs[0].publish_ephemeral(TOPIC, text(1)).unwrap();
    for reader in &mut readers {
        match timeout(DEADLINE, next_message(reader)).await.unwrap() {
            Some(Message::Event(entry)) => assert!(entry.is_ephemeral() && entry.record().data().unwrap() == "1"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_node_that_was_cut_off_catches_up() {
    let server = Postgres::start();
    let proxy = Proxy::to(server.socket()).await;
    let (near, far) = (open(server.config()).await, open(proxy.config()).await);
    let mut feed = far.feed(far.head().await.unwrap()).unwrap();
    assert_eq!(caught(&mut feed).await, 0);
    near.append([Record::new(TOPIC, text(0))].into()).await.unwrap();
    assert_eq!(record(&mut feed).await.1.data().unwrap(), "0");
    proxy.close();
    assert!(matches!(item(&mut feed).await, FeedItem::Lost));
    for number in 1..=3 {
        near.append([Record::new(TOPIC, text(number))].into()).await.unwrap();
    }
    proxy.open();
    for number in 1..=3 {
        assert_eq!(record(&mut feed).await.1.data().unwrap(), number.to_string());
    }
    assert_eq!(caught(&mut feed).await, 3);
}

#[tokio::test]
async fn a_node_that_was_cut_off_for_long_catches_up_page_by_page() {
    let server = Postgres::start();
    let store = open(server.config()).await;
    let start = store.head().await.unwrap();
    let large = Event::new().data("x".repeat(100_000));
    for number in 0..3 {
        let batch: Vec<_> = (0..300).map(|n| Record::new(TOPIC, text(number * 300 + n))).collect();
        store.append(batch.into()).await.unwrap();
        store.append(vec![Record::new(TOPIC, large.clone()); 25].into()).await.unwrap();
    }
    let mut feed = store.feed(start).unwrap();
    let newest = store.head().await.unwrap();
    for expected in 1..=newest.position() {
        assert_eq!(record(&mut feed).await.0.position(), expected);
    }
}

#[tokio::test]
async fn what_nobody_was_notified_of_is_found() {
    let server = Postgres::start();
    let store = open(server.config()).await;
    let mut feed = store.feed(store.head().await.unwrap()).unwrap();
    assert_eq!(caught(&mut feed).await, 0);
    store.append([Record::new(TOPIC, text(0))].into()).await.unwrap();
    assert_eq!(record(&mut feed).await.1.data().unwrap(), "0");
    // As if it had come from a server whose notification was lost.
    let silently = "INSERT INTO tidings.records SELECT position + 1, topic, kind, body, micros, key, labels
                    FROM tidings.records; UPDATE tidings.log SET newest = 2";
    server.connect().await.batch_execute(silently).await.unwrap();
    assert_eq!(record(&mut feed).await.0.position(), 2);
    assert_eq!(caught(&mut feed).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_serve_one_log_across_a_crash_of_the_server() {
    let server = Postgres::start();
    let url = server.url();
    let program = block_in_place(|| example::build("postgres_store"));
    let mut processes = Vec::new();
    for _ in 0..2 {
        processes.push(Example::start(&program, &["--url", &url]).await);
    }
    let follow = async |process: &Example, last: &str| {
        let headers = [("last-event-id", last)];
        let headers = if last.is_empty() { &[][..] } else { &headers };
        let (client, response) = Client::get(Http::One, process.address, "/events", headers).await;
        assert!(!response.headers().contains_key("tidings-gap"), "{last}");
        (client, EventReader::new(response.into_body()))
    };
    let publish = async |process: &Example, text: &str| {
        let published = async {
            loop {
                let (_client, response) = Client::post(process.address, "/publish", text).await;
                // While the server is not there, nothing is stored.
                if response.status() == StatusCode::OK {
                    let id = response.into_body().collect().await.unwrap().to_bytes();
                    return String::from_utf8(id.to_vec()).unwrap().trim().to_owned();
                }
            }
        };
        timeout(DEADLINE, published).await.expect("it should be published")
    };
    let (_client, mut reader) = follow(&processes[1], "").await;
    let first = publish(&processes[0], "first").await;
    let event = timeout(DEADLINE, reader.next()).await.unwrap().unwrap();
    assert_eq!((event.data.as_str(), reader.last_event_id()), ("first", &*first));

    block_in_place(|| server.crash());
    publish(&processes[1], "second").await;
    // Its id is of a run before the crash, and from the other process.
    let (_client, mut reader) = follow(&processes[0], &first).await;
    let event = timeout(DEADLINE, reader.next()).await.unwrap().unwrap();
    assert_eq!(event.data, "second");
}
