//! One stream as a response: what it may yield, how it fails, and its heartbeats.

use futures_util::{FutureExt, StreamExt, future::poll_immediate, stream};
use http_body_util::BodyExt;
use std::{convert::Infallible, fmt, time::Duration};
use tidings::{Beat, Event, EventId, EventType, KeepAlive, KeepAliveStream, Sse, test_util::EventReader};
use tokio::{sync::mpsc, time::Instant};

fn event(text: &str) -> Event {
    Event::new().data(text)
}

#[derive(Debug, PartialEq)]
struct Broken(&'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Broken {}

async fn text(body: impl http_body::Body<Data = bytes::Bytes, Error: fmt::Debug>) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn receiver<T>(mut receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> {
    stream::poll_fn(move |cx| receiver.poll_recv(cx))
}

#[tokio::test]
async fn a_stream_may_yield_events_or_pairs_or_results_of_either() {
    let id = || EventId::from(7);
    let plain = Sse::new(stream::iter([event("a")]));
    assert_eq!(text(plain.into_body()).await, "data: a\n\n");
    let pairs = Sse::new(stream::iter([(id(), event("a"))]));
    assert_eq!(text(pairs.into_body()).await, "data: a\nid: 7\n\n");
    let results = Sse::new(stream::iter([Ok::<_, Infallible>(event("a"))]));
    assert_eq!(text(results.into_body()).await, "data: a\n\n");
    let result_pairs = Sse::new(stream::iter([Ok::<_, Infallible>((id(), event("a")))]));
    assert_eq!(text(result_pairs.into_body()).await, "data: a\nid: 7\n\n");
}

#[tokio::test]
async fn the_response_is_an_event_stream_that_nobody_caches_transforms_or_buffers() {
    let response = Sse::new(stream::pending::<Event>()).into_http_response();
    assert_eq!(response.status(), 200);
    let headers = response.headers();
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(headers["cache-control"], "no-cache, no-transform");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert_eq!(headers.len(), 3, "never `connection` or `content-length`");
    let response = Sse::new(stream::pending::<Event>()).allow_accel_buffering().into_http_response();
    assert!(!response.headers().contains_key("x-accel-buffering"));
}

#[tokio::test]
async fn events_that_are_ready_together_are_one_frame_and_none_waits_for_another() {
    let (sender, events) = mpsc::channel(1000);
    let mut body = Box::pin(Sse::new(receiver(events)).into_body());
    for n in 0..3 {
        sender.send(event(&n.to_string())).await.unwrap();
    }
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frame, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    sender.send(event("3")).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 3\n\n");
}

#[tokio::test]
async fn frames_stay_near_four_kibibytes() {
    let many = stream::iter((0..1000).map(|_| event(&"x".repeat(100))));
    let mut body = Box::pin(Sse::new(many).into_body());
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!((4096..4096 + 108).contains(&frame.len()), "{}", frame.len());
}

#[tokio::test]
async fn events_of_any_length_are_sent_as_they_are_encoded() {
    let event = |len: usize| (EventId::from(len as u64), event(&"x".repeat(len)));
    let lens = || (0..3000).step_by(97).chain(3000..6000);
    let expected: Vec<u8> = lens().map(event).flat_map(|(id, event)| event.encode(Some(&id))).collect();
    let mut body = Box::pin(Sse::new(stream::iter(lens().map(event))).into_body());
    let mut sent = Vec::new();
    while let Some(frame) = body.frame().await {
        sent.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert!(sent == expected);
}

#[tokio::test]
async fn an_error_ends_the_body_with_an_error_after_what_came_before() {
    let items = [Ok(event("a")), Err(Broken("disk")), Ok(event("never"))];
    let mut reader = EventReader::new(Sse::new(stream::iter(items)).into_body());
    assert_eq!(reader.next().await.unwrap().data, "a");
    assert_eq!(reader.try_next().await, Err(Broken("disk")));
    assert_eq!(reader.try_next().await, Ok(None));
}

#[tokio::test]
async fn the_application_may_make_a_last_event_from_the_error() {
    let items = [Ok(event("a")), Err(Broken("disk"))];
    let last = |error: &Broken| Some(Event::new().event_type(EventType::from_static("failed")).data(error.to_string()));
    let mut reader = EventReader::new(Sse::new(stream::iter(items)).on_error(last).into_body());
    assert_eq!(reader.next().await.unwrap().data, "a");
    let last = reader.next().await.unwrap();
    assert_eq!((last.event_type.as_str(), last.data.as_str()), ("failed", "disk"));
    assert_eq!(reader.try_next().await, Err(Broken("disk")));
}

#[tokio::test]
async fn the_body_yields_once_before_it_fails_so_that_hyper_can_flush() {
    let items = [Ok(event("a")), Err(Broken("disk"))];
    let mut body = Box::pin(Sse::new(stream::iter(items)).into_body());
    assert!(poll_immediate(body.frame()).await.unwrap().unwrap().is_ok());
    assert!(poll_immediate(body.frame()).await.is_none(), "pending once");
    assert!(poll_immediate(body.frame()).await.unwrap().unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_sends_a_heartbeat_every_interval() {
    let start = Instant::now();
    let mut body = Box::pin(Sse::new(stream::pending::<Event>()).into_body());
    for beat in 1..=3 {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), ":\n");
        assert_eq!(start.elapsed(), Duration::from_secs(15) * beat, "15 seconds is the default");
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_stream_sends_no_heartbeat_and_the_interval_begins_with_its_last_event() {
    let (sender, events) = mpsc::channel(1);
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(10));
    let mut stream = std::pin::pin!(KeepAliveStream::new(receiver(events), keep_alive));
    let start = Instant::now();
    tokio::spawn(async move {
        for n in 0..5 {
            tokio::time::sleep(Duration::from_secs(6)).await;
            sender.send(n).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    for n in 0..5 {
        assert!(matches!(stream.next().await, Some(Beat::Item(item)) if item == n));
    }
    assert_eq!(start.elapsed(), Duration::from_secs(30));
    assert!(matches!(stream.next().await, Some(Beat::Heartbeat(_))));
    assert_eq!(start.elapsed(), Duration::from_secs(40));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_stand_between_events() {
    let (sender, events) = mpsc::channel(1);
    let mut reader = EventReader::new(Sse::new(receiver(events)).into_body());
    tokio::spawn(async move {
        for n in 0..3 {
            tokio::time::sleep(Duration::from_secs(40)).await;
            sender.send(Event::new().data(format!("{n}\n{n}"))).await.unwrap();
        }
    });
    for n in 0..3 {
        assert_eq!(reader.next().await.unwrap().data, format!("{n}\n{n}"));
        assert_eq!(reader.comments().len(), 2 * (n + 1));
    }
    assert_eq!(reader.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_wakes_whoever_polled_last() {
    let start = Instant::now();
    let mut body = Box::pin(Sse::new(stream::pending::<Event>()).into_body());
    assert!(poll_immediate(body.frame()).await.is_none());
    assert!(body.frame().now_or_never().is_none(), "by another waker");
    let woken = tokio::spawn(async move { body.frame().await.unwrap().unwrap().into_data().unwrap() });
    assert_eq!(woken.await.unwrap(), ":\n");
    assert_eq!(start.elapsed(), Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_can_be_off() {
    let mut body = Box::pin(Sse::new(stream::pending::<Event>()).keep_alive(KeepAlive::off()).into_body());
    let day = Duration::from_secs(86_400);
    assert!(tokio::time::timeout(day, body.frame()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_interval_without_end_never_beats_and_a_zero_interval_does_not_spin() {
    let forever = KeepAlive::new().interval(Duration::MAX);
    let mut body = Box::pin(Sse::new(stream::pending::<Event>()).keep_alive(forever).into_body());
    assert!(tokio::time::timeout(Duration::from_secs(86_400), body.frame()).await.is_err());
    let zero = KeepAlive::new().interval(Duration::ZERO);
    let mut body = Box::pin(Sse::new(stream::pending::<Event>()).keep_alive(zero).into_body());
    let start = Instant::now();
    for _ in 0..10 {
        body.frame().await.unwrap().unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(10));
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn it_is_an_axum_response() {
    use axum::response::IntoResponse;
    let stream = stream::iter([Ok(event("a")), Err(Broken("disk"))]);
    let response = IntoResponse::into_response(Sse::new(stream));
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut reader = EventReader::new(response.into_body());
    assert_eq!(reader.next().await.unwrap().data, "a");
    assert!(reader.try_next().await.is_err());
}
