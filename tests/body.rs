//! The body of a subscription's response, frame by frame.

use bytes::Bytes;
use futures_util::future::poll_immediate;
use http_body::Body;
use http_body_util::BodyExt;
use std::pin::Pin;
use tidings::{
    CursorMoves, Event, Hub, Start, Subscription, SubscriptionBody, Topic,
    test_util::{Fault, FaultyStore, decode},
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
