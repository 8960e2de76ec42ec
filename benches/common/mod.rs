//! What the benchmarks share: events, hubs, and response bodies that are polled by hand.
#![allow(dead_code, reason = "each benchmark uses its own part of this")]

use axum::response::{
    IntoResponse as _,
    sse::{self, KeepAlive},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body::Body;
use std::{
    convert::Infallible,
    fmt::Debug,
    hint::black_box,
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};
use tidings::{Event, EventType, Hub, Sse, SubscriptionBody, Topic};
use tokio::{
    runtime::{Builder, Runtime},
    sync::broadcast,
};
use tokio_stream::wrappers::BroadcastStream;

pub(crate) const UPDATE: EventType = EventType::from_static("update");
pub(crate) const NEWS: Topic = Topic::from_static("news");

/// What a client that resumes has missed.
pub(crate) const MISSED: usize = 1000;

pub(crate) fn text(bytes: usize) -> Arc<str> {
    "x".repeat(bytes).into()
}

pub(crate) fn event(text: &str) -> Event {
    Event::new().event_type(UPDATE).data(text)
}

pub(crate) fn axum_event(id: u64, text: &str) -> sse::Event {
    sse::Event::default().id(itoa::Buffer::new().format(id)).event(UPDATE.as_str()).data(text)
}

/// To be entered where bodies are polled: their heartbeats need a timer. Nothing drives it, so none is ever due.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Lets the log of each of the topics be full, as it is after some time: what comes lets something old go.
pub(crate) fn fill(hub: Hub, topics: &[Topic]) -> Hub {
    let text = text(128);
    for topic in topics {
        (0..10_000).for_each(|_| publish(&hub, topic, &text));
    }
    hub
}

pub(crate) fn publish(hub: &Hub, topic: &Topic, text: &str) {
    hub.publish_now(topic, event(black_box(text))).unwrap();
}

pub(crate) fn poll<B>(body: &mut B) -> Poll<Option<Bytes>>
where
    B: Body<Data = Bytes, Error: Debug> + Unpin,
{
    let frame = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
    frame.map(|frame| frame.map(|frame| frame.unwrap().into_data().unwrap()))
}

/// What a connection does for an event: it takes the frame, and finds that there is no other.
pub(crate) fn deliver<B>(body: &mut B)
where
    B: Body<Data = Bytes, Error: Debug> + Unpin,
{
    let Poll::Ready(Some(frame)) = poll(body) else { panic!("nothing to deliver") };
    black_box(frame);
    assert!(poll(body).is_pending());
}

/// Takes frames until there is none, and says how many bytes they had.
pub(crate) fn read<B>(body: &mut B) -> usize
where
    B: Body<Data = Bytes, Error: Debug> + Unpin,
{
    let mut bytes = 0;
    while let Poll::Ready(Some(frame)) = poll(body) {
        bytes += black_box(frame).len();
    }
    bytes
}

/// A subscriber that has its opening.
pub(crate) fn subscriber(hub: &Hub, topic: &Topic) -> Pin<Box<SubscriptionBody>> {
    let mut body = Box::pin(hub.subscribe(topic).into_http_response().into_body());
    deliver(&mut body);
    body
}

/// The same with axum: the payload is shared, and each subscriber makes an event of it.
pub(crate) fn axum_subscriber(sender: &broadcast::Sender<(u64, Arc<str>)>) -> axum::body::Body {
    let received = BroadcastStream::new(sender.subscribe());
    let events = received.map(|received| received.map(|(id, text)| axum_event(id, &text)));
    sse::Sse::new(events).keep_alive(KeepAlive::default()).into_response().into_body()
}

/// A hub that has published to `NEWS` what a client missed, and the id of the last event that the client has.
pub(crate) fn hub_with_missed(hub: Hub) -> (Hub, String) {
    let text = text(128);
    let last = hub.publish_now(NEWS, event(&text)).unwrap();
    for _ in 0..MISSED {
        publish(&hub, &NEWS, &text);
    }
    (hub, last.to_string())
}

/// The client that comes back.
pub(crate) fn resumed(hub: &Hub, id: &str) -> Pin<Box<SubscriptionBody>> {
    Box::pin(hub.subscribe(NEWS).resume(id).into_http_response().into_body())
}

/// What a language model's API sends for one token.
pub(crate) const TOKEN: &str = r#"{"token":" word"}"#;

/// A stream that yields one item each time the flag is set, and is pending otherwise.
pub(crate) fn one_by_one<T>(ready: Arc<AtomicBool>, item: impl Fn() -> T) -> impl Stream<Item = T> {
    stream::poll_fn(move |_| {
        if !ready.load(Relaxed) {
            return Poll::Pending;
        }
        ready.store(false, Relaxed);
        Poll::Ready(Some(item()))
    })
}

pub(crate) fn sse(
    events: impl Stream<Item = Event> + Send + 'static,
) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
    Box::pin(Sse::new(events).into_http_response().into_body())
}

pub(crate) fn axum_sse(events: impl Stream<Item = sse::Event> + Send + 'static) -> axum::body::Body {
    let events = events.map(Ok::<_, Infallible>);
    sse::Sse::new(events).keep_alive(KeepAlive::default()).into_response().into_body()
}

/// Enters a runtime for the rest of the process.
pub(crate) fn enter_for_good() {
    mem::forget(Box::leak(Box::new(runtime())).enter());
}
