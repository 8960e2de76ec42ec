//! [`Sse`]: any stream of events as an HTTP body and a response, for hyper and axum alike.
//!
//! It knows how a stream becomes frames: events that are ready together are sent together, up to a cap, and nothing is
//! held back in order to be joined.

use crate::{
    Event, EventId,
    encode::Lines,
    keep_alive::{KeepAlive, KeepAliveStream},
};
use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// Events that are ready together are joined until a frame has this many bytes. hyper keeps up to 16 frames for a
/// reader that is behind, and writes them with one system call: larger frames would cost memory and gain nothing.
pub(crate) const FRAME_TARGET: usize = 4 * 1024;

/// A stream that is always ready and has nothing to say gives way to others after so many items.
const MOST_POLLS: usize = 1024;

/// What tells nginx not to buffer the response.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The media type of an event stream.
pub(crate) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Sets the headers of every event stream: its type, no caching and no transformation on the way, no buffering in nginx.
///
/// Never `connection` or `content-length`, which belong to the HTTP library.
pub(crate) fn set_headers(headers: &mut HeaderMap, accel_buffering: bool) {
    // hyper keeps this memory for as long as the connection lives. Unasked, it would be for six.
    headers.reserve(3);
    headers.insert(header::CONTENT_TYPE, EVENT_STREAM);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    if !accel_buffering {
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    }
}

/// What a stream of events may yield: an [`Event`], an `(EventId, Event)`, a `Result` of one of them, or a type of your own.
pub trait SseItem {
    /// The stream's error; [`Infallible`] where it has none.
    type Error;

    /// The event and its id, if it has one.
    ///
    /// # Errors
    ///
    /// When the stream failed: this is then its last item.
    fn into_parts(self) -> Result<(Option<EventId>, Event), Self::Error>;
}

impl SseItem for Event {
    type Error = Infallible;

    fn into_parts(self) -> Result<(Option<EventId>, Event), Infallible> {
        Ok((None, self))
    }
}

impl SseItem for (EventId, Event) {
    type Error = Infallible;

    fn into_parts(self) -> Result<(Option<EventId>, Event), Infallible> {
        Ok((Some(self.0), self.1))
    }
}

impl<E> SseItem for Result<Event, E> {
    type Error = E;

    fn into_parts(self) -> Result<(Option<EventId>, Event), E> {
        self.map(|event| (None, event))
    }
}

impl<E> SseItem for Result<(EventId, Event), E> {
    type Error = E;

    fn into_parts(self) -> Result<(Option<EventId>, Event), E> {
        self.map(|(id, event)| (Some(id), event))
    }
}

type OnError<E> = Box<dyn FnOnce(&E) -> Option<Event> + Send>;

/// One stream of events as a response.
///
/// For a stream that one client reads once: the progress of a job, the tokens of an answer. Where clients come and go
/// and share events, use a [`Hub`](crate::Hub).
///
/// The stream may yield [`Event`] or `(EventId, Event)`, or a `Result` of either. With feature `axum`, `Sse` is
/// `IntoResponse`; elsewhere, [`into_http_response`](Self::into_http_response) makes an [`http::Response`] whose body is an
/// [`http_body::Body`].
///
/// ```
/// use tidings::{Event, Sse};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let stream = futures_util::stream::iter(["one", "two"].map(|text| Event::new().data(text)));
/// let response = Sse::new(stream).into_http_response();
/// assert_eq!(response.headers()["content-type"], "text/event-stream");
/// # })
/// ```
///
/// # When the stream ends
///
/// An `EventSource` reconnects after every end, clean or not, and your handler runs again. Read such a stream with `fetch`,
/// or send a last event on which the page calls `close()`. If the work must not run twice, publish it to a topic of its
/// own, [`finish`](crate::Hub::finish) that, and let clients follow it from [`Start::Earliest`](crate::Start): then 204
/// stops the client.
///
/// # When the stream fails
///
/// The response ends with a body error, so that no client takes it for complete. What was yielded before is sent first,
/// and [`on_error`](Self::on_error) can add a last event that says what happened.
#[must_use = "a response does nothing unless it is served"]
pub struct Sse<S>
where
    S: Stream<Item: SseItem>,
{
    stream: S,
    keep_alive: KeepAlive,
    on_error: Option<OnError<<S::Item as SseItem>::Error>>,
    accel_buffering: bool,
}

impl<S> Sse<S>
where
    S: Stream<Item: SseItem>,
{
    /// A response that sends what `stream` yields, with a heartbeat after every 15 idle seconds.
    pub fn new(stream: S) -> Self {
        Self { stream, keep_alive: KeepAlive::new(), on_error: None, accel_buffering: false }
    }

    /// Sets the heartbeats. Default: [`KeepAlive::new`]; none: [`KeepAlive::off`].
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Makes a last event from the stream's error, sent before the body fails. Default: none.
    pub fn on_error(
        mut self,
        last_event: impl FnOnce(&<S::Item as SseItem>::Error) -> Option<Event> + Send + 'static,
    ) -> Self {
        self.on_error = Some(Box::new(last_event));
        self
    }

    /// Lets nginx decide about buffering: leaves out `x-accel-buffering: no`. Default: the header is sent.
    pub fn allow_accel_buffering(mut self) -> Self {
        self.accel_buffering = true;
        self
    }

    /// The response for hyper, or for anything that takes an [`http::Response`].
    pub fn into_http_response(self) -> Response<SseBody<S>> {
        let accel_buffering = self.accel_buffering;
        let mut response = Response::new(self.into_body());
        set_headers(response.headers_mut(), accel_buffering);
        response
    }

    /// Only the body, for a response with a head of your own.
    pub fn into_body(self) -> SseBody<S> {
        SseBody {
            stream: KeepAliveStream::new(self.stream, self.keep_alive),
            on_error: self.on_error,
            state: State::Streaming,
        }
    }
}

impl<S> fmt::Debug for Sse<S>
where
    S: Stream<Item: SseItem>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sse").field("keep_alive", &self.keep_alive).finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of an [`Sse`] response.
    pub struct SseBody<S>
    where
        S: Stream,
        S::Item: SseItem,
    {
        #[pin]
        stream: KeepAliveStream<S>,
        on_error: Option<OnError<<S::Item as SseItem>::Error>>,
        state: State<<S::Item as SseItem>::Error>,
    }
}

enum State<E> {
    Streaming,
    Failed(E),
    /// The error waits for one more poll, because hyper throws away the frames that it has not flushed when a body
    /// fails.
    Flushed(E),
    Ended,
}

impl<S> Body for SseBody<S>
where
    S: Stream,
    S::Item: SseItem,
{
    type Data = Bytes;
    type Error = <S::Item as SseItem>::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        let (mut frame, mut polls) = (Lines::default(), 0);
        while frame.len() < FRAME_TARGET && matches!(this.state, State::Streaming) {
            polls += 1;
            if polls > MOST_POLLS {
                cx.waker().wake_by_ref();
                if frame.len() == 0 {
                    return Poll::Pending;
                }
                break;
            }
            match this.stream.as_mut().stream().poll_next(cx) {
                Poll::Ready(Some(item)) => match item.into_parts() {
                    Ok((id, event)) => event.join(id.as_ref(), &mut frame, FRAME_TARGET),
                    Err(error) => {
                        if let Some(event) = this.on_error.take().and_then(|last_event| last_event(&error)) {
                            event.join(None, &mut frame, 0);
                        }
                        *this.state = State::Failed(error);
                    }
                },
                Poll::Ready(None) => *this.state = State::Ended,
                Poll::Pending if frame.len() == 0 => {
                    return this.stream.poll_beat(cx).map(|beat| Some(Ok(Frame::data(beat))));
                }
                Poll::Pending => break,
            }
        }
        if frame.len() > 0 {
            this.stream.spoke();
            return Poll::Ready(Some(Ok(Frame::data(frame.take_frame()))));
        }
        match std::mem::replace(this.state, State::Ended) {
            State::Failed(error) => {
                *this.state = State::Flushed(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            State::Flushed(error) => Poll::Ready(Some(Err(error))),
            State::Streaming | State::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

impl<S> fmt::Debug for SseBody<S>
where
    S: Stream,
    S::Item: SseItem,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseBody").field("stream", &self.stream).finish_non_exhaustive()
    }
}
