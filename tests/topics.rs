//! Topics with a life: created, produced for, read, stopped, abandoned, forgotten.

use futures_util::{FutureExt as _, StreamExt, future::poll_immediate};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::service::Service as _;
use std::time::Duration;
use tidings::{
    EndReason, Event, Hub, Start, Topic, Topics,
    replay::{Record, Ring},
    test_util::{Fault, FaultyStore, next_event},
};
use tokio::time::{Instant, sleep};

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");
const HOUR: Duration = Duration::from_secs(3600);

fn text(text: &str) -> Event {
    Event::new().data(text)
}

async fn hubs() -> [Hub; 2] {
    let builder = || Hub::builder().explicit_topics();
    [builder().build(), builder().open(FaultyStore::new().0).await.unwrap()]
}

async fn get(hub: &Hub, topics: impl Into<Topics>) -> StatusCode {
    let request = Request::get("/").body(Empty::<bytes::Bytes>::new()).unwrap();
    hub.handler_for(topics).call(request).await.unwrap().status()
}

#[tokio::test]
async fn a_topic_that_nobody_created_is_not_found() {
    for hub in hubs().await {
        assert_eq!(get(&hub, T).await, StatusCode::NOT_FOUND);
        let refused = hub.publish(T, text("x")).await.unwrap_err();
        assert!(refused.is_unknown_topic() && !refused.is_unknown(), "{refused}");
        assert!(hub.publish_ephemeral(T, text("x")).unwrap_err().is_unknown_topic());
        assert!(hub.finish(T, None).await.unwrap_err().is_unknown_topic());
        let outcomes = hub.publish_all([(T, text("x"))]).await;
        assert!(outcomes[0].as_ref().is_err_and(tidings::PublishError::is_unknown_topic));

        assert!(hub.create(T));
        assert!(!hub.create(T));
        assert_eq!(get(&hub, T).await, StatusCode::OK);
        hub.publish(T, text("x")).await.unwrap();
        assert_eq!(get(&hub, Topics::new([T, U]).unwrap()).await, StatusCode::NOT_FOUND);
        hub.create(U);
        assert_eq!(get(&hub, Topics::new([T, U]).unwrap()).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_subscription_says_which_topic_is_not_there() {
    for hub in hubs().await {
        let mut subscription = hub.subscribe(T);
        assert_eq!(subscription.outcome(), None);
        let error = subscription.next().await.unwrap().unwrap_err();
        assert!(error.is_unknown_topic() && !error.is_read(), "{error}");
        assert!(error.to_string().contains("topic t "), "{error}");
        assert!(subscription.next().await.is_none());
        assert!(hub.subscribe(T).resume("no id").opened().await.unwrap_err().is_unknown_topic());
        assert!(hub.subscribe(T).start(Start::Earliest).opened().await.unwrap_err().is_unknown_topic());
    }
    // Over the ring, a response knows it by itself.
    let response = Hub::builder().explicit_topics().build().subscribe(T).into_http_response();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn what_the_log_has_exists() {
    let (store, faults) = FaultyStore::new();
    let store = std::sync::Arc::new(store);
    let open = || Hub::builder().explicit_topics().open(std::sync::Arc::clone(&store));
    let hub = open().await.unwrap();
    hub.create(T);
    hub.create(U);
    hub.publish(T, text("x")).await.unwrap();
    hub.finish(U, None).await.unwrap();

    // After a restart it can be read, and published to once it was created anew.
    let hub = open().await.unwrap();
    assert_eq!(get(&hub, Topics::new([T, U]).unwrap()).await, StatusCode::OK);
    assert_eq!(get(&hub, Topic::from_static("v")).await, StatusCode::NOT_FOUND);
    assert!(hub.publish(T, text("y")).await.unwrap_err().is_unknown_topic());
    hub.create(T);
    hub.publish(T, text("y")).await.unwrap();

    // That it cannot be asked says nothing about the topic.
    faults.next_read(Fault::Refused);
    let error = hub.subscribe(U).opened().await.unwrap_err();
    assert!(error.is_read() && !error.is_unknown_topic());
    faults.next_read(Fault::Refused);
    assert_eq!(get(&hub, U).await, StatusCode::OK, "come back later");
}

#[tokio::test]
async fn without_the_setting_every_topic_exists() {
    let hub = Hub::new();
    assert_eq!(get(&hub, T).await, StatusCode::OK);
    hub.create(T);
    hub.publish(U, text("x")).await.unwrap();
}

#[tokio::test]
async fn a_forgotten_topic_has_to_be_created_again() {
    for hub in hubs().await {
        hub.create(T);
        hub.publish(T, text("x")).await.unwrap();
        hub.forget(T).await.unwrap();
        assert_eq!(get(&hub, T).await, StatusCode::NOT_FOUND);
        assert!(hub.create(T));
        assert_eq!(get(&hub, T).await, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_not_used_is_forgotten() {
    let hub = Hub::builder().explicit_topics().forget_idle_topics(HOUR).build();
    let used = Topic::from_static("used");
    let read = Topic::from_static("read");
    let made = Topic::from_static("made");
    for topic in [&T, &used, &read, &made] {
        hub.create(topic);
    }
    let reader = hub.subscribe(&read);
    let producer = hub.producer(&made);
    for _ in 0..5 {
        sleep(HOUR / 2).await;
        hub.publish(&used, text("x")).await.unwrap();
    }
    assert_eq!(get(&hub, &T).await, StatusCode::NOT_FOUND);
    for topic in [&used, &read, &made] {
        assert_eq!(get(&hub, topic).await, StatusCode::OK, "{topic}");
    }
    drop((reader, producer));
    sleep(Duration::from_secs(3599)).await;
    for topic in [&read, &made] {
        assert!(!hub.create(topic), "{topic} is still there");
    }
    sleep(HOUR * 2).await;
    for topic in [&used, &read, &made] {
        assert_eq!(get(&hub, topic).await, StatusCode::NOT_FOUND, "{topic}");
    }
    // A topic that was forgotten and created again has its whole time.
    hub.create(T);
    sleep(HOUR / 2).await;
    hub.forget(T).await.unwrap();
    hub.create(T);
    sleep(HOUR / 2 + Duration::from_secs(1)).await;
    assert!(!hub.create(T));
    sleep(HOUR / 2).await;
    assert!(hub.create(T));
}

#[tokio::test]
async fn a_topic_exists_as_long_as_it_has_a_producer() {
    for hub in hubs().await {
        let producer = hub.producer(T);
        assert_eq!(producer.topic(), &T);
        assert_eq!(get(&hub, T).await, StatusCode::OK);
        drop(producer);
        assert_eq!(get(&hub, T).await, StatusCode::NOT_FOUND);
        let producer = hub.producer(T);
        producer.publish(text("x")).await.unwrap();
        drop(producer);
        assert_eq!(get(&hub, T).await, StatusCode::OK, "the log has it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_producer_is_told_that_a_reader_asks_it_to_stop() {
    let hub = Hub::new();
    assert!(!hub.stop(T));
    let (one, two) = (hub.producer(T), hub.producer(T));
    let other = hub.producer(U);
    assert!(one.stopped().now_or_never().is_none());
    let waiting = tokio::spawn(async move {
        two.stopped().await;
        two
    });
    tokio::task::yield_now().await;
    assert!(hub.stop(T));
    let two = waiting.await.unwrap();
    one.stopped().await;
    assert!(one.is_stopped() && !other.is_stopped());
    // Whoever produces after them was not asked.
    drop(one);
    assert!(two.is_stopped());
    drop(two);
    assert!(!hub.stop(T));
    assert!(!hub.producer(T).is_stopped());
}

#[tokio::test(start_paused = true)]
async fn a_producer_is_told_that_nobody_has_been_reading_for_some_time() {
    let hub = Hub::new();
    let producer = hub.producer(T);
    let minute = Duration::from_secs(60);
    let begin = Instant::now();
    producer.abandoned(minute).await;
    assert_eq!(begin.elapsed(), minute);

    // A reader in time begins the count anew, from when the last one left.
    let hub = Hub::new();
    let producer = hub.producer(T);
    let begin = Instant::now();
    let readers = async {
        sleep(Duration::from_secs(50)).await;
        let one = hub.subscribe(T);
        sleep(Duration::from_secs(50)).await;
        let two = hub.subscribe(T);
        drop(one);
        sleep(Duration::from_secs(500)).await;
        drop(two);
    };
    tokio::join!(producer.abandoned(minute), readers);
    assert_eq!(begin.elapsed(), Duration::from_secs(660));

    // The topic counts, not the future: it can be dropped and made anew all the time.
    let hub = Hub::new();
    let producer = hub.producer(T);
    let begin = Instant::now();
    loop {
        tokio::select! {
            () = sleep(Duration::from_secs(7)) => {}
            () = producer.abandoned(minute) => break,
        }
    }
    assert_eq!(begin.elapsed(), minute);
    // A time without end is never over.
    let never = tokio::time::timeout(HOUR, producer.abandoned(Duration::MAX));
    assert!(never.await.is_err());
    // Readers of another topic do not count.
    let _other = hub.subscribe(U);
    producer.abandoned(minute).now_or_never().expect("nobody has been reading for an hour");
}

#[tokio::test(start_paused = true)]
async fn a_producer_can_be_watched_by_many_tasks() {
    let hub = Hub::new();
    let producer = std::sync::Arc::new(hub.producer(T));
    let watchers: Vec<_> = (0..100)
        .map(|n| {
            let producer = std::sync::Arc::clone(&producer);
            tokio::spawn(
                async move { if n % 2 == 0 { producer.stopped().await } else { producer.abandoned(HOUR).await } },
            )
        })
        .collect();
    tokio::task::yield_now().await;
    let reader = hub.subscribe(T);
    hub.stop(T);
    drop(reader);
    for watcher in watchers {
        watcher.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_last_will_finishes_the_topic_of_a_producer_that_is_dropped() {
    for hub in [Hub::new(), Hub::builder().open(FaultyStore::new().0).await.unwrap()] {
        let mut reader = hub.subscribe(T);
        let producer = hub.producer(T).last_will(text("interrupted"));
        let task = tokio::spawn(async move {
            producer.publish(text("half")).await.unwrap();
            panic!("on purpose");
        });
        assert!(task.await.unwrap_err().is_panic());
        for expected in ["half", "interrupted"] {
            assert_eq!(next_event(&mut reader).await.record().data().as_deref(), Some(expected));
        }
        assert!(reader.next().await.is_none());
        assert_eq!(reader.end_reason(), Some(EndReason::Finished));

        let mut reader = hub.subscribe(U);
        let producer = hub.producer(U).last_will(text("interrupted"));
        producer.finish(Some(text("done"))).await.unwrap();
        assert_eq!(next_event(&mut reader).await.record().data().as_deref(), Some("done"));
        assert!(reader.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_last_will_the_topic_goes_on() {
    let hub = Hub::new();
    let mut reader = hub.subscribe(T);
    drop(hub.producer(T));
    assert!(poll_immediate(reader.next()).await.is_none());
    // Its end is refused, so the last will is tried and refused too: nothing panics.
    hub.finish(T, None).await.unwrap();
    let late = hub.producer(T).last_will(text("too late"));
    assert!(late.publish(text("x")).await.unwrap_err().is_finished());
    assert!(late.finish(None).await.unwrap_err().is_finished());
    assert!(reader.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_producer_keeps_its_hub() {
    let hub = Hub::new();
    let (mut reader, producer) = (hub.subscribe(T), hub.producer(T));
    drop(hub);
    producer.publish(text("x")).await.unwrap();
    next_event(&mut reader).await;
    drop(producer);
    assert!(reader.next().await.is_none());
    assert_eq!(reader.end_reason(), Some(EndReason::Closed));
}

#[tokio::test]
async fn a_hub_may_begin_its_subscriptions_with_what_is_held() {
    let hub = Hub::builder().start(Start::Last(1)).ring(Ring::new()).build();
    hub.publish(T, text("old")).await.unwrap();
    hub.publish_record(Record::new(T, text("last"))).await.unwrap();
    let last = next_event(&mut hub.subscribe(T)).await;
    assert_eq!(last.record().data().as_deref(), Some("last"));
    let mut resumed = hub.subscribe(T).resume(last.cursor());
    assert!(poll_immediate(resumed.next()).await.is_none());
    let all = next_event(&mut hub.subscribe(T).start(Start::Earliest)).await;
    assert_eq!(all.record().data().as_deref(), Some("old"));
}

#[tokio::test(start_paused = true)]
async fn a_crowd_of_topics_that_were_created_and_forgotten_leaves_nothing_to_trip_over() {
    let hub = Hub::builder().explicit_topics().forget_idle_topics(HOUR).build();
    let crowd = || (0..1000).map(|n| Topic::new(format!("{n}")).unwrap());
    for topic in crowd() {
        hub.create(topic);
    }
    for topic in crowd() {
        hub.forget(topic).await.unwrap();
    }
    hub.create(T);
    sleep(HOUR * 2).await;
    assert!(hub.create(T));
}

#[tokio::test(start_paused = true)]
async fn without_an_idle_time_a_topic_exists_while_it_is_used() {
    let hub = Hub::builder().explicit_topics().forget_idle_topics(Duration::ZERO).build();
    hub.create(T);
    let reader = hub.subscribe(T).opened().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&hub, T).await, StatusCode::OK);
    drop(reader);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&hub, T).await, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn a_producer_of_a_hub_that_is_closed_is_told_to_stop() {
    let hub = Hub::new();
    let producer = std::sync::Arc::new(hub.producer(T));
    let waiting = tokio::spawn({
        let producer = std::sync::Arc::clone(&producer);
        async move { producer.stopped().await }
    });
    tokio::task::yield_now().await;
    hub.close();
    waiting.await.unwrap();
    assert!(producer.is_stopped());
    assert!(hub.producer(T).is_stopped() && hub.producer(U).is_stopped());
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_read_before_it_has_a_producer_is_not_abandoned() {
    for hub in hubs().await {
        let minute = Duration::from_secs(60);
        hub.create(T);
        let reader = hub.subscribe(T);
        let producer = hub.producer(T);
        assert!(tokio::time::timeout(HOUR, producer.abandoned(minute)).await.is_err());
        // Another producer changes nothing about how long nobody has been reading.
        drop(reader);
        sleep(minute / 2).await;
        let another = hub.producer(T);
        sleep(minute / 2).await;
        producer.abandoned(minute).now_or_never().expect("nobody has been reading for a minute");
        another.abandoned(minute).now_or_never().expect("nobody has been reading for a minute");
    }
}

#[tokio::test]
async fn only_those_are_asked_to_stop_who_produce_at_that_moment() {
    for hub in hubs().await {
        hub.create(T);
        assert!(!hub.stop(T));
        let (one, two) = (hub.producer(T), hub.producer(T));
        drop(one);
        assert!(!two.is_stopped());
        assert!(hub.stop(T) && two.is_stopped());
        drop(two);
        assert!(!hub.stop(T));
        assert!(!hub.producer(T).is_stopped());
    }
}

#[test]
fn who_looks_for_a_moment_whether_it_is_to_stop_leaves_nothing_behind() {
    let hub = Hub::new();
    let producer = hub.producer(T);
    let measured = allocation_counter::measure(|| {
        for _ in 0..100_000 {
            assert!(producer.stopped().now_or_never().is_none());
        }
    });
    assert!(measured.bytes_current < 10_000, "{}", measured.bytes_current);
}

#[tokio::test]
async fn a_producer_lends_its_hub() {
    for hub in hubs().await {
        let mut reader = hub.subscribe(U);
        hub.create(U);
        hub.producer(T).hub().publish(U, text("hello")).await.unwrap();
        assert_eq!(next_event(&mut reader).await.record().data().unwrap(), "hello");
    }
}

#[tokio::test]
async fn no_last_will_is_stored_for_a_hub_that_is_closed_or_that_is_too_large() {
    for closed in [true, false] {
        let (store, faults) = FaultyStore::new();
        let hub = Hub::builder().max_event_bytes(10).open(store).await.unwrap();
        let will = text(if closed { "" } else { "larger than is allowed" });
        let producer = hub.producer(T).last_will(will);
        if closed {
            hub.close();
        }
        drop(producer);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(faults.appends(), 0);
    }
}
