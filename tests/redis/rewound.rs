//! A log that was lost, or is an older copy of itself: it is told apart, and what is gone is a gap, never silence.

use crate::{
    A, B, all, append, builder, fresh, next_record, next_skip, open, read, record, support::redis::Redis, until,
};
use std::{fs, time::Duration};
use tidings::{
    Event,
    replay::{Cursor, ReadFrom, Record, RedisStore, ReplayStore as _},
};

async fn after(store: &RedisStore, cursor: Cursor) -> Option<Vec<String>> {
    let page = read(store, A, ReadFrom::After(cursor)).await;
    (!page.foreign).then(|| crate::texts(&page))
}

async fn answers(store: &RedisStore) {
    until("the store should answer again", async || store.head().await.is_ok()).await;
}

#[tokio::test]
async fn a_restart_that_loses_nothing_costs_nothing() {
    let mut redis = Redis::durable().await;
    let name = fresh();
    let (one, two) = (open(&redis, &name).await, open(&redis, &name).await);
    let mut feed = two.feed(two.head().await.unwrap()).unwrap();
    let first = append(&one, A, 1).await;
    let second = append(&one, A, 2).await;
    assert_eq!(next_record(&mut feed).await.0, first);
    redis.kill();
    redis.start_again().await;
    answers(&one).await;
    let third = append(&one, A, 3).await;
    assert_ne!(third.run(), second.run());
    assert_eq!((third.run().epoch, third.position()), (second.run().epoch, 3));
    assert_eq!(after(&two, first).await.unwrap(), ["2", "3"]);
    assert_eq!(after(&two, second).await.unwrap(), ["3"]);
    assert_eq!(after(&two, third).await.unwrap(), [""; 0]);
    // One of the run before, past where it ended.
    assert_eq!(after(&two, second.run().at(3)).await, None);
    assert_eq!(next_skip(&mut feed).await.run(), third.run());
    let fourth = append(&one, A, 4).await;
    let mut at = next_record(&mut feed).await;
    if at.0 == third {
        at = next_record(&mut feed).await;
    }
    assert_eq!(at, (fourth, "4".to_owned()));
    assert_eq!(one.head().await.unwrap(), fourth);
    assert_eq!(two.head().await.unwrap(), fourth);
}

#[tokio::test]
async fn a_flush_under_live_nodes_is_another_log() {
    let redis = Redis::start().await;
    let name = fresh();
    let (one, two) = (open(&redis, &name).await, open(&redis, &name).await);
    let mut feed = two.feed(two.head().await.unwrap()).unwrap();
    let old = append(&one, A, "old").await;
    assert_eq!(next_record(&mut feed).await.0, old);
    let _: String = redis.command(&["FLUSHALL"]).await;
    let new = append(&one, A, "new").await;
    assert_ne!(new.run().epoch, old.run().epoch);
    assert_eq!(after(&two, old).await, None);
    assert_eq!(all(&two, A).await, ["new"]);
    let skipped = next_skip(&mut feed).await;
    assert_eq!(skipped.run(), new.run());
    let next = append(&two, A, "next").await;
    assert_eq!(next.run(), new.run());
    let mut at = next_record(&mut feed).await;
    if at.0 == new {
        at = next_record(&mut feed).await;
    }
    assert_eq!(at.0, next);
}

/// Stops the server, puts an older dump in place, and starts it. The nodes live on.
async fn restored(events: u64) {
    let mut redis = Redis::with(&["--save", "", "--dbfilename", "dump.rdb"]).await;
    let name = fresh();
    let (one, two) = (open(&redis, &name).await, open(&redis, &name).await);
    let mut feed = two.feed(two.head().await.unwrap()).unwrap();
    let mut before = append(&one, A, "kept 1").await;
    before = before.run().at(append(&one, A, "kept 2").await.position());
    let _: String = redis.command(&["SAVE"]).await;
    let mut gone = before;
    for n in 1..=5 {
        gone = append(&one, A, format!("lost {n}")).await;
    }
    while next_record(&mut feed).await.0 != gone {}
    redis.kill();
    redis.start_again().await;
    // One that has seen nothing of what is lost, and comes first, up to or past where the others were.
    let third = open(&redis, &name).await;
    let mut newest = before;
    for n in 1..=events {
        newest = append(&third, A, format!("new {n}")).await;
    }
    for store in [&one, &two] {
        answers(store).await;
        let expected: Vec<_> = (1..=events).map(|n| format!("new {n}")).collect();
        assert_eq!(after(store, before).await.unwrap(), expected);
        for position in 3..=gone.position() {
            assert_eq!(after(store, before.run().at(position)).await, None, "what had the place {position} is lost");
        }
        if events > 0 {
            assert_eq!(store.head().await.unwrap(), newest);
        }
    }
    assert_ne!(one.head().await.unwrap().run(), before.run());
    let last = append(&one, A, "last").await;
    let mut at = next_skip(&mut feed).await;
    assert_ne!(at.run(), before.run());
    // It may have skipped that too, if it was late.
    while at != last {
        at = next_record(&mut feed).await.0;
    }
    let more = append(&two, A, "more").await;
    assert_eq!(next_record(&mut feed).await, (more, "more".to_owned()));
}

#[tokio::test]
async fn an_older_dump_under_live_nodes() {
    restored(0).await;
}

#[tokio::test]
async fn an_older_dump_that_others_have_appended_to() {
    restored(3).await;
}

#[tokio::test]
async fn an_older_dump_that_others_have_brought_to_where_it_was() {
    restored(5).await;
}

#[tokio::test]
async fn an_older_dump_that_others_have_brought_past_where_it_was() {
    restored(8).await;
}

/// The same process with an older copy of the keys, which nothing but the command of the documentation can tell if nobody was
/// there to see it.
#[tokio::test]
async fn an_older_copy_that_was_put_in_place_while_all_nodes_were_down() {
    let redis = Redis::start().await;
    let name = fresh();
    let log = format!("{{{name}}}:log");
    let store = open(&redis, &name).await;
    let kept = append(&store, A, "kept").await;
    let state: Vec<(String, String)> = redis.command(&["HGETALL", &log]).await;
    let lost = append(&store, A, "lost").await;
    drop(store);
    for (field, value) in &state {
        let _: i64 = redis.command(&["HSET", &log, field, value]).await;
    }
    let id = format!("{}-0", lost.position());
    let _: i64 = redis.command(&["XDEL", &format!("{{{name}}}:s:a"), &id]).await;
    let _: i64 = redis.command(&["HDEL", &log, "server"]).await;
    let store = open(&redis, &name).await;
    let new = append(&store, A, "new").await;
    assert_ne!(new.run(), kept.run());
    assert_eq!(after(&store, kept).await.unwrap(), ["new"]);
    assert_eq!(after(&store, lost).await, None);
}

#[tokio::test]
async fn a_replica_that_takes_over_begins_a_new_run() {
    let mut redis = Redis::start().await;
    let port = redis.address.port().to_string();
    let replica = Redis::with(&["--save", "", "--replicaof", "127.0.0.1", &port]).await;
    let name = fresh();
    let store = builder(&redis, &name).or_at(replica.url()).open().await.unwrap();
    let kept = append(&store, A, "kept").await;
    until("the replica should have it", async || {
        replica.try_command::<i64>(&["EXISTS", &format!("{{{name}}}:s:a")]).await.is_ok_and(|there| there == 1)
    })
    .await;
    redis.kill();
    let _: String = replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    answers(&store).await;
    let new = append(&store, A, "new").await;
    assert_ne!(new.run(), kept.run());
    assert_eq!(after(&store, kept).await.unwrap(), ["new"]);
    assert_eq!(after(&store, kept.run().at(2)).await, None);
}

#[tokio::test]
async fn keys_that_are_gone_are_a_gap() {
    let redis = Redis::start().await;
    let name = fresh();
    let store = open(&redis, &name).await;
    let key = |what: &str| format!("{{{name}}}:{what}");
    let fill = async |round: usize| {
        let records = vec![
            record(A, format!("{round}.1")),
            Record::latest(A, "k", Event::new().data(format!("{round}.2"))),
            record(A, format!("{round}.3")),
            Record::removal(A, "l", Event::new().data(format!("{round}.4"))),
            record(B, "other"),
        ];
        store.append(records.into()).await.unwrap().pop().unwrap().unwrap()
    };
    let start = store.head().await.unwrap();
    fill(0).await;
    let places = [
        vec!["DEL", "s:a"],
        vec!["DEL", "z:a"],
        vec!["DEL", "h:a"],
        vec!["DEL", "r:a"],
        vec!["XTRIM", "s:a", "MAXLEN", "1"],
        vec!["HDEL", "h:a", "k"],
        vec!["ZREM", "z:a", "k"],
    ];
    for (round, words) in (1..).zip(places) {
        let before = fill(round).await;
        let words: Vec<String> =
            words.into_iter().map(|word| if word.contains(':') { key(word) } else { word.to_owned() }).collect();
        let removed: i64 = redis.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(removed > 0, "{words:?}");
        let page = read(&store, A, ReadFrom::After(start)).await;
        assert_eq!(page.floor, before.position() - 1, "{words:?}");
        let other = read(&store, B, ReadFrom::After(start)).await;
        assert_eq!((other.floor, other.entries.len()), (0, round + 1), "{words:?}");
        // And it goes on, though something else is in its place.
        let _: String = redis.command(&["SET", &key("s:a"), "in the way"]).await;
        let next = append(&store, A, "next").await;
        assert_eq!(after(&store, before).await.unwrap(), ["next"], "{words:?}");
        assert_eq!(store.head().await.unwrap(), next);
    }
    // With what is known of the log goes the log.
    let last = fill(99).await;
    let _: i64 = redis.command(&["DEL", &key("log")]).await;
    assert_eq!(after(&store, last).await, None);
    let new = append(&store, A, "new").await;
    assert_ne!(new.run().epoch, last.run().epoch);
    assert_eq!(all(&store, A).await, ["new"]);
    assert_eq!(all(&store, B).await, [""; 0]);
    // What only helps does no harm.
    let _: i64 = redis.command(&["DEL", &key("recent"), &key("due")]).await;
    append(&store, A, "newer").await;
    assert_eq!(after(&store, new).await.unwrap(), ["newer"]);
}

#[tokio::test]
async fn a_dump_that_is_lost_is_another_log() {
    let mut redis = Redis::start().await;
    let name = fresh();
    let store = builder(&redis, &name).deadline(Duration::from_secs(30)).open().await.unwrap();
    let old = append(&store, A, "old").await;
    redis.kill();
    let _ = fs::remove_file(redis.folder.join("dump.rdb"));
    redis.start_again().await;
    let new = append(&store, A, "new").await;
    assert_ne!(new.run().epoch, old.run().epoch);
    assert_eq!(after(&store, old).await, None);
}
