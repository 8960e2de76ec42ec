//! What `axum::response::sse` of today makes of awkward input, and what this crate makes of it.

use axum::response::{IntoResponse, sse};
use futures_util::stream;
use std::{convert::Infallible, panic::catch_unwind};
use tidings::{Event, EventId, EventType, Sse, test_util};

/// What a client reads of an axum event.
async fn through_axum(event: sse::Event) -> Vec<test_util::Received> {
    let response = sse::Sse::new(stream::iter([Ok::<_, Infallible>(event)])).into_response();
    test_util::decode(&axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap())
}

/// What a client reads of an event of this crate.
async fn through_tidings(event: Event) -> Vec<test_util::Received> {
    let response = IntoResponse::into_response(Sse::new(stream::iter([event])));
    test_util::decode(&axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap())
}

fn data(events: &[test_util::Received]) -> Vec<&str> {
    events.iter().map(|event| event.data.as_str()).collect()
}

/// `catch_unwind` without the panic's report in the test's output.
fn panics<T>(make: impl FnOnce() -> T + std::panic::UnwindSafe) -> bool {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let panicked = catch_unwind(make).is_err();
    std::panic::set_hook(report);
    panicked
}

#[tokio::test]
async fn crlf_is_one_line_break() {
    assert_eq!(data(&through_axum(sse::Event::default().data("a\r\nb")).await), ["a\n\nb"], "axum: two");
    assert_eq!(data(&through_tidings(Event::new().data("a\r\nb")).await), ["a\nb"]);
}

#[tokio::test]
async fn empty_data_is_a_message() {
    assert!(through_axum(sse::Event::default().data("")).await.is_empty(), "axum: lost without a word");
    assert_eq!(data(&through_tidings(Event::new().data("")).await), [""]);
}

#[test]
fn awkward_fields_are_errors_and_not_panics() {
    assert!(panics(|| sse::Event::default().event("a\nb")));
    assert!(EventType::new("a\nb").is_err());
    assert!(panics(|| sse::Event::default().id("a\0b")));
    assert!(EventId::new("a\0b").is_err());
    assert!(panics(|| sse::Event::default().comment("a\nb")));
    assert_eq!(Event::new().comment("a\nb").encode(None), ": a\n: b\n");
    assert!(panics(|| sse::Event::default().data("a").data("b")));
    assert_eq!(Event::new().data("a").data("b").encode(None), "data: b\n\n");
}
