//! A hub that is drained, and subscriptions that are told to go.

use futures_util::{FutureExt as _, StreamExt as _, future::join_all};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use std::time::Duration;
use tidings::{
    Drain, EndReason, Event, EventType, Hub, LeaveReason, SubscriptionBody, Topic,
    test_util::{EventReader, Fault, FaultyStore, foreign_id, next_event},
};
use tokio::time::{Instant, sleep};
use tower_service::Service;

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");
const GOODBYE: EventType = EventType::from_static("goodbye");

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn drain() -> Drain {
    Drain::new()
        .grace(seconds(2))
        .deadline(seconds(2))
        .retry(seconds(1)..=seconds(5))
        .goodbye(Event::new().event_type(GOODBYE).data("bye"))
}

fn reader(hub: &Hub) -> EventReader<SubscriptionBody> {
    EventReader::new(hub.subscribe(T).into_http_response().into_body())
}

/// All that a client gets until the end, and when that was.
async fn rest(mut reader: EventReader<SubscriptionBody>) -> (Vec<String>, u64, Duration) {
    let start = Instant::now();
    let mut events = Vec::new();
    while let Some(event) = reader.next().await {
        events.push(event.data);
    }
    (events, reader.retry_ms().unwrap(), start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn everyone_gets_every_event_until_its_turn_and_then_the_goodbye() {
    let hub = Hub::new();
    let readers: Vec<_> = (0..1000).map(|_| tokio::spawn(rest(reader(&hub)))).collect();
    let hub_too = hub.clone();
    let publishing = tokio::spawn(async move {
        let start = Instant::now();
        let mut times = Vec::new();
        // Each at its time, so that the last one a client must have is known.
        while hub_too.publish(T, Event::new().data(times.len().to_string())).await.is_ok() {
            times.push(start.elapsed());
            sleep(Duration::from_millis(7)).await;
        }
        times
    });
    sleep(seconds(1)).await;
    let drained = hub.drain(drain()).await;
    assert_eq!((drained.ended, drained.remaining), (1000, 0));
    let times = publishing.await.unwrap();
    let ends = join_all(readers).await;
    let (mut retries, mut halves) = (Vec::new(), [0, 0]);
    for end in ends {
        let (mut events, retry, at) = end.unwrap();
        assert_eq!(events.pop().as_deref(), Some("bye"));
        let expected = times.iter().take_while(|time| **time < at).count();
        assert!(events.len().abs_diff(expected) <= 1, "{} of {expected}", events.len());
        assert!(events.iter().enumerate().all(|(n, event)| *event == n.to_string()));
        assert!(at >= seconds(1) && at <= Duration::from_millis(3050), "{at:?}");
        halves[usize::from(at > seconds(2))] += 1;
        retries.push(retry);
    }
    assert!(halves.iter().all(|half| *half > 400), "they end over the grace period: {halves:?}");
    assert!(retries.iter().all(|retry| (1000..=5000).contains(retry)));
    for second in 1..5 {
        let share = retries.iter().filter(|retry| *retry / 1000 == second).count();
        assert!(share < 500, "{share} in second {second}");
    }
    assert_eq!(hub.stats().left.drained, 1000);
    assert!(hub.publish(T, Event::new()).await.unwrap_err().is_closed());
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_meanwhile_is_told_when_to_come_back() {
    let hub = Hub::new();
    let mut there = reader(&hub);
    let drains = tokio::spawn({
        let hub = hub.clone();
        async move { hub.drain(drain().retry(seconds(40)..=seconds(50))).await }
    });
    tokio::task::yield_now().await;

    let response = Service::call(&mut hub.handler_for(T), Request::new(())).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["content-type"]),
        (StatusCode::OK, &"text/event-stream".parse().unwrap())
    );
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap();
    let retry: u64 = text.strip_prefix("retry: ").and_then(|text| text.trim_end().parse().ok()).expect(&text);
    assert!((40_000..=50_000).contains(&retry));

    let mut others = hub.handler_for(T).event_source_if(|_| false);
    let response = Service::call(&mut others, Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((40..=50).contains(&after));

    assert!(hub.is_draining());
    let mut late = reader(&hub);
    assert!(late.next().await.is_none() && (40_000..=50_000).contains(&late.retry_ms().unwrap()));
    let mut stream = hub.subscribe(T);
    assert!(stream.next().await.unwrap().unwrap_err().is_draining());
    assert!(stream.next().await.is_none());
    assert_eq!(hub.stats().refused.draining, 4);

    assert_eq!(there.next().await.unwrap().data, "bye");
    assert!(there.next().await.is_none());
    assert_eq!(drains.await.unwrap().ended, 1);
}

#[tokio::test(start_paused = true)]
async fn a_notice_keeps_newcomers_out_and_ends_nobody() {
    let hub = Hub::new();
    let mut there = reader(&hub);
    let start = Instant::now();
    let (drained, ()) = tokio::join!(hub.drain(drain().notice(seconds(30))), async {
        sleep(seconds(29)).await;
        assert!(hub.is_draining() && hub.subscribe(T).next().await.unwrap().unwrap_err().is_draining());
        hub.publish(T, Event::new().data("goes on")).await.unwrap();
        assert_eq!(there.next().await.unwrap().data, "goes on");
        assert_eq!(there.next().await.unwrap().data, "bye");
        assert!((30_000..30_100).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        assert!(there.next().await.is_none());
    });
    assert_eq!((drained.ended, drained.remaining), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_has_stopped_reading_remains_at_the_deadline() {
    let hub = Hub::new();
    let stalled: Vec<_> = (0..3).map(|_| hub.subscribe(T).into_http_response()).collect();
    let reading = tokio::spawn(rest(reader(&hub)));
    let start = Instant::now();
    let drained = hub.drain(drain()).await;
    assert_eq!((drained.ended, drained.remaining, start.elapsed()), (1, 3, seconds(4)));
    reading.await.unwrap();
    let one = hub.presence(T).subscribers()[0].clone();
    drop(stalled);
    assert_eq!(one.left().await.0, LeaveReason::Ended(EndReason::Drained), "it was told, and did not ask");
}

#[tokio::test(start_paused = true)]
async fn nothing_to_end_takes_no_time_and_no_grace_ends_all_at_once() {
    let start = Instant::now();
    let empty = Hub::new();
    assert!(!empty.is_draining());
    assert_eq!(empty.drain(drain()).await.ended, 0);
    assert!(empty.is_draining());
    assert_eq!(start.elapsed(), Duration::ZERO);
    let hub = Hub::new();
    let readers: Vec<_> = (0..100).map(|_| tokio::spawn(rest(reader(&hub)))).collect();
    tokio::task::yield_now().await;
    hub.drain(drain().grace(Duration::ZERO)).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    join_all(readers).await;
}

#[tokio::test(start_paused = true)]
async fn times_beyond_the_clock_are_no_times_and_a_dropped_drain_closes() {
    let hub = Hub::new();
    let reading = [0; 3].map(|_| tokio::spawn(rest(reader(&hub))));
    let endless = drain().grace(Duration::MAX).deadline(Duration::MAX).retry(Duration::MAX..=Duration::ZERO);
    assert!(tokio::time::timeout(seconds(3600), hub.drain(endless)).await.is_err());
    assert!(hub.publish(T, Event::new()).await.unwrap_err().is_closed());
    let goodbyes = join_all(reading).await.into_iter().filter(|end| !end.as_ref().unwrap().0.is_empty());
    assert_eq!(goodbyes.count(), 1, "the others' turn did not come");
}

#[tokio::test(start_paused = true)]
async fn who_reads_a_slow_store_is_drained_with_what_was_published_and_ended_without() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    let mut ids = Vec::new();
    // None fits into a frame with another.
    let data = ["0", "1", "2"].map(|n| n.repeat(4000));
    for data in &data {
        ids.push(hub.publish(T, Event::new().data(data)).await.unwrap());
    }
    tidings::test_util::evict(&hub);
    let resumed = || EventReader::new(hub.subscribe(T).resume(ids[0]).into_http_response().into_body());

    faults.next_read(Fault::Hangs);
    let mut told = resumed();
    assert!(told.next().now_or_never().is_none());
    // It waits for the store, and hears that it is to go all the same.
    assert_eq!(hub.end_topic(T, EndReason::application("bye")), 0, "it is not there before it is open");
    faults.release();
    assert_eq!(told.next().await.unwrap().data, data[1]);
    assert_eq!(hub.end_topic(T, EndReason::application("bye")), 1);
    assert!(told.next().await.is_none(), "nothing more, though it was read already");
    assert_eq!(told.last_event_id(), ids[1].to_string());

    let mut drained = resumed();
    assert_eq!(drained.next().await.unwrap().data, data[1]);
    let (drain, events) = tokio::join!(hub.drain(drain()), async {
        let mut events = Vec::new();
        while let Some(event) = drained.next().await {
            events.push(event.data);
        }
        events
    });
    assert_eq!((drain.ended, events), (1, vec![data[2].clone(), "bye".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn the_application_ends_whom_it_picks() {
    const OUT: EndReason = EndReason::application("logged-out");
    let hub = Hub::builder().announce_ends().build();
    let of = |user: &str, topic: Topic| {
        EventReader::new(hub.subscribe(topic).label("user", user).into_http_response().into_body())
    };
    let (mut ada, mut ada_too, mut bob) = (of("ada", T), of("ada", U), of("bob", T));
    hub.publish(T, Event::new().data("not for who is out")).await.unwrap();
    assert_eq!(hub.end_where(|subscriber| subscriber.label("user") == Some("ada"), OUT), 2);
    assert_eq!(hub.end_where(|subscriber| subscriber.label("user") == Some("ada"), OUT), 0, "told already");
    for reader in [&mut ada, &mut ada_too] {
        assert_eq!(reader.next().await.unwrap().data, r#"{"reason":"logged-out"}"#);
        assert!(reader.next().await.is_none());
    }
    assert_eq!(bob.next().await.unwrap().data, "not for who is out");
    assert_eq!(hub.end_topic(T, OUT), 1);
    assert_eq!(bob.next().await.unwrap().event_type, "tidings-end");
    assert!(bob.next().await.is_none());
    assert_eq!(hub.stats().left.application, 3);
}

#[tokio::test(start_paused = true)]
async fn one_that_rests_or_waits_hears_that_it_is_to_go() {
    let hub = Hub::new();
    let mut resting = hub.subscribe(T).min_interval(seconds(3600));
    hub.publish(T, Event::new().data("1")).await.unwrap();
    next_event(&mut resting).await;
    hub.publish(T, Event::new().data("2")).await.unwrap();
    let subscriber = resting.subscriber();
    let (end, start) = (tokio::spawn(async move { resting.next().await.is_none() }), Instant::now());
    tokio::task::yield_now().await;
    assert!(subscriber.end(EndReason::Replaced) && !subscriber.end(EndReason::Replaced));
    assert!(end.await.unwrap());
    assert_eq!(subscriber.left().await.0, LeaveReason::Ended(EndReason::Replaced));
    assert!(!subscriber.end(EndReason::Replaced), "it is gone");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_is_still_to_be_reported_is_reported_to_who_comes_back() {
    for end_first in [false, true] {
        let hub = Hub::new();
        let subscription = hub.subscribe(T).resume(foreign_id());
        if end_first {
            subscription.subscriber().end(EndReason::Replaced);
        }
        let subscriber = subscription.subscriber();
        let response = subscription.into_http_response();
        assert_eq!(response.headers()["tidings-gap"], "foreign");
        subscriber.end(EndReason::Replaced);
        let mut reader = EventReader::new(response.into_body());
        assert!(reader.next().await.is_none());
        let last = reader.last_event_id().to_owned();
        let back = hub.subscribe(T).resume(last.as_str()).into_http_response();
        // It has no id, or one of which it is told the same.
        assert!(last.is_empty() || back.headers().contains_key("tidings-gap"), "{last}");
        assert!(last.is_empty() || last.parse::<tidings::replay::Cursor>().unwrap().position() != 0);
    }
}
