//! The conformance suite, and what it cannot ask of a log that several nodes share.

use crate::{
    A, B, all, append, builder, fresh, next_record, open, read, record, support::redis::Redis, try_append, until,
};
use std::{error::Error as _, sync::Arc, time::Duration};
use tidings::{
    Event,
    replay::{
        Notice, ReadFrom, Record, RedisStore, Refused, ReplayStore as _,
        conformance::{self, Keep},
    },
};
use tokio::task::JoinSet;

async fn kept(redis: &Redis, name: &str, keep: Keep) -> RedisStore {
    let store = builder(redis, name);
    let store = match keep.events_per_topic {
        Some(events) => store.events_per_topic(events),
        None => store,
    };
    store.open().await.unwrap()
}

async fn conforms(redis: &Redis) {
    conformance::check(async |keep| kept(redis, &fresh(), keep).await).await.unwrap();
    let two = async |keep| {
        let name = fresh();
        [kept(redis, &name, keep).await, kept(redis, &name, keep).await]
    };
    conformance::check_nodes(two).await.unwrap();
}

#[tokio::test]
async fn conforms_on_one_thread() {
    conforms(&Redis::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_on_several_threads() {
    conforms(&Redis::start().await).await;
}

/// Keys in another slot fail there.
#[tokio::test(flavor = "multi_thread")]
async fn conforms_in_a_cluster() {
    let redis = Redis::cluster_node().await;
    redis.take_slots(0, 16383).await;
    conforms(&redis).await;
}

/// A node that joins begins no run; with the command that the documentation names, for a log that was restored, the next call
/// does.
#[tokio::test]
async fn a_log_that_may_have_been_restored_conforms_as_one_that_is_opened_again() {
    let redis = Redis::start().await;
    let name = fresh();
    let again = conformance::check_reopen(async |keep| {
        let _: i64 = redis.command(&["HDEL", &format!("{{{name}}}:log"), "server"]).await;
        kept(&redis, &name, keep).await
    });
    again.await.unwrap();
}

#[tokio::test]
async fn a_node_that_joins_begins_no_run() {
    let redis = Redis::start().await;
    let name = fresh();
    let first = open(&redis, &name).await;
    let cursor = append(&first, A, "one").await;
    let second = open(&redis, &name).await;
    assert_eq!(second.head().await.unwrap(), cursor);
    let cursor = append(&second, A, "two").await;
    assert_eq!(first.head().await.unwrap(), cursor);
    assert_eq!(all(&first, A).await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_append_at_once_has_one_order_without_a_hole_on_all_of_them() {
    const NODES: usize = 3;
    const BATCHES: usize = 40;
    let redis = Redis::start().await;
    let name = fresh();
    let mut stores = Vec::new();
    for _ in 0..NODES {
        stores.push(Arc::new(open(&redis, &name).await));
    }
    let start = stores[0].head().await.unwrap();
    let mut feeds: Vec<_> = stores.iter().map(|store| store.feed(start).unwrap()).collect();
    let mut tasks = JoinSet::new();
    for (node, store) in stores.iter().cloned().enumerate() {
        tasks.spawn(async move {
            for batch in 0..BATCHES {
                let texts = (0..3).map(|n| format!("{node}.{batch}.{n}"));
                let records: Vec<_> = texts.map(|text| record(if batch % 2 == 0 { A } else { B }, text)).collect();
                let outcomes = store.append(records.into()).await.unwrap();
                let positions: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().position()).collect();
                assert_eq!(positions, [positions[0], positions[0] + 1, positions[0] + 2], "nothing comes between");
            }
        });
    }
    tasks.join_all().await;
    let mut seen = Vec::new();
    for feed in &mut feeds {
        let mut records = Vec::new();
        for position in 1..=(NODES * BATCHES * 3) as u64 {
            let (cursor, text) = next_record(feed).await;
            assert_eq!(cursor, start.run().at(position));
            records.push(text);
        }
        seen.push(records);
    }
    assert!(seen.iter().all(|records| *records == seen[0]));
}

#[tokio::test]
async fn an_idempotency_key_is_known_to_all_nodes() {
    let redis = Redis::start().await;
    let name = fresh();
    let (one, two) = (open(&redis, &name).await, open(&redis, &name).await);
    let keyed = || record(A, "one").with_idempotency_key("k");
    let first = try_append(&one, keyed()).await.unwrap();
    assert_eq!(try_append(&two, keyed()).await, Err(Refused::Duplicate(first)));
    let third = open(&redis, &name).await;
    assert_eq!(try_append(&third, keyed()).await, Err(Refused::Duplicate(first)));
    assert_eq!(all(&one, A).await, ["one"]);
}

#[tokio::test]
async fn an_idempotency_key_is_known_for_as_long_as_it_is_to_be() {
    let redis = Redis::start().await;
    let store = builder(&redis, &fresh()).keep_idempotency_keys(Duration::from_millis(50)).open().await.unwrap();
    let keyed = || record(A, "one").with_idempotency_key("k");
    try_append(&store, keyed()).await.unwrap();
    until("the key should be forgotten", async || try_append(&store, keyed()).await.is_ok()).await;
}

#[tokio::test]
async fn a_batch_of_any_length_is_one_batch() {
    let redis = Redis::start().await;
    let store = open(&redis, &fresh()).await;
    let start = store.head().await.unwrap();
    let mut feed = store.feed(start).unwrap();
    let records: Vec<_> = (0..9000).map(|n| Record::new(A, Event::new().data(n.to_string()))).collect();
    let outcomes = store.append(records.into()).await.unwrap();
    assert!((1..).zip(outcomes).all(|(position, outcome)| outcome == Ok(start.run().at(position))));
    for n in 0..9000 {
        assert_eq!(next_record(&mut feed).await.1, n.to_string());
    }
    let topics: Vec<tidings::Topic> = (0..2500).map(|n| format!("topic {n}").parse().unwrap()).collect();
    let records: Vec<_> = topics.iter().map(|topic| record(topic.clone(), "one each")).collect();
    assert!(store.append(records.into()).await.unwrap().iter().all(Result::is_ok));
    assert_eq!(all(&store, topics[2499].clone()).await, ["one each"]);
    // One that joins later finds both in the pointers, as far as they reach.
    let mut late = store.feed(start.run().at(8000)).unwrap();
    for n in 8000..9000 {
        assert_eq!(next_record(&mut late).await.1, n.to_string());
    }
}

/// A server takes no command of more than a million words, and closes the connection on which one comes.
#[tokio::test]
async fn a_batch_that_is_too_long_for_the_server_is_refused_at_once() {
    let redis = Redis::start().await;
    let store = open(&redis, &fresh()).await;
    let records: Vec<_> = (0..250_000).map(|_| record(A, "")).collect();
    let error = store.append(records.into()).await.unwrap_err();
    assert!(!error.is_unknown(), "{error}");
    assert_eq!(all(&store, A).await, [""; 0]);
    append(&store, A, "one").await;
}

/// Scripts count in doubles, which are whole up to 2^53.
#[tokio::test]
async fn positions_are_exact_as_far_as_they_go() {
    let redis = Redis::start().await;
    let name = fresh();
    let store = open(&redis, &name).await;
    append(&store, A, "first").await;
    let newest = (1_u64 << 53) - 20;
    let _: i64 = redis.command(&["HSET", &format!("{{{name}}}:log"), "newest", &newest.to_string()]).await;
    let start = store.head().await.unwrap();
    assert_eq!(start.position(), newest);
    let mut feed = store.feed(start).unwrap();
    for n in 1..=12_u64 {
        let event = Event::new().data(n.to_string());
        let record = match n % 3 {
            0 => Record::removal(A, "k", event),
            1 => Record::latest(A, n.to_string(), event),
            _ => Record::new(A, event),
        };
        let cursor = try_append(&store, record).await.unwrap();
        assert_eq!(cursor.position(), newest + n);
        assert_eq!(next_record(&mut feed).await, (cursor, n.to_string()));
        assert!(read(&store, A, ReadFrom::After(cursor)).await.entries.is_empty());
        let page = read(&store, A, ReadFrom::After(start.run().at(newest + n - 1))).await;
        assert_eq!((page.entries.len(), page.entries[0].cursor()), (1, cursor));
    }
    // Of the last events of a key, one is left.
    let page = read(&store, A, ReadFrom::After(start)).await;
    let positions: Vec<_> = page.entries.iter().map(|entry| entry.cursor().position() - newest).collect();
    assert_eq!(positions, [1, 2, 4, 5, 7, 8, 10, 11, 12]);
    let mut late = store.feed(start).unwrap();
    for position in positions {
        assert_eq!(next_record(&mut late).await.0, start.run().at(newest + position));
    }
}

#[tokio::test]
async fn a_record_that_can_never_be_kept_is_too_large() {
    let redis = Redis::start().await;
    let store = builder(&redis, &fresh()).bytes_per_topic(1000).open().await.unwrap();
    let large = record(A, "x".repeat(1000));
    let outcomes = store.append([record(A, "one"), large, record(A, "two")].into()).await.unwrap();
    assert!(matches!(&outcomes[..], [Ok(_), Err(Refused::TooLarge), Ok(_)]), "{outcomes:?}");
    assert_eq!(all(&store, A).await, ["one", "two"]);
}

#[tokio::test]
async fn a_node_finds_the_one_of_a_cluster_that_has_the_log() {
    let (first, second) = (Redis::cluster_node().await, Redis::cluster_node().await);
    let (host, port) = (second.address.ip().to_string(), second.address.port().to_string());
    let _: String = first.command(&["CLUSTER", "MEET", &host, &port]).await;
    first.take_slots(0, 8191).await;
    second.take_slots(8192, 16383).await;
    for redis in [&first, &second] {
        until("the cluster should be whole", async || {
            let info: String = redis.command(&["CLUSTER", "INFO"]).await;
            info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384")
        })
        .await;
    }
    for _ in 0..8 {
        let name = fresh();
        let (one, two) = (open(&first, &name).await, open(&second, &name).await);
        let mut feed = two.feed(two.head().await.unwrap()).unwrap();
        let cursor = append(&one, A, "one").await;
        assert_eq!(next_record(&mut feed).await, (cursor, "one".to_owned()));
        assert_eq!(read(&two, A, ReadFrom::Earliest).await.entries.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_the_rights_that_are_named_is_enough() {
    const PAGE: &str = include_str!("../../src/replay/redis/redis.md");
    let redis = Redis::start().await;
    let line = PAGE.lines().find(|line| line.starts_with("ACL SETUSER hub ")).unwrap();
    // For all logs of this test, which is what a star says.
    let command = line.replace("news", "mine*");
    let _: String = redis.command(&command.split(' ').collect::<Vec<_>>()).await;
    let user = |name: &str| RedisStore::builder(format!("redis://hub:secret@{}/", redis.address)).name(name);
    assert!(user("another's").deadline(Duration::from_millis(100)).open().await.is_err());
    let _: String = redis.command(&["ACL", "LOG", "RESET"]).await;
    let mine = || fresh().replace("log ", "mine-");
    let verdict = conformance::check(async |keep| {
        let store = match keep.events_per_topic {
            Some(events) => user(&mine()).events_per_topic(events),
            None => user(&mine()),
        };
        store.open().await.unwrap()
    });
    verdict.await.unwrap();

    let store = user(&mine()).max_age(Duration::from_millis(50)).wait_for_replicas(1, Duration::from_millis(1));
    let store = store.open().await.unwrap();
    let mut feed = store.feed(store.head().await.unwrap()).unwrap();
    let records = [record(A, "one"), Record::latest(A, "k", Event::new().data("two"))];
    let error = store.append(records.into()).await.unwrap_err();
    assert!(error.source().unwrap().to_string().contains("only 0 of 1"), "{error:?}");
    assert_eq!(next_record(&mut feed).await.1, "one");
    store.notify(vec![Notice::Control("notice".into())]).await.unwrap();
    until("events should go", async || all(&store, A).await == ["two"]).await;
    // Some of what is denied is not an error for the store.
    let denied: Vec<redis::Value> = redis.command(&["ACL", "LOG"]).await;
    assert!(denied.is_empty(), "{denied:?}");
}

#[tokio::test]
async fn what_cannot_name_a_log_or_a_server_is_an_error() {
    let redis = Redis::start().await;
    for name in ["", "a{b", "a}b", "a\nb"] {
        assert!(RedisStore::open(redis.url(), name).await.is_err(), "{name:?}");
    }
    for url in ["", "nonsense", "http://127.0.0.1/"] {
        assert!(RedisStore::open(url, "name").await.is_err(), "{url:?}");
    }
}
