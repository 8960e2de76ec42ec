//! Hubs on one log.

use crate::{A, B, DEADLINE, fresh, open, support::redis::Redis, until};
use std::time::Duration;
use tidings::{
    EndReason, Event, Hub, HubBuilder, KeepAlive, Message, Subscription, SubscriptionBody,
    test_util::{EventReader, next_message},
};
use tokio::{task::JoinSet, time::timeout};

/// Clients are cut again and again, and come back to another node with their last id; the channel is cut as well.
#[tokio::test(flavor = "multi_thread")]
async fn clients_who_move_between_nodes_have_every_event_once_and_in_one_order() {
    const EVENTS: usize = 600;
    let redis = Redis::start().await;
    let name = fresh();
    let mut hubs = Vec::new();
    for window in [1024, 20, 100] {
        hubs.push(Hub::builder().window_events(window).open(open(&redis, &name).await).await.unwrap());
    }
    let start = hubs[0].subscribe(A).cursor().unwrap();
    let mut publishers = JoinSet::new();
    for n in 0..6 {
        let hub = hubs[n % 3].clone();
        publishers.spawn(async move {
            for event in 0..EVENTS / 6 {
                hub.publish(A, Event::new().data(format!("{n}.{event}"))).await.unwrap();
            }
        });
    }
    let mut clients = JoinSet::new();
    for n in 0..10 {
        let hubs = hubs.clone();
        clients.spawn(async move {
            let (mut seen, mut at) = (Vec::new(), start);
            for round in n.. {
                let mut subscription = hubs[round % 3].subscribe(A).resume(at);
                for _ in 0..=fastrand::usize(..40) {
                    match timeout(DEADLINE, next_message(&mut subscription)).await.unwrap().unwrap() {
                        Message::Event(event) => {
                            at = event.cursor();
                            seen.push((at, event.record().data().unwrap().into_owned()));
                        }
                        other => panic!("{other:?}"),
                    }
                    if seen.len() == EVENTS {
                        return seen;
                    }
                }
            }
            seen
        });
    }
    for _ in 0..5 {
        let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    publishers.join_all().await;
    let seen = clients.join_all().await;
    assert!(seen.iter().all(|events| *events == seen[0]));
}

async fn hub_on(redis: &Redis, name: &str, builder: HubBuilder) -> Hub {
    let store = crate::builder(redis, name).deadline(Duration::from_millis(500)).events_per_topic(100);
    let hub = builder.open(store.open().await.unwrap()).await.unwrap();
    until("the feed should be there", async || hub.stats().feed.is_some_and(|feed| feed.connected)).await;
    hub
}

fn reader(subscription: Subscription) -> EventReader<SubscriptionBody> {
    EventReader::new(subscription.into_http_response().into_body())
}

async fn next_data(reader: &mut EventReader<SubscriptionBody>) -> String {
    timeout(DEADLINE, reader.next()).await.expect("an event").expect("no end").data
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_streams_stay_the_window_serves_and_the_rest_comes_back_later() {
    let mut redis = Redis::durable().await;
    let beat = KeepAlive::new().interval(Duration::from_millis(100));
    let settings = || Hub::builder().window_events(10).keep_alive(beat.clone()).retry(Duration::from_secs(2));
    let name = fresh();
    let hubs = [hub_on(&redis, &name, settings()).await, hub_on(&redis, &name, settings()).await];
    let mut streams = hubs.each_ref().map(|hub| reader(hub.subscribe(A)));
    let mut ids = Vec::new();
    for n in 0..30 {
        ids.push(hubs[n % 2].publish(A, Event::new().data(n.to_string())).await.unwrap());
    }
    for stream in &mut streams {
        for n in 0..30 {
            assert_eq!(next_data(stream).await, n.to_string());
        }
    }

    redis.kill();
    until("both nodes should know", async || hubs.iter().all(|hub| !hub.stats().feed.unwrap().connected)).await;
    // Publishers are told, within the deadline of the store and not for ever.
    let error = timeout(DEADLINE, hubs[0].publish(A, Event::new().data("away"))).await.unwrap().unwrap_err();
    assert!(!error.is_finished() && !error.is_closed(), "{error:?}");
    // Streams stay, with their heartbeats.
    for stream in &mut streams {
        let before = stream.comments().len();
        let nothing = timeout(Duration::from_millis(500), stream.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        assert!(stream.comments().len() >= before + 2, "heartbeats");
    }
    // Who comes back to what the window has is served; who needs the log is told when to come back.
    let mut near = reader(hubs[0].subscribe(A).resume(ids[25]));
    for n in 26..30 {
        assert_eq!(next_data(&mut near).await, n.to_string());
    }
    let far = hubs[0].subscribe(A).resume(ids[5]).opened().await;
    assert!(far.is_err_and(|error| error.is_read()));

    redis.start_again().await;
    until("both nodes should be back", async || hubs.iter().all(|hub| hub.stats().feed.unwrap().connected)).await;
    hubs[1].publish(A, Event::new().data("back")).await.unwrap();
    for stream in streams.iter_mut().chain([&mut near]) {
        // What was answered as unknown may have been stored after all.
        let mut data = next_data(stream).await;
        if data == "away" {
            data = next_data(stream).await;
        }
        assert_eq!(data, "back");
    }
    let mut far = reader(hubs[0].subscribe(A).resume(ids[5]));
    assert_eq!(next_data(&mut far).await, "6");
    assert!(hubs.iter().all(|hub| hub.stats().gaps.reports == 0), "nothing was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hubs_tell_each_other_crosses_nodes() {
    const BYE: EndReason = EndReason::application("logged-out");
    let redis = Redis::start().await;
    let name = fresh();
    let settings = || Hub::builder().client_heartbeats(DEADLINE).announce_ends();
    let [one, two] = [hub_on(&redis, &name, settings()).await, hub_on(&redis, &name, settings()).await];
    let mut stream = reader(one.subscribe(A).label("user", "ann"));
    let session = timeout(DEADLINE, stream.next()).await.unwrap().unwrap();
    let session: serde_json::Value = serde_json::from_str(&session.data).unwrap();
    two.publish(A, Event::new().data("1")).await.unwrap();
    assert_eq!(next_data(&mut stream).await, "1");

    two.publish_ephemeral(A, Event::new().data("typing")).unwrap();
    two.publish(A, Event::new().data("2")).await.unwrap();
    assert_eq!((next_data(&mut stream).await, next_data(&mut stream).await), ("typing".into(), "2".into()));

    let token = session["token"].as_str().unwrap().to_owned();
    let handler = two.heartbeat_handler();
    let post = async |token: String| {
        let request = http::Request::post("/").body(http_body_util::Full::new(bytes::Bytes::from(token))).unwrap();
        timeout(DEADLINE, tower_service::Service::call(&mut handler.clone(), request)).await.unwrap().unwrap().status()
    };
    assert_eq!(post(token).await, 204);
    let pong = timeout(DEADLINE, stream.next()).await.unwrap().unwrap();
    assert_eq!((pong.event_type.as_str(), pong.data.as_str()), ("tidings-pong", "1"));
    assert_eq!(post("0".repeat(48)).await, 404);

    let producer = one.producer(B);
    assert!(!two.stop(B));
    timeout(DEADLINE, producer.stopped()).await.unwrap();

    assert_eq!(two.end_labelled("user", "ann", BYE), 0, "none of them is here");
    assert_eq!(next_data(&mut stream).await, r#"{"reason":"logged-out"}"#);
    assert!(timeout(DEADLINE, stream.next()).await.unwrap().is_none());
    assert_eq!(two.stats().store_errors.notify, 0);
}
