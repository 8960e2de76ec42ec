//! What a log keeps, and for how long: every bound, and that nothing is left of what is gone.

use crate::{A, B, all, append, builder, fresh, read, record, support::redis::Redis, try_append, until};
use std::time::Duration;
use tidings::{
    Event, Topic,
    replay::{ReadFrom, Record, Refused, ReplayStore as _},
};

const SOON: Duration = Duration::from_millis(300);

fn latest(key: &str, text: &str) -> Record {
    Record::latest(A, key, Event::new().data(text))
}

#[tokio::test]
async fn so_many_events_of_a_topic() {
    let redis = Redis::start().await;
    let store = builder(&redis, &fresh()).events_per_topic(3).open().await.unwrap();
    append(&store, B, "quiet").await;
    for n in 1..=5 {
        append(&store, A, n).await;
    }
    assert_eq!(all(&store, A).await, ["3", "4", "5"]);
    assert_eq!(read(&store, A, ReadFrom::Earliest).await.floor, 3);
    assert_eq!(read(&store, B, ReadFrom::Earliest).await.floor, 0);
}

#[tokio::test]
async fn so_many_bytes_of_a_topic() {
    let redis = Redis::start().await;
    let store = builder(&redis, &fresh()).bytes_per_topic(4000).open().await.unwrap();
    append(&store, B, "quiet").await;
    for n in 1..=5 {
        append(&store, A, format!("{n} {}", "x".repeat(1000))).await;
    }
    assert_eq!(all(&store, A).await.len(), 3);
    assert_eq!(read(&store, A, ReadFrom::Earliest).await.floor, 3);
    assert_eq!(all(&store, B).await, ["quiet"]);
}

#[tokio::test]
async fn so_many_bytes_in_all_and_the_oldest_go_first() {
    let redis = Redis::start().await;
    let name = fresh();
    let store = builder(&redis, &name).total_bytes(20_000).open().await.unwrap();
    try_append(&store, latest("k", "state")).await.unwrap();
    let topics: Vec<Topic> = (0..40).map(|n| format!("topic {n}").parse().unwrap()).collect();
    for topic in &topics {
        append(&store, topic.clone(), "x".repeat(1000)).await;
    }
    let mut held = Vec::new();
    for topic in &topics {
        let page = read(&store, topic.clone(), ReadFrom::Earliest).await;
        assert_eq!(page.entries.is_empty(), page.floor > 0);
        held.push(!page.entries.is_empty());
    }
    assert!(held.is_sorted(), "{held:?}");
    let count = held.iter().filter(|held| **held).count();
    assert!((15..20).contains(&count), "{count}");
    let bytes: usize = redis.command(&["HGET", &format!("{{{name}}}:log"), "bytes"]).await;
    assert!((15_000..=20_000).contains(&bytes), "{bytes}");
    assert_eq!(all(&store, A).await, ["state"], "state outlasts events");
}

#[tokio::test]
async fn events_for_so_long_and_state_until_it_is_replaced() {
    let redis = Redis::start().await;
    let store = builder(&redis, &fresh()).max_age(SOON).open().await.unwrap();
    let batch = [record(A, 1), latest("k", "state"), record(A, 3), Record::removal(A, "l", Event::new().data("gone"))];
    store.append(batch.into()).await.unwrap();
    assert_eq!(all(&store, A).await.len(), 4);
    until("events should go", async || all(&store, A).await == ["state"]).await;
    assert_eq!(read(&store, A, ReadFrom::Earliest).await.floor, 4);
    // Once the topic has ended, it is kept no longer than the rest.
    store.append([Record::finish(A, None)].into()).await.unwrap();
    until("what was state should go", async || read(&store, A, ReadFrom::Earliest).await.entries.is_empty()).await;
    assert_eq!(try_append(&store, record(A, "late")).await, Err(Refused::Finished));
}

#[tokio::test]
async fn state_for_so_long_if_that_is_asked() {
    let redis = Redis::start().await;
    let store = builder(&redis, &fresh()).keep_latest(SOON).open().await.unwrap();
    store.append([record(A, 1), latest("k", "state")].into()).await.unwrap();
    until("state should go", async || all(&store, A).await == ["1"]).await;
}

#[tokio::test]
async fn an_end_for_so_long_and_then_the_topic_is_as_new() {
    let redis = Redis::start().await;
    let name = fresh();
    let store = builder(&redis, &name).max_age(SOON).keep_finished(2 * SOON).open().await.unwrap();
    let mut feed = store.feed(store.head().await.unwrap()).unwrap();
    store.append([record(A, 1), Record::finish(A, None)].into()).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(crate::next(&mut feed).await, tidings::replay::FeedItem::Record(..)));
    }
    // All nodes are told.
    let tidings::replay::FeedItem::Forgotten(topic, place) = crate::next(&mut feed).await else { panic!("a topic") };
    assert_eq!((topic, place.position()), (A, 3));
    let page = read(&store, A, ReadFrom::Earliest).await;
    assert!(page.entries.is_empty() && page.finished.is_empty() && page.floor >= 2);
    append(&store, A, "anew").await;
}

#[tokio::test]
async fn nothing_is_left_of_a_topic_that_is_gone() {
    let redis = Redis::start().await;
    let name = fresh();
    let store =
        builder(&redis, &name).max_age(SOON).forget_idle(3 * SOON).keep_idempotency_keys(SOON).open().await.unwrap();
    for n in 0..100 {
        let topic: Topic = format!("topic {n}").parse().unwrap();
        let keyed = record(topic.clone(), n).with_idempotency_key("k");
        let state = Record::latest(topic.clone(), "k", Event::new());
        let removal = Record::removal(topic, "l", Event::new());
        // Some with state, which only goes with its topic.
        store.append(if n % 2 == 0 { vec![keyed] } else { vec![keyed, state, removal] }.into()).await.unwrap();
    }
    until("all keys of topics should go", async || {
        let mut keys: Vec<String> = redis.command(&["KEYS", &format!("{{{name}}}:*")]).await;
        keys.retain(|key| !key.contains("}:n:"));
        let fields: Vec<String> = redis.command(&["HKEYS", &format!("{{{name}}}:log")]).await;
        keys.len() <= 3 && !fields.iter().any(|field| field.starts_with("t:"))
    })
    .await;
    let bytes: usize = redis.command(&["HGET", &format!("{{{name}}}:log"), "bytes"]).await;
    assert_eq!(bytes, 0);
    // What is remembered of senders and pointers has its bounds as well.
    let pointers: usize = redis.command(&["XLEN", &format!("{{{name}}}:recent")]).await;
    assert!(pointers <= 200);
}

#[tokio::test]
async fn the_pointers_of_the_feed_are_bounded() {
    let redis = Redis::start().await;
    let name = fresh();
    let store = builder(&redis, &name).feed_reach(100).events_per_topic(10).open().await.unwrap();
    for n in 0..1000 {
        append(&store, A, n).await;
    }
    // Redis trims whole blocks of 100.
    let pointers: usize = redis.command(&["XLEN", &format!("{{{name}}}:recent")]).await;
    assert!((100..=300).contains(&pointers), "{pointers}");
    let lanes: Vec<String> = redis.command(&["KEYS", &format!("{{{name}}}:n:*")]).await;
    assert_eq!(lanes.len(), 1, "one sender, one key");
    let ttl: i64 = redis.command(&["TTL", &lanes[0]]).await;
    assert!(ttl > 0);
}
