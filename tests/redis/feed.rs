//! What comes over the feed, and how its holes are filled.

use crate::{
    A, B, DEADLINE, append, builder, fresh, next, next_record, next_skip, open, record,
    support::{network::Network, redis::Redis},
    text, until,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::{sync::Arc, time::Duration};
use tidings::{
    Event,
    replay::{Feed, FeedItem, Notice, Record, RedisStore, ReplayStore as _},
};
use tokio::time::timeout;

/// A feed from here on, which is known to listen.
async fn listening(store: &RedisStore) -> Feed {
    let mut feed = store.feed(store.head().await.unwrap()).unwrap();
    let mut pings = 0..;
    let heard = async {
        loop {
            let ping = pings.next().unwrap().to_string();
            store.notify(vec![Notice::Control(ping.into())]).await.unwrap();
            let came = timeout(Duration::from_millis(100), feed.next()).await;
            if matches!(came, Ok(Some(FeedItem::Notice(_)))) {
                break;
            }
        }
    };
    timeout(DEADLINE, heard).await.expect("the feed should listen");
    feed
}

/// The next that is no ping.
async fn after_pings(feed: &mut Feed) -> FeedItem {
    loop {
        match next(feed).await {
            FeedItem::Notice(Notice::Control(bytes)) if bytes.is_ascii() && !bytes.contains(&0) => {}
            item => return item,
        }
    }
}

#[tokio::test]
async fn records_forgotten_topics_and_notices_come_in_their_order() {
    let redis = Redis::start().await;
    let name = fresh();
    let (one, two) = (open(&redis, &name).await, open(&redis, &name).await);
    let mut feeds = [listening(&one).await, listening(&two).await];
    let first = append(&one, A, 1).await;
    let typing = Record::new(B, Event::new().data("typing"));
    one.notify(vec![Notice::Ephemeral(typing), Notice::Control(Bytes::from_static(b"\0\n"))]).await.unwrap();
    one.forget(A).await.unwrap();
    let second = append(&two, A, 2).await;
    assert_eq!(second.position(), first.position() + 2, "a forget has a place of its own");
    for feed in &mut feeds {
        let FeedItem::Record(cursor, record) = after_pings(feed).await else { panic!("a record") };
        assert_eq!((cursor, text(&record)), (first, "1".to_owned()));
        let FeedItem::Notice(Notice::Ephemeral(typing)) = next(feed).await else { panic!("an event") };
        assert_eq!((typing.topic(), text(&typing)), (&B, "typing".to_owned()));
        let FeedItem::Notice(Notice::Control(bytes)) = next(feed).await else { panic!("a message") };
        assert_eq!(&bytes[..], b"\0\n");
        let FeedItem::Forgotten(topic, place) = next(feed).await else { panic!("a topic") };
        assert_eq!((topic, place), (A, first.run().at(first.position() + 1)));
        assert_eq!(next_record(feed).await, (second, "2".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_and_nothing_comes_twice_while_the_channel_is_cut_again_and_again() {
    const EVENTS: usize = 2000;
    let redis = Redis::start().await;
    let name = fresh();
    let (publisher, follower) = (open(&redis, &name).await, open(&redis, &name).await);
    let start = follower.head().await.unwrap();
    let mut feed = follower.feed(start).unwrap();
    let publishing = async {
        for n in 0..EVENTS {
            append(&publisher, if n % 3 == 0 { B } else { A }, n).await;
            if n % 100 == 50 {
                let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            }
        }
    };
    let following = async {
        let (mut lost, mut caught) = (0, 0);
        let mut position = 0;
        while position < EVENTS as u64 {
            match timeout(DEADLINE, feed.next()).await.unwrap().unwrap() {
                FeedItem::Record(cursor, record) => {
                    position += 1;
                    assert_eq!((cursor, text(&record)), (start.run().at(position), (position - 1).to_string()));
                }
                FeedItem::Lost => lost += 1,
                FeedItem::Caught { missed } => caught += missed,
                other => panic!("{other:?}"),
            }
        }
        assert!(lost > 0 && caught > 0, "lost {lost} times, {caught} events caught");
    };
    tokio::join!(publishing, following);
}

/// A node that may not publish: what it appends is stored, and nobody is notified.
#[tokio::test]
async fn a_notification_that_is_lost_with_nothing_after_it_is_found() {
    let redis = Redis::start().await;
    let name = fresh();
    let user = ["ACL", "SETUSER", "mute", "on", ">secret", "~*", "+@all", "resetchannels"];
    let _: String = redis.command(&user).await;
    let mute = RedisStore::open(format!("redis://mute:secret@{}/", redis.address), &name).await.unwrap();
    let follower = builder(&redis, &name).check_interval(Duration::from_millis(50)).open().await.unwrap();
    let mut feed = listening(&follower).await;
    let cursor = append(&mute, A, "unsaid").await;
    let FeedItem::Record(found, _) = after_pings(&mut feed).await else { panic!("a record") };
    assert_eq!(found, cursor);
    // And so is one with something after it.
    let unsaid = append(&mute, A, "unsaid").await;
    let said = append(&follower, A, "said").await;
    assert_eq!(next_record(&mut feed).await, (unsaid, "unsaid".to_owned()));
    assert_eq!(next_record(&mut feed).await, (said, "said".to_owned()));
}

#[tokio::test]
async fn a_connection_that_is_only_half_open_is_found() {
    let redis = Redis::start().await;
    let name = fresh();
    let network = Network::to(redis.address).await;
    let url = format!("redis://{}/", network.address);
    let follower = RedisStore::builder(url).name(&name).check_interval(Duration::from_millis(50)).open().await.unwrap();
    let publisher = open(&redis, &name).await;
    let mut feed = listening(&follower).await;
    network.go_silent();
    let cursor = append(&publisher, A, "into the silence").await;
    let FeedItem::Record(found, _) = after_pings(&mut feed).await else { panic!("a record") };
    assert_eq!(found, cursor);
}

#[tokio::test]
async fn a_feed_begins_wherever_it_is_asked_to_and_leaves_out_only_what_was_replaced() {
    let redis = Redis::start().await;
    let store = open(&redis, &fresh()).await;
    let start = store.head().await.unwrap();
    let latest = |key, text: &str| Record::latest(A, key, Event::new().data(text));
    for records in [
        vec![record(A, "one"), latest("k", "two"), latest("l", "three")],
        vec![latest("k", "four"), Record::removal(A, "l", Event::new().data("five")), record(B, "six")],
    ] {
        store.append(records.into()).await.unwrap();
    }
    let mut feed = store.feed(start).unwrap();
    for (position, expected) in [(1, "one"), (4, "four"), (5, "five"), (6, "six")] {
        assert_eq!(next_record(&mut feed).await, (start.run().at(position), expected.to_owned()));
    }
    // Between the records of one batch.
    let mut feed = store.feed(start.run().at(4)).unwrap();
    assert_eq!(next_record(&mut feed).await.1, "five");
}

#[tokio::test]
async fn what_cannot_be_told_one_by_one_is_skipped() {
    let redis = Redis::start().await;
    let name = fresh();
    let store = builder(&redis, &name).feed_reach(10).open().await.unwrap();
    let start = store.head().await.unwrap();
    let mut newest = start;
    for n in 0..1000 {
        newest = append(&store, A, n).await;
    }
    // Beyond the pointers; of another log; ahead of this one.
    let other = tidings::replay::Run { epoch: start.run().epoch ^ 1, number: 0 };
    for from in [start, other.at(0), other.at(5000), start.run().at(5000)] {
        let mut feed = store.feed(from).unwrap();
        assert_eq!(next_skip(&mut feed).await, newest, "from {from}");
        newest = append(&store, A, "next").await;
        assert_eq!(next_record(&mut feed).await, (newest, "next".to_owned()));
    }
    // No longer held.
    let few = builder(&redis, &name).events_per_topic(2).open().await.unwrap();
    let from = append(&few, A, "one").await;
    for n in 2..10 {
        newest = append(&few, A, n).await;
    }
    assert_eq!(next_skip(&mut few.feed(from).unwrap()).await, newest);
    // Deleted behind its back.
    let from = append(&store, B, "one").await;
    let newest = append(&store, B, "two").await;
    let _: i64 = redis.command(&["DEL", &format!("{{{name}}}:s:b")]).await;
    assert_eq!(next_skip(&mut store.feed(start.run().at(from.position() - 1)).unwrap()).await, newest);
    let _: i64 = redis.command(&["DEL", &format!("{{{name}}}:recent")]).await;
    assert_eq!(next_skip(&mut store.feed(from).unwrap()).await, newest);
}

/// More than is kept in memory for a hub that does not take it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_does_not_keep_up_is_told_everything_later() {
    const EVENTS: usize = 600;
    let redis = Redis::start().await;
    let name = fresh();
    let store = Arc::new(builder(&redis, &name).bytes_per_topic(200 << 20).open().await.unwrap());
    let start = store.head().await.unwrap();
    let mut feed = listening(&store).await;
    let body = "x".repeat(100_000);
    for n in 0..EVENTS {
        append(&store, A, format!("{n} {body}")).await;
    }
    let clients: String = redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
    let waiting = clients.split("omem=").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(waiting, "0", "the node takes what the server has for it: {clients}");
    for n in 0..EVENTS as u64 {
        let FeedItem::Record(cursor, record) = after_pings(&mut feed).await else { panic!("a record") };
        assert_eq!(cursor, start.run().at(n + 1));
        assert!(text(&record).starts_with(&format!("{n} ")));
    }
}

#[tokio::test]
async fn a_feed_that_is_dropped_stops_listening() {
    let redis = Redis::start().await;
    let store = open(&redis, &fresh()).await;
    let channel_has = async |listeners: i64| {
        let (_, count): (String, i64) =
            redis.command::<Vec<(String, i64)>>(&["PUBSUB", "NUMSUB", &channel(&store)]).await.remove(0);
        count == listeners
    };
    let feed = listening(&store).await;
    assert!(channel_has(1).await);
    drop(feed);
    until("nobody should listen", async || channel_has(0).await).await;
}

/// As its `Debug` says what the log is called.
fn channel(store: &RedisStore) -> String {
    let text = format!("{store:?}");
    let name = text.split("name: \"").nth(1).unwrap().split('"').next().unwrap();
    format!("{{{name}}}:feed")
}
