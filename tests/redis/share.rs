//! Reads for many clients at once are few reads.

use crate::{A, append, fresh, open, record, support::redis::Redis, texts};
use std::sync::Arc;
use tidings::{
    Event, Topic,
    replay::{Read, ReadFrom, Record, RedisStore, ReplayStore as _},
};
use tokio::task::JoinSet;

/// How many scripts the server has run.
async fn calls(redis: &Redis) -> u64 {
    let info: String = redis.command(&["INFO", "commandstats"]).await;
    let of = |command: &str| -> u64 {
        let line = info.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(['=', ',']).nth(1).unwrap().parse().unwrap())
    };
    of("eval") + of("evalsha")
}

async fn filled(redis: &Redis, events: u64) -> Arc<RedisStore> {
    let store = open(redis, &fresh()).await;
    let records: Vec<_> = (1..=events).map(|n| record(A, n)).collect();
    store.append(records.into()).await.unwrap();
    Arc::new(store)
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_reads_are_one() {
    const CLIENTS: usize = 2000;
    let redis = Redis::start().await;
    let store = filled(&redis, 100).await;
    let before = calls(&redis).await;
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let store = Arc::clone(&store);
        tasks.spawn(async move { store.read(Read::new(A, ReadFrom::Earliest)).await.unwrap().entries });
    }
    let pages = tasks.join_all().await;
    assert!(pages.iter().all(|page| page.len() == 100));
    let made = calls(&redis).await - before;
    assert!(made < CLIENTS as u64 / 10, "{made} calls for {CLIENTS} clients");
    let last: std::collections::BTreeSet<_> = pages.iter().map(|page| Arc::as_ptr(&page[0])).collect();
    assert!((last.len() as u64) <= made, "entries are shared");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_who_come_back_to_different_places_at_once_are_a_few_sweeps() {
    const CLIENTS: u64 = 2000;
    const EVENTS: u64 = 3000;
    let redis = Redis::start().await;
    let store = filled(&redis, EVENTS).await;
    let run = store.head().await.unwrap().run();
    let before = calls(&redis).await;
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut at = run.at(client * EVENTS / CLIENTS);
            let mut seen = at.position();
            let mut pages = 0;
            loop {
                let page = store.read(Read::new(A, ReadFrom::After(at))).await.unwrap();
                assert!(!page.foreign && page.floor == 0);
                assert!(page.entries.len() == 256 || page.through.position() == EVENTS, "a page is full or the last");
                for text in texts(&page) {
                    seen += 1;
                    assert_eq!(text, seen.to_string());
                }
                pages += 1;
                at = page.through;
                if at.position() == EVENTS {
                    assert_eq!(seen, EVENTS);
                    return pages;
                }
            }
        });
    }
    let pages: u64 = tasks.join_all().await.into_iter().sum();
    let made = calls(&redis).await - before;
    assert!(made * 8 < pages, "{made} calls for {pages} pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_together_get_what_is_theirs() {
    let redis = Redis::start().await;
    let store = filled(&redis, 300).await;
    let run = store.head().await.unwrap().run();
    let other: Topic = "other".parse().unwrap();
    append(&store, other.clone(), "other").await;
    let records = [Record::latest(A, "k", Event::new().data("state")), Record::finish(A, None)];
    store.append(records.into()).await.unwrap();
    let newest = store.head().await.unwrap();
    let mut tasks = JoinSet::new();
    for (client, few) in (0..500).zip([0, 1, 2, 3].into_iter().cycle()) {
        let (store, other) = (Arc::clone(&store), other.clone());
        tasks.spawn(async move {
            match client % 5 {
                0 => {
                    let page = store.read(Read::new(A, ReadFrom::After(run.at(1000 + client)))).await.unwrap();
                    assert!(page.foreign && page.through == newest);
                }
                1 => {
                    let mut read = Read::new(A, ReadFrom::After(run.at(client % 300)));
                    read.max_events = few + 1;
                    let page = store.read(read.clone()).await.unwrap();
                    let first = page.entries[0].cursor().position();
                    assert_eq!(first, client % 300 + 1);
                    assert_eq!(page.entries.len(), read.max_events);
                    assert!(page.finished.is_empty() || page.through == newest);
                }
                2 => {
                    let page = store.read(Read::new(A, ReadFrom::Last(few))).await.unwrap();
                    assert_eq!((page.entries.len(), page.through), (few, newest));
                    assert_eq!(page.finished, [A]);
                }
                3 => {
                    let page = store.read(Read::new(other, ReadFrom::After(run.at(client % 300)))).await.unwrap();
                    assert_eq!((texts(&page), page.finished.len()), (vec!["other".to_owned()], 0));
                }
                // Who goes away while it waits is in nobody's way.
                _ => drop(
                    tokio::time::timeout(std::time::Duration::ZERO, store.read(Read::new(A, ReadFrom::Earliest))).await,
                ),
            }
        });
    }
    tasks.join_all().await;
}
