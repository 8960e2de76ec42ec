//! Connections that are cut at any byte, and a server that is killed at any moment: what was acknowledged is there, once.

use crate::{
    A, B, DEADLINE, fresh, open, record,
    support::{network::Network, redis::Redis},
    text,
};
use futures_util::StreamExt as _;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tidings::replay::{Cursor, FeedItem, Read, ReadFrom, RedisStore, ReplayStore};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const NODES: usize = 3;
const EVENTS: usize = 300;

struct Node {
    store: Arc<RedisStore>,
    network: Network,
}

async fn nodes(redis: &Redis, name: &str) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        let network = Network::to(redis.address).await;
        let builder = RedisStore::builder(format!("redis://{}/", network.address)).name(name).deadline(DEADLINE);
        let store = builder.check_interval(Duration::from_millis(100)).open().await.unwrap();
        nodes.push(Node { store: Arc::new(store), network });
    }
    nodes
}

/// Each node appends one event after the other, some of them with more in the batch. What each event was given as its place.
fn publish(nodes: &[Node]) -> JoinSet<Vec<(u64, String)>> {
    let mut tasks = JoinSet::new();
    for (n, node) in nodes.iter().enumerate() {
        let store = Arc::clone(&node.store);
        tasks.spawn(async move {
            let mut given = Vec::new();
            for event in 0..EVENTS {
                let texts = (0..=event % 3).map(|part| format!("{n}.{event}.{part}"));
                let texts: Vec<_> = texts.collect();
                let records: Vec<_> =
                    texts.iter().map(|text| record(if event % 2 == 0 { A } else { B }, text)).collect();
                let outcomes = store.append(records.into()).await.unwrap();
                let places = outcomes.into_iter().map(|outcome| outcome.expect("nothing is a repeat").position());
                given.extend(places.zip(texts));
            }
            given
        });
    }
    tasks
}

/// Everything that the log has.
async fn stored(store: &RedisStore) -> Vec<(u64, String)> {
    let topics = tidings::Topics::new([A, B]).unwrap();
    let mut all = Vec::new();
    let mut from = ReadFrom::Earliest;
    loop {
        let page = store.read(Read::new(&topics, from)).await.unwrap();
        assert_eq!((page.foreign, page.floor), (false, 0));
        if page.entries.is_empty() {
            return all;
        }
        all.extend(page.entries.iter().map(|entry| (entry.cursor().position(), text(entry.record()))));
        from = ReadFrom::After(page.through);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_at_any_byte_lose_nothing_and_repeat_nothing() {
    let redis = Redis::start().await;
    let name = fresh();
    let nodes = nodes(&redis, &name).await;
    let start = nodes[0].store.head().await.unwrap();
    let total = EVENTS * 2 * NODES;
    let mut followers = JoinSet::new();
    for node in &nodes {
        followers.spawn(follow(Arc::clone(&node.store), start, total));
    }
    let mut publishers = publish(&nodes);
    let mut given = Vec::new();
    while !publishers.is_empty() {
        let node = &nodes[fastrand::usize(..NODES)];
        node.network.cut_after(fastrand::usize(..3000));
        if let Ok(Some(done)) = timeout(Duration::from_millis(20), publishers.join_next()).await {
            given.extend(done.unwrap());
        }
    }
    // They are not cut any more.
    for node in &nodes {
        node.network.cut();
    }
    given.sort();
    assert_eq!(given.len(), total);
    assert_eq!(stored(&open(&redis, &name).await).await, given);
    for seen in timeout(DEADLINE, followers.join_all()).await.expect("every feed should come to the end") {
        assert!(seen == given, "every feed gives the log, once and in order");
    }
}

/// What a feed gives up to the last event, if it skips nothing.
async fn follow(store: Arc<RedisStore>, start: Cursor, total: usize) -> Vec<(u64, String)> {
    let mut feed = store.feed(start).unwrap();
    let mut seen = Vec::new();
    while seen.len() < total {
        match feed.next().await.unwrap() {
            FeedItem::Record(cursor, record) => seen.push((cursor.position(), text(&record))),
            FeedItem::Lost | FeedItem::Caught { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_again_and_again_keeps_what_it_has_acknowledged() {
    let mut redis = Redis::durable().await;
    let name = fresh();
    let nodes = nodes(&redis, &name).await;
    let mut publishers = publish(&nodes);
    let mut given = Vec::new();
    for _ in 0..5 {
        sleep(Duration::from_millis(fastrand::u64(20..200))).await;
        redis.kill();
        redis.start_again().await;
    }
    while let Some(done) = publishers.join_next().await {
        given.extend(done.unwrap());
    }
    given.sort();
    assert_eq!(given.len(), EVENTS * 2 * NODES);
    assert_eq!(given.iter().map(|(position, _)| *position).collect::<BTreeSet<_>>().len(), given.len());
    assert_eq!(stored(&open(&redis, &name).await).await, given);
}
