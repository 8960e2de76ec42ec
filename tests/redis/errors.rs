//! What an operator is told of a server that cannot be used, and how soon.

use crate::{A, B, DEADLINE, append, fresh, next, open, record, support::redis::Redis, until};
use futures_util::{FutureExt as _, StreamExt as _};
use std::{error::Error, net::SocketAddr, time::Duration};
use tidings::replay::{FeedItem, Read, ReadError, ReadFrom, RedisStore, ReplayStore as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};

/// All that an error says, of which nothing is to be said twice.
fn chain(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        assert!(texts.iter().all(|said| !said.contains(&text)), "{texts:?} said {text:?} already");
        texts.push(text);
        next = source.source();
    }
    texts.join(": ")
}

/// What opening fails with, which it does long before its deadline.
async fn told_at_once(url: String) -> String {
    let opening = RedisStore::builder(url).deadline(DEADLINE * 2).open();
    chain(&timeout(DEADLINE, opening).await.expect("it should not be waited for").unwrap_err())
}

/// One that answers whatever it is asked with something, or not at all.
async fn a_server_that_says(answer: Option<&'static str>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut client, _)) = listener.accept().await {
            if let Some(answer) = answer {
                let _ = client.read(&mut [0; 1024]).await;
                let _ = client.write_all(answer.as_bytes()).await;
            } else {
                kept.push(client);
            }
        }
    });
    (address, task)
}

#[tokio::test]
async fn what_waiting_does_not_cure_is_told_at_once_with_its_cause_and_place() {
    let redis = Redis::start().await;
    let at = redis.address;
    let beyond = told_at_once(format!("redis://{at}/99")).await;
    let _: String = redis.command(&["CONFIG", "SET", "requirepass", "secret"]).await;
    let cases = [
        ("DB index is out of range", beyond),
        ("WRONGPASS", told_at_once(format!("redis://:mistaken@{at}/")).await),
        ("WRONGPASS", told_at_once(format!("redis://nobody:mistaken@{at}/")).await),
        ("NOAUTH", told_at_once(format!("redis://{at}/")).await),
    ];
    for (cause, text) in cases {
        assert!(
            text.contains(&format!("cannot connect to Redis at {at}: ")) && text.contains(cause),
            "{cause}: {text}"
        );
        assert!(!text.contains("mistaken"), "{text}");
    }
    assert!(RedisStore::open(format!("redis://:secret@{at}/0"), "news").await.is_ok());
}

/// Not that there was no time left to try it again.
#[tokio::test]
async fn the_cause_is_told_when_the_deadline_has_come() {
    let mut redis = Redis::start().await;
    let _: String = redis.command(&["CONFIG", "SET", "requirepass", "secret"]).await;
    // With another address this is waited for: that one may do.
    let wrong = format!("redis://:mistaken@{}/", redis.address);
    let two = RedisStore::builder(&wrong).or_at(&wrong);
    for millis in [70, 150, 300, 600] {
        let text = chain(&two.clone().deadline(Duration::from_millis(millis)).open().await.unwrap_err());
        assert!(text.contains("WRONGPASS"), "{text}");
    }
    let right = RedisStore::builder(format!("redis://:secret@{}/", redis.address));
    let store = right.deadline(Duration::from_millis(300)).open().await.unwrap();
    redis.kill();
    // The first ones may only find that the connection was cut.
    let is_told = async || {
        let appended = chain(&store.append([record(A, "away")].into()).await.unwrap_err());
        let read = chain(&store.head().await.unwrap_err());
        [&appended, &read].iter().all(|text| text.contains(&format!("{}: Connection refused", redis.address)))
    };
    until("the cause should be told", is_told).await;
    for _ in 0..4 {
        assert!(is_told().await);
    }
}

/// Not at once: an answer of Redis that is cut off looks much the same.
#[tokio::test]
async fn what_is_no_redis_is_called_that() {
    let (http, _task) = a_server_that_says(Some("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")).await;
    let store = RedisStore::builder(format!("redis://{http}/")).deadline(Duration::from_millis(300));
    let text = chain(&store.open().await.unwrap_err());
    assert!(
        text.contains(&format!("cannot connect to Redis at {http}: what answers there is no Redis server")),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_named() {
    let (silent, _task) = a_server_that_says(None).await;
    let store = RedisStore::builder(format!("redis://:secret@{silent}/")).deadline(Duration::from_millis(200));
    let text = chain(&store.open().await.unwrap_err());
    assert!(text.contains(&format!("cannot connect to Redis at {silent}: there was no answer within")), "{text}");
}

#[tokio::test]
async fn a_url_that_is_none_is_told_what_one_looks_like() {
    for url in ["nonsense secret", "http://:secret@127.0.0.1/", "redis://:secret@host:port", "redis://:secret@host/x"] {
        let error: ReadError = RedisStore::open(url, "name").await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains("redis://user:password@host:6379/0") && text.contains("rediss://"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn who_lacks_rights_is_told_where_they_are_named() {
    const PAGE: &str = include_str!("../../src/replay/redis/redis.md");
    assert!(PAGE.contains("ACL SETUSER"));
    let redis = Redis::start().await;
    let users = [
        // Another log's key, and a command of a script.
        ["on", ">secret", "resetchannels", "&*", "~other*", "+@all"],
        ["on", ">secret", "resetchannels", "&*", "~*", "+@all -hmget"],
    ];
    for user in users {
        let rights = user.join(" ");
        let words: Vec<_> = ["ACL", "SETUSER", "hub", "reset"].into_iter().chain(rights.split(' ')).collect();
        let _: String = redis.command(&words).await;
        let text = told_at_once(format!("redis://hub:secret@{}/", redis.address)).await;
        assert!(text.contains("`ACL SETUSER`"), "{text}");
    }
    // Who has them is told nothing of it.
    let store = open(&redis, &fresh()).await;
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let text = chain(&store.append([record(A, "no room")].into()).await.unwrap_err());
    assert!(text.contains("OOM") && !text.contains("ACL"), "{text}");
}

/// So that nodes of two versions do not harm each other's log.
#[tokio::test]
async fn a_log_of_a_later_format_is_refused_and_left_alone() {
    let redis = Redis::start().await;
    let name = fresh();
    let log = format!("{{{name}}}:log");
    // There is something to tidy up.
    let store = crate::builder(&redis, &name).max_age(Duration::from_millis(1)).check_interval(DEADLINE * 2);
    let store = store.open().await.unwrap();
    let cursor = append(&store, A, "one").await;
    assert_eq!(redis.command::<String>(&["HGET", &log, "format"]).await, "1");
    let _: i64 = redis.command(&["HSET", &log, "format", "2"]).await;
    let keys = async || -> (Vec<String>, Vec<String>) {
        let mut log: Vec<String> = redis.command(&["HGETALL", &log]).await;
        let mut all: Vec<String> = redis.command(&["KEYS", "*"]).await;
        log.sort();
        all.sort();
        (log, all)
    };
    let before = keys().await;
    let refused = |error: &dyn Error| {
        let text = chain(error);
        assert!(text.contains("has format 2") && text.contains("up to 1") && text.contains(&log), "{text}");
    };
    let error = store.append([record(A, "two")].into()).await.unwrap_err();
    assert!(!error.is_unknown());
    refused(&error);
    refused(&store.head().await.unwrap_err());
    refused(&store.read(Read::new(A, ReadFrom::After(cursor))).await.unwrap_err());
    refused(&store.forget(A).await.unwrap_err());
    refused(&RedisStore::open(redis.url(), &name).await.unwrap_err());
    // How many calls failed: some of one that fills the feed or looks for it, then those that tidy up.
    let failed = async || -> u32 {
        let stats: String = redis.command(&["INFO", "commandstats"]).await;
        let of_scripts = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
        of_scripts
            .filter_map(|line| line.split("failed_calls=").nth(1))
            .map(|count| count.parse::<u32>().unwrap())
            .sum()
    };
    let so_far = failed().await;
    let mut feed = store.feed(cursor.run().at(0)).unwrap();
    until("what tidies up should be refused", async || failed().await >= so_far + 6).await;
    assert_eq!(keys().await, before);
    assert!(feed.next().now_or_never().is_none(), "the feed is not to say anything");
    // One that was made before there was a number has the first format.
    let _: i64 = redis.command(&["HDEL", &log, "format"]).await;
    let late = open(&redis, &name).await;
    let second = append(&late, B, "two").await;
    assert_eq!(second.run(), cursor.run());
    while !matches!(next(&mut feed).await, FeedItem::Record(cursor, _) if cursor == second) {}
}
