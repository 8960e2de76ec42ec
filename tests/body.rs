//! The body of a subscription's response, frame by frame.

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::poll_immediate};
use http_body::Body;
use http_body_util::BodyExt;
use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};
use tidings::{
    CursorMoves, Event, Hub, KeepAlive, Message, Snapshots, Start, Subscription, SubscriptionBody, Topic, Topics,
    test_util::{Fault, FaultyStore, decode},
};
use tokio::{
    sync::Notify,
    time::{Instant, advance, timeout},
};

const T: Topic = Topic::from_static("t");

fn body(subscription: Subscription) -> Pin<Box<SubscriptionBody>> {
    Box::pin(subscription.into_http_response().into_body())
}

/// The frames that are there, up to where it would wait.
async fn frames(body: &mut Pin<Box<SubscriptionBody>>) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while let Some(Some(frame)) = poll_immediate(body.frame()).await {
        frames.push(frame.unwrap().into_data().unwrap());
    }
    frames
}

#[tokio::test]
async fn a_body_says_that_nothing_follows_once_that_is_so() {
    let hub = Hub::new();
    let mut body = body(hub.subscribe(T));
    frames(&mut body).await;
    assert!(!body.is_end_stream());
    let last = hub.finish(T, None).await.unwrap();
    frames(&mut body).await;
    assert!(body.is_end_stream());
    let complete = hub.subscribe(T).resume(last).into_http_response();
    assert_eq!(complete.status(), 204);
    assert!(complete.into_body().is_end_stream());
}

#[tokio::test]
async fn no_frame_is_empty_whatever_moves_the_id() {
    for cursor_moves in [CursorMoves::IdOnly, CursorMoves::Off] {
        let hub = Hub::builder().cursor_moves(cursor_moves).build();
        let mut body = body(hub.subscribe(T));
        hub.publish(T, Event::new().data("1")).await.unwrap();
        let mut all = frames(&mut body).await;
        hub.finish(T, None).await.unwrap();
        all.extend(frames(&mut body).await);
        assert!(body.is_end_stream());
        assert!(all.iter().all(|frame| !frame.is_empty()), "{all:?}");
    }
}

#[tokio::test]
async fn events_that_wait_are_joined_into_frames_of_a_bounded_size() {
    const MOST: usize = 4096;
    let hub = Hub::builder().window_events(0).build();
    for n in 0..200 {
        hub.publish(T, Event::new().data(format!("{n} {}", "x".repeat(200)))).await.unwrap();
    }
    hub.publish(T, Event::new().data("y".repeat(3 * MOST))).await.unwrap();
    let mut body = body(hub.subscribe(T).start(Start::Earliest));
    let frames = frames(&mut body).await;
    let events: Vec<usize> = frames.iter().map(|frame| decode(frame).len()).collect();
    assert_eq!(events.iter().sum::<usize>(), 201);
    for (frame, events) in frames.iter().zip(&events) {
        assert!(frame.len() <= MOST || *events == 1, "{events} events in {} bytes", frame.len());
    }
    assert!(frames.len() <= 20, "{events:?}");
}

#[tokio::test]
async fn a_body_waits_for_a_store_that_is_slow_to_say_how_it_begins() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    faults.next_read(Fault::Hangs);
    let mut body = body(hub.subscribe(T));
    assert!(frames(&mut body).await.is_empty());
    assert!(frames(&mut body).await.is_empty() && !body.is_end_stream());
    faults.release();
    assert!(frames(&mut body).await[0].starts_with(b"retry: "));
    hub.publish(T, Event::new().data("1")).await.unwrap();
    assert_eq!(frames(&mut body).await.len(), 1);
}

/// Also where several topics have to be put in order, and it waits for nothing but the rest.
#[tokio::test(start_paused = true)]
async fn what_does_not_fit_into_a_frame_follows_at_once() {
    const A: Topic = Topic::from_static("a");
    let hub = Hub::new();
    let mut body = body(hub.subscribe(Topics::new([A, T]).unwrap()));
    frames(&mut body).await;
    for number in 0..9 {
        let data = format!("{number}{}", "x".repeat(470));
        hub.publish(if number % 2 == 0 { A } else { T }, Event::new().data(data)).await.unwrap();
    }
    let got = decode(&frames(&mut body).await.concat());
    assert_eq!(got.len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_made_also_for_a_subscription_that_waited_already() {
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T);
    assert!(subscription.next().now_or_never().is_none());
    let snapshots = Snapshots::new(|_| async { Ok::<_, Infallible>(vec![Event::new().data("state")]) });
    let mut subscription = subscription.snapshot_first(&snapshots);
    assert!(matches!(subscription.next().await, Some(Ok(Message::Snapshot(_)))));
}

#[tokio::test(start_paused = true)]
async fn who_catches_up_is_sent_no_heartbeat_behind_an_event() {
    let hub = Hub::new();
    let mut stalled = body(hub.subscribe(T));
    frames(&mut stalled).await;
    let id = hub.publish(T, Event::new().data("1")).await.unwrap();
    hub.publish(T, Event::new().data("2")).await.unwrap();
    advance(Duration::from_secs(60)).await;
    let mut resumed = body(hub.subscribe(T).resume(id));
    for body in [&mut resumed, &mut stalled] {
        let got = frames(body).await.concat();
        assert!(!got.starts_with(b":") && !got.windows(2).any(|two| two == b"\n:"), "{got:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_have_intervals_of_any_length() {
    for interval in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1), Duration::from_millis(3)] {
        let hub = Hub::builder().keep_alive(KeepAlive::new().interval(interval)).build();
        let mut body = body(hub.subscribe(T));
        body.frame().await.unwrap().unwrap();
        for _ in 0..100 {
            let begin = Instant::now();
            body.frame().await.unwrap().unwrap();
            // The timer's resolution is a millisecond.
            assert!(!begin.elapsed().is_zero() && begin.elapsed() <= interval + Duration::from_millis(2));
        }
    }
    for interval in [Duration::MAX, Duration::MAX / 2, Duration::from_secs(1 << 40)] {
        let hub = Hub::builder().keep_alive(KeepAlive::new().interval(interval)).build();
        let mut body = body(hub.subscribe(T));
        body.frame().await.unwrap().unwrap();
        assert!(timeout(Duration::from_secs(3600), body.frame()).await.is_err());
    }
}

/// It is another's, begun before what this subscription has seen since: that comes again, behind it.
#[tokio::test(start_paused = true)]
async fn what_came_after_a_shared_snapshot_was_begun_follows_it() {
    let (hub, ready) = (Hub::new(), Arc::new(Notify::new()));
    let wait = Arc::clone(&ready);
    let snapshots = Snapshots::new(move |_| {
        let wait = Arc::clone(&wait);
        async move {
            wait.notified().await;
            Ok::<_, Infallible>(vec![Event::new().data("state")])
        }
    });
    let mut other = hub.subscribe(T).snapshot_first(&snapshots);
    let mut subscription = hub.subscribe(T);
    assert!(other.next().now_or_never().is_none());
    hub.publish(T, Event::new().data("1")).await.unwrap();
    assert!(matches!(subscription.next().await, Some(Ok(Message::Event(_)))));
    assert!(subscription.next().now_or_never().is_none());
    let mut subscription = subscription.snapshot_first(&snapshots);
    assert!(subscription.next().now_or_never().is_none());
    ready.notify_one();
    assert!(matches!(other.next().await, Some(Ok(Message::Snapshot(_)))));
    assert!(matches!(subscription.next().await, Some(Ok(Message::Snapshot(_)))));
    assert!(matches!(subscription.next().now_or_never(), Some(Some(Ok(Message::Event(_))))));
}
