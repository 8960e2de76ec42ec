//! Settings of a hub and of one subscription: each changes what it says.

use http::Request;
use http_body_util::BodyExt as _;
use std::time::Duration;
use tidings::{
    Event, Hub, KeepAlive, Names, Subscription, Topic,
    test_util::{EventReader, Fault, FaultyStore, next_event},
};
use tokio::time::{Instant, sleep, timeout};

const T: Topic = Topic::from_static("t");
const SECOND: Duration = Duration::from_secs(1);

/// How many empty heartbeats there are in a minute.
async fn beats(subscription: Subscription) -> usize {
    let mut reader = EventReader::new(subscription.into_http_response().into_body());
    assert!(timeout(60 * SECOND + SECOND / 2, reader.next()).await.is_err());
    reader.comments().len()
}

/// The reconnection time that a client is told.
async fn retry(subscription: Subscription) -> Duration {
    let mut reader = EventReader::new(subscription.into_http_response().into_body());
    assert!(timeout(SECOND, reader.next()).await.is_err());
    Duration::from_millis(reader.retry_ms().unwrap())
}

#[tokio::test(start_paused = true)]
async fn heartbeats_of_a_hub_and_of_a_subscription() {
    let every = |seconds| KeepAlive::new().interval(seconds * SECOND);
    let hub = Hub::new();
    assert_eq!(beats(hub.subscribe(T)).await, 4);
    let hub = Hub::builder().keep_alive(every(10)).build();
    assert_eq!(beats(hub.subscribe(T)).await, 6);
    assert_eq!(beats(hub.subscribe(T).keep_alive(every(30))).await, 2);
}

#[tokio::test(start_paused = true)]
async fn reconnection_times_of_a_hub_and_of_a_subscription() {
    let hub = Hub::builder().retry(100 * SECOND).build();
    assert!((50 * SECOND..=150 * SECOND).contains(&retry(hub.subscribe(T)).await));
    assert!((500 * SECOND..=1500 * SECOND).contains(&retry(hub.subscribe(T).retry(1000 * SECOND)).await));
}

#[tokio::test]
async fn a_subscription_resumes_from_a_request_by_the_names_of_its_hub() {
    let names = Names { last_event_id_parameter: "from".into(), ..Names::default() };
    let hub = Hub::builder().names(names).build();
    let first = hub.publish(T, Event::new().data("1")).await.unwrap();
    let second = hub.publish(T, Event::new().data("2")).await.unwrap();
    let by_parameter = Request::get(format!("/?from={first}"));
    let by_header = Request::get("/").header("last-event-id", first.to_string());
    for request in [by_parameter, by_header] {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut subscription = hub.subscribe(T).for_request(&parts);
        assert_eq!(next_event(&mut subscription).await.cursor(), second);
    }
}

#[tokio::test(start_paused = true)]
async fn how_long_a_publisher_waits_for_a_store() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().append_timeout(2 * SECOND).open(store).await.unwrap();
    faults.next_append(Fault::Hangs);
    let start = Instant::now();
    assert!(hub.publish(T, Event::new()).await.unwrap_err().is_unknown());
    assert_eq!(start.elapsed(), 2 * SECOND);
}

#[tokio::test]
async fn how_much_is_kept_ready_to_be_sent() {
    let all = Hub::builder;
    for (builder, ready) in [(all(), true), (all().window_bytes(5_000), false), (all().window_events(5), false)] {
        let (store, faults) = FaultyStore::new();
        let hub = builder.open(store).await.unwrap();
        let mut slow = hub.subscribe(T).opened().await.unwrap();
        let reads = faults.reads();
        for n in 0..10 {
            hub.publish(T, Event::new().data(format!("{n}{}", "x".repeat(1000)))).await.unwrap();
        }
        for n in 0..10 {
            assert!(next_event(&mut slow).await.record().data().unwrap().starts_with(&n.to_string()));
        }
        assert_eq!(faults.reads() == reads, ready, "what is not ready is read from the store");
    }
}

/// Those who had the same event are silent since the same moment.
#[tokio::test(start_paused = true)]
async fn the_heartbeats_of_many_are_spread_after_an_event_that_all_had() {
    const CLIENTS: usize = 1000;
    let (hub, start) = (Hub::builder().keep_alive(KeepAlive::new().interval(8 * SECOND)).build(), Instant::now());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut body = Box::pin(hub.subscribe(T).into_http_response().into_body());
            tokio::spawn(async move {
                let mut beats = Vec::new();
                while let Some(Ok(frame)) = body.frame().await {
                    if frame.data_ref().is_some_and(|bytes| bytes.starts_with(b":")) {
                        beats.push(start.elapsed());
                    }
                }
                beats
            })
        })
        .collect();
    sleep(5 * SECOND).await;
    hub.publish(T, Event::new().data("1")).await.unwrap();
    sleep(30 * SECOND).await;
    hub.close();
    let mut first = Vec::new();
    for client in clients {
        let beats = client.await.unwrap();
        assert!(beats.windows(2).all(|two| two[1] == two[0] + 8 * SECOND), "{beats:?}");
        first.push(beats[0]);
    }
    assert!(first.iter().all(|beat| (12 * SECOND..=13 * SECOND + SECOND / 100).contains(beat)));
    let most =
        (0..10).map(|tenth| first.iter().filter(|beat| (beat.as_millis() - 12_000) / 100 == tenth).count()).max();
    assert!(most.unwrap() < CLIENTS / 5, "{most:?} in a tenth of the time in which they are spread");
}
