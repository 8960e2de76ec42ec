//! The store on a real Redis: the contract, several nodes on one log, and servers that are away, restarted or restored.
//!
//! Needs Debian's `redis-server`, and is run by name: `cargo test --test redis`.

#[path = "redis/away.rs"]
mod away;
#[path = "redis/chaos.rs"]
mod chaos;
#[path = "redis/contract.rs"]
mod contract;
#[path = "redis/errors.rs"]
mod errors;
#[path = "redis/feed.rs"]
mod feed;
#[path = "redis/hubs.rs"]
mod hubs;
#[path = "redis/keep.rs"]
mod keep;
#[path = "redis/rewound.rs"]
mod rewound;
#[path = "redis/share.rs"]
mod share;
mod support;

use futures_util::StreamExt as _;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use support::redis::Redis;
use tidings::{
    Event, Topic,
    replay::{
        Cursor, Feed, FeedItem, Page, Read, ReadFrom, Record, RedisStore, RedisStoreBuilder, Refused, ReplayStore as _,
    },
};
use tokio::time::{sleep, timeout};

const A: Topic = Topic::from_static("a");
const B: Topic = Topic::from_static("b");

/// Far more than anything here takes on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(60);

/// The name of a log of its own.
fn fresh() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("log {}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn builder(redis: &Redis, name: &str) -> RedisStoreBuilder {
    RedisStore::builder(redis.url()).name(name)
}

async fn open(redis: &Redis, name: &str) -> RedisStore {
    builder(redis, name).open().await.unwrap()
}

fn record(topic: Topic, text: impl std::fmt::Display) -> Record {
    Record::new(topic, Event::new().data(text.to_string()))
}

async fn try_append(store: &RedisStore, record: Record) -> Result<Cursor, Refused> {
    store.append([record].into()).await.unwrap().remove(0)
}

async fn append(store: &RedisStore, topic: Topic, text: impl std::fmt::Display) -> Cursor {
    try_append(store, record(topic, text)).await.unwrap()
}

async fn read(store: &RedisStore, topic: Topic, from: ReadFrom) -> Page {
    store.read(Read::new(topic, from)).await.unwrap()
}

fn text(record: &Record) -> String {
    record.data().unwrap().into_owned()
}

fn texts(page: &Page) -> Vec<String> {
    page.entries.iter().map(|entry| text(entry.record())).collect()
}

async fn all(store: &RedisStore, topic: Topic) -> Vec<String> {
    texts(&read(store, topic, ReadFrom::Earliest).await)
}

/// The next thing that a feed says of the log.
async fn next(feed: &mut Feed) -> FeedItem {
    loop {
        match timeout(DEADLINE, feed.next()).await.expect("something should come").expect("a feed does not end") {
            FeedItem::Lost | FeedItem::Caught { .. } => {}
            item => return item,
        }
    }
}

/// The next record of a feed, which is to come before anything else.
async fn next_record(feed: &mut Feed) -> (Cursor, String) {
    match next(feed).await {
        FeedItem::Record(cursor, record) => (cursor, text(&record)),
        other => panic!("{other:?}"),
    }
}

/// The place that a feed skips to, whatever comes before.
async fn next_skip(feed: &mut Feed) -> Cursor {
    loop {
        if let FeedItem::Skip(place) = next(feed).await {
            return place;
        }
    }
}

/// Waits until something has become so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}
