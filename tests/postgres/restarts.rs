//! A server that is killed, and one that is restored from an older copy.

use crate::{
    DEADLINE, TOPIC, append, both_kinds, held, next, number, open,
    postgres_store::{PostgresStore, Retention},
    server::Postgres,
};
use futures_util::StreamExt as _;
use tidings::{
    Event, GapReason, Hub, Message, Resume,
    replay::{
        Cursor, Feed, FeedItem, ReplayStore as _, Run,
        conformance::{self, Keep},
    },
};
use tokio::{
    task::block_in_place,
    time::{Instant, timeout},
};

/// Publishes until it is taken.
async fn publish(hub: &Hub, number: u32) -> Cursor {
    let start = Instant::now();
    loop {
        match hub.publish(TOPIC, Event::new().data(number.to_string())).await {
            Ok(cursor) => return cursor,
            Err(error) => assert!(start.elapsed() < DEADLINE, "{error:?}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_crash_of_the_server() {
    const EVENTS: u32 = 400;
    let server = Postgres::start();
    let store = open(server.config()).await;
    let hub = Hub::builder().open(store.clone()).await.unwrap();
    let start = hub.subscribe(TOPIC).cursor().unwrap();
    let early = tokio::spawn(follow(hub.clone(), start, EVENTS));
    let publisher = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 0..EVENTS {
            // One that is not acknowledged may be there all the same, and is not published again.
            if hub.publish(TOPIC, Event::new().data(number.to_string())).await.is_ok() {
                acknowledged.push(number);
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        publish(&hub, EVENTS).await;
        (hub, acknowledged)
    });
    let before = store.head().await.unwrap();
    for _ in 0..2 {
        block_in_place(|| server.crash());
    }
    let (hub, acknowledged) = publisher.await.unwrap();
    let after = store.head().await.unwrap();
    assert_ne!(before.run(), after.run(), "a server that was started anew may have been rewound");

    // Whoever was there, and came back each time that its stream failed, and who comes back only now.
    let late = tokio::spawn(follow(hub.clone(), start, EVENTS));
    for reader in [early, late] {
        let seen = timeout(DEADLINE, reader).await.unwrap().unwrap();
        assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
        assert!(acknowledged.iter().all(|number| seen.contains(number)), "{acknowledged:?}, {seen:?}");
    }
}

/// What a client sees up to a number, if it comes back with its last id whenever its stream fails.
async fn follow(hub: Hub, mut last: Cursor, end: u32) -> Vec<u32> {
    let mut seen = Vec::new();
    loop {
        let mut subscription = hub.subscribe(TOPIC).resume(last);
        while let Some(Ok(message)) = subscription.next().await {
            let Message::Event(entry) = message else { panic!("{message:?}") };
            last = entry.cursor();
            seen.push(number(entry.record()));
            if seen.last() == Some(&end) {
                return seen;
            }
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_ahead_of_a_restored_server_is_told_of_a_gap() {
    let server = Postgres::start();
    let hubs = both_kinds(&server.config()).await;
    let mut ids = Vec::new();
    for hub in &hubs {
        let mut live = hub.subscribe(TOPIC);
        ids.push([publish(hub, 0).await, publish(hub, 1).await]);
        assert_eq!([next(&mut live).await, next(&mut live).await], [Some(0), Some(1)]);
    }
    server.stop();
    server.back_up();
    server.launch();
    for (hub, ids) in hubs.iter().zip(&ids) {
        let mut live = hub.subscribe(TOPIC);
        let lost = [publish(hub, 2).await, publish(hub, 3).await];
        assert_eq!([next(&mut live).await, next(&mut live).await], [Some(2), Some(3)]);
        assert!(lost[0].position() > ids[1].position());
    }
    let tips: Vec<_> = hubs.iter().map(|hub| hub.subscribe(TOPIC).cursor().unwrap()).collect();
    let mut lives: Vec<_> = hubs.iter().map(|hub| hub.subscribe(TOPIC)).collect();

    server.stop();
    server.restore();
    server.launch();
    for (((hub, ids), tip), live) in hubs.iter().zip(&ids).zip(tips).zip(&mut lives) {
        // Their positions are given a second time.
        let again = publish(hub, 4).await;
        assert_ne!(again.run(), tip.run());
        assert!(again.position() <= tip.position());
        assert_eq!(next(live).await, None, "who was there is told");
        let mut ahead = hub.subscribe(TOPIC).resume(tip).opened().await.unwrap();
        assert_eq!(ahead.outcome(), Some(Resume::Gap(GapReason::Foreign)));
        assert_eq!(next(&mut ahead).await, None);

        let mut behind = hub.subscribe(TOPIC).resume(ids[0]).opened().await.unwrap();
        assert_eq!(behind.outcome(), Some(Resume::Resumed));
        assert_eq!([next(&mut behind).await, next(&mut behind).await], [Some(1), Some(4)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_server_is_killed_at_each_opening_conforms() {
    let server = Postgres::start();
    let verdict = conformance::check_reopen(async |keep: Keep| {
        block_in_place(|| server.crash());
        let retention = Retention { events_per_topic: keep.events_per_topic, ..Retention::default() };
        PostgresStore::open(server.config(), "tidings", retention).await.unwrap()
    });
    verdict.await.unwrap();
}

#[tokio::test]
async fn a_log_that_is_restored_under_a_running_server_begins_a_run() {
    let server = Postgres::start();
    let store = open(server.config()).await;
    append(&store, 0).await.unwrap();
    let operator = server.connect().await;
    let copy = "CREATE TABLE tidings.log_copy AS SELECT * FROM tidings.log;
                CREATE TABLE tidings.records_copy AS SELECT * FROM tidings.records";
    operator.batch_execute(copy).await.unwrap();
    let mut feed = store.feed(store.head().await.unwrap()).unwrap();
    let lost = append(&store, 1).await.unwrap();
    let told = async |feed: &mut Feed| timeout(DEADLINE, feed.next()).await.unwrap().unwrap();
    while !matches!(told(&mut feed).await, FeedItem::Record(cursor, _) if cursor == lost) {}
    let restore = "BEGIN; TRUNCATE tidings.log, tidings.records;
                   INSERT INTO tidings.log SELECT * FROM tidings.log_copy;
                   INSERT INTO tidings.records SELECT * FROM tidings.records_copy; COMMIT";
    operator.batch_execute(restore).await.unwrap();
    assert_eq!(held(&store).await, [0]);
    let again = append(&store, 2).await.unwrap();
    assert_eq!(again.position(), lost.position());
    assert_ne!(again.run(), lost.run());
    // Whose positions are behind those that the feed has told.
    loop {
        match told(&mut feed).await {
            FeedItem::Caught { .. } => {}
            FeedItem::Skip(place) => break assert_eq!(place, again),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn one_more_node_begins_no_run_and_many_make_one_log() {
    let server = Postgres::start();
    let opening: Vec<_> = (0..8).map(|_| tokio::spawn(open_and_head(server.config()))).collect();
    let mut runs = Vec::<Run>::new();
    for opened in opening {
        runs.push(timeout(DEADLINE, opened).await.unwrap().unwrap().run());
    }
    assert!(runs.iter().all(|run| *run == runs[0]), "{runs:?}");
}

async fn open_and_head(config: tokio_postgres::Config) -> Cursor {
    open(config).await.head().await.unwrap()
}
