//! [`Handler`]: a hub as a service, mounted on a route.
//!
//! It knows methods, `accept`, and how to say no to an `EventSource`. What to follow, and who may, is for the
//! application's function to say. Everything else is `hub.subscribe(topics).resume(last)`.

use crate::{
    Event, Hub, Peer, Subscription, SubscriptionBody, Topic, TopicError, Topics, TopicsError,
    response::{EVENT_STREAM, set_headers},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use pin_project_lite::pin_project;
use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{Ready, poll_fn, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// A service that serves a hub's events over GET; made by [`Hub::handler`].
///
/// It is a tower `Service` for `Router::route_service`, and a hyper `Service`.
///
/// | request | response |
/// | --- | --- |
/// | GET | the events, or 204 if the client has everything of topics that are finished |
/// | HEAD | the head of the same |
/// | another method | 405 with `allow` |
/// | `accept` that excludes `text/event-stream` | 406 |
/// | the function refuses | its response |
/// | a topic does not exist, where they [have to be created](crate::HubBuilder::explicit_topics) | 404 |
/// | the store cannot be read, there are as many [as there may be](crate::Limit), or the hub is being [drained](Hub::drain) | 200 with only a `retry:`, and the end; or 503, see [`event_source_if`](Self::event_source_if) |
#[must_use = "a handler does nothing unless it is mounted"]
pub struct Handler<F> {
    hub: Hub,
    topics: Arc<F>,
    is_event_source: IsEventSource,
}

type IsEventSource = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;

impl<F> Handler<F> {
    fn new(hub: &Hub, topics: F) -> Self {
        Self { hub: hub.clone(), topics: Arc::new(topics), is_event_source: Arc::new(|_| true) }
    }

    /// Says which clients are an `EventSource`. Default: all.
    ///
    /// An `EventSource` gives up for good on any status other than 200, so "not now" is a stream that sets its
    /// reconnection time and ends. Other clients take that for a success, and are better served by 503 with
    /// `retry-after`.
    pub fn event_source_if(self, is_event_source: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        Self { is_event_source: Arc::new(is_event_source), ..self }
    }
}

impl Hub {
    /// A service that serves this hub's events: mount it with `Router::route_service`, or pass it to hyper.
    ///
    /// `topics` is called for each request and says what it is to follow, or refuses with any response: this is where an
    /// application authorises. It gets the request without its body, and can wait; what it captures is cloned into its
    /// future, which is made when the service is called. It answers with a [`Topic`], [`Topics`], a [`Subscription`] that it configured itself, which the handler
    /// then resumes, or a `Result` whose error is a [`Refusal`] or becomes one: a [`StatusCode`], an [`http::Response`],
    /// or the error of a topic.
    ///
    /// It is a service and not one of axum's handler functions: `route_service`, not `route` with `get`.
    ///
    /// ```
    /// use http::{StatusCode, request::Parts};
    /// use tidings::{Hub, Refusal, Topic};
    ///
    /// # fn app() -> axum::Router {
    /// let hub = Hub::new();
    /// let events = hub.handler(|request: Parts| async move {
    ///     let user = request.headers.get("x-user").ok_or(StatusCode::UNAUTHORIZED)?;
    ///     let user = user.to_str().map_err(|_| StatusCode::BAD_REQUEST)?;
    ///     Ok::<_, Refusal>(Topic::scoped(user, "notifications")?)
    /// });
    /// axum::Router::new().route_service("/events", events)
    /// # }
    /// ```
    pub fn handler<F, R>(&self, topics: F) -> Handler<F>
    where
        F: Fn(Parts) -> R,
        R: Future<Output: IntoSubscription>,
    {
        Handler::new(self, topics)
    }

    /// A service that serves the same topics to everyone who asks.
    ///
    /// ```
    /// use tidings::{Hub, Topic};
    ///
    /// # fn app() -> Result<axum::Router, tidings::TopicError> {
    /// let hub = Hub::new();
    /// let app = axum::Router::new().route_service("/events", hub.handler_for(Topic::new("news")?));
    /// # Ok(app)
    /// # }
    /// ```
    pub fn handler_for(&self, topics: impl Into<Topics>) -> Handler<SameTopics> {
        Handler::new(self, SameTopics(topics.into()))
    }
}

/// What a [`Handler`] asks of each request: a function, or the same topics for everyone.
pub trait ChooseTopics {
    /// What comes of it.
    type Answer: Future<Output: IntoSubscription>;

    /// What a request is to follow. It is called when the service is, and its answer waited for.
    fn choose(&self, request: Parts) -> Self::Answer;
}

impl<F, R> ChooseTopics for F
where
    F: Fn(Parts) -> R,
    R: Future<Output: IntoSubscription>,
{
    type Answer = R;

    fn choose(&self, request: Parts) -> R {
        self(request)
    }
}

/// The same topics for everyone: see [`Hub::handler_for`].
#[derive(Clone, Debug)]
pub struct SameTopics(Topics);

impl ChooseTopics for SameTopics {
    type Answer = Ready<Topics>;

    fn choose(&self, _: Parts) -> Ready<Topics> {
        ready(self.0.clone())
    }
}

/// What the function passed to [`Hub::handler`] may answer.
pub trait IntoSubscription {
    /// What to follow, or the response to send instead.
    ///
    /// # Errors
    ///
    /// When the request is refused.
    fn into_subscription(self, hub: &Hub) -> Result<Subscription, Refusal>;
}

impl IntoSubscription for Topic {
    fn into_subscription(self, hub: &Hub) -> Result<Subscription, Refusal> {
        Ok(hub.subscribe(self))
    }
}

impl IntoSubscription for Topics {
    fn into_subscription(self, hub: &Hub) -> Result<Subscription, Refusal> {
        Ok(hub.subscribe(self))
    }
}

impl IntoSubscription for Subscription {
    fn into_subscription(self, _: &Hub) -> Result<Subscription, Refusal> {
        Ok(self)
    }
}

impl<T: IntoSubscription, E: Into<Refusal>> IntoSubscription for Result<T, E> {
    fn into_subscription(self, hub: &Hub) -> Result<Subscription, Refusal> {
        self.map_err(Into::into)?.into_subscription(hub)
    }
}

/// A response in place of the events: made from a [`StatusCode`] or any [`http::Response`].
///
/// An `EventSource` gives up for good on any status other than 200, which is right for "no" and wrong for "not now".
pub struct Refusal(Box<Response<HandlerBody>>);

impl From<StatusCode> for Refusal {
    fn from(status: StatusCode) -> Self {
        Self(with_status(status).into())
    }
}

/// 400, with the error as its text.
impl From<TopicError> for Refusal {
    fn from(error: TopicError) -> Self {
        bad_request(&error)
    }
}

/// 400, with the error as its text.
impl From<TopicsError> for Refusal {
    fn from(error: TopicsError) -> Self {
        bad_request(&error)
    }
}

fn bad_request(error: &dyn Error) -> Refusal {
    let mut response = Response::new(Full::from(error.to_string()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.into()
}

impl<B> From<Response<B>> for Refusal
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    fn from(response: Response<B>) -> Self {
        Self(response.map(HandlerBody::other).into())
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refusal").field(&self.0.status()).finish()
    }
}

impl<F> Handler<F>
where
    F: ChooseTopics<Answer: Send + 'static> + Send + Sync + 'static,
{
    /// What of the request lives until the response is what is named here: the rest, and with it the server's buffer, is
    /// the application's to keep or to drop.
    fn respond(&self, parts: Parts) -> ResponseFuture {
        if let Some(refusal) = refusal(&parts) {
            return Box::pin(ready(Ok(refusal)));
        }
        let head_only = parts.method == Method::HEAD;
        let event_source = (self.is_event_source)(&parts);
        let last = self.hub.last_event_id(&parts);
        let peer = parts.extensions.get::<Peer>().cloned();
        let hub = self.hub.clone();
        let answer = self.topics.choose(parts);
        Box::pin(async move {
            let mut subscription = match answer.await.into_subscription(&hub) {
                Ok(subscription) => subscription.asked_for(&last, peer, head_only),
                Err(Refusal(response)) => return Ok(*response),
            };
            subscription.join();
            let opened = poll_fn(|cx| subscription.poll_opened(cx)).await;
            let response = match opened.and_then(|()| subscription.enter()) {
                Ok(()) => subscription.into_http_response().map(HandlerBody::from),
                Err(error) if error.is_unknown_topic() => with_status(StatusCode::NOT_FOUND),
                Err(_) => come_back(subscription.draw_retry(), event_source, subscription.accel_buffering()),
            };
            Ok(if head_only { response.map(|_| HandlerBody::once(None)) } else { response })
        })
    }
}

/// The response to a request that no event stream can answer.
fn refusal(parts: &Parts) -> Option<Response<HandlerBody>> {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        let mut response = with_status(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(response);
    }
    (!accepts_event_stream(&parts.headers)).then(|| with_status(StatusCode::NOT_ACCEPTABLE))
}

/// "Not now", in words that the client understands.
fn come_back(after: Duration, event_source: bool, accel_buffering: bool) -> Response<HandlerBody> {
    if !event_source {
        let mut response = with_status(StatusCode::SERVICE_UNAVAILABLE);
        let seconds = after.as_millis().div_ceil(1000).min(u64::MAX.into());
        response.headers_mut().insert(header::RETRY_AFTER, u64::try_from(seconds).unwrap_or(u64::MAX).into());
        return response;
    }
    let mut response = Response::new(HandlerBody::once(Some(Event::new().retry(after).encode(None))));
    set_headers(response.headers_mut(), accel_buffering);
    response
}

fn with_status(status: StatusCode) -> Response<HandlerBody> {
    let mut response = Response::new(HandlerBody::other(Empty::new()));
    *response.status_mut() = status;
    response
}

/// Whether `accept` leaves room for an event stream. The most specific range that matches decides, as in
/// [RFC 9110, 12.5.1](https://www.rfc-editor.org/rfc/rfc9110#name-accept); no `accept` at all accepts everything.
fn accepts_event_stream(headers: &HeaderMap) -> bool {
    let mut best = None;
    let mut any = false;
    for value in headers.get_all(header::ACCEPT) {
        for range in split_unquoted(&String::from_utf8_lossy(value.as_bytes()), ',') {
            let mut parts = split_unquoted(range, ';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let specificity = match name.to_ascii_lowercase().as_str() {
                "" => continue,
                range if range.as_bytes() == EVENT_STREAM.as_bytes() => 2,
                "text/*" => 1,
                "*/*" => 0,
                _ => {
                    any = true;
                    continue;
                }
            };
            let quality = parts.find_map(|parameter| parameter.strip_prefix("q=").or(parameter.strip_prefix("Q=")));
            // Only a weight of nothing excludes; what is no weight says nothing.
            let allowed = quality.and_then(|q| q.trim().parse::<f32>().ok()).is_none_or(|q| q != 0.0);
            best = best.max(Some((specificity, allowed)));
        }
    }
    best.map_or(!any, |(_, allowed)| allowed)
}

/// Splits at a separator that is not in a quoted string.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        quoted ^= c == '"' && !escaped;
        escaped = quoted && !escaped && c == '\\';
        c == separator && !quoted
    })
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<HandlerBody>, Infallible>> + Send>>;

impl<F, B> tower_service::Service<Request<B>> for Handler<F>
where
    F: ChooseTopics<Answer: Send + 'static> + Send + Sync + 'static,
{
    type Response = Response<HandlerBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.respond(request.into_parts().0)
    }
}

impl<F, B> hyper::service::Service<Request<B>> for Handler<F>
where
    F: ChooseTopics<Answer: Send + 'static> + Send + Sync + 'static,
{
    type Response = Response<HandlerBody>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<B>) -> ResponseFuture {
        self.respond(request.into_parts().0)
    }
}

impl<F> Clone for Handler<F> {
    fn clone(&self) -> Self {
        Self {
            hub: self.hub.clone(),
            topics: Arc::clone(&self.topics),
            is_event_source: Arc::clone(&self.is_event_source),
        }
    }
}

impl<F> fmt::Debug for Handler<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").field("hub", &self.hub).finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of a [`Handler`]'s responses.
    pub struct HandlerBody {
        #[pin]
        inner: Inner,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner {
        Events { #[pin] body: SubscriptionBody },
        // At most one frame of an event stream, which never has a length, even if it ends at once.
        Once { frame: Option<Bytes> },
        Other { #[pin] body: UnsyncBoxBody<Bytes, BoxError> },
    }
}
impl HandlerBody {
    fn once(frame: Option<Bytes>) -> Self {
        Self { inner: Inner::Once { frame } }
    }

    fn other(body: impl Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static) -> Self {
        Self { inner: Inner::Other { body: body.map_err(Into::into).boxed_unsync() } }
    }
}

impl From<SubscriptionBody> for HandlerBody {
    fn from(body: SubscriptionBody) -> Self {
        Self { inner: Inner::Events { body } }
    }
}

impl Body for HandlerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().inner.project() {
            InnerProjection::Events { body } => body.poll_frame(cx).map_err(Into::into),
            InnerProjection::Once { frame } => Poll::Ready(frame.take().map(|frame| Ok(Frame::data(frame)))),
            InnerProjection::Other { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Events { body } => body.is_end_stream(),
            Inner::Once { .. } => false,
            Inner::Other { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Events { .. } | Inner::Once { .. } => SizeHint::default(),
            Inner::Other { body } => body.size_hint(),
        }
    }
}

impl fmt::Debug for HandlerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerBody").field("ended", &self.is_end_stream()).finish_non_exhaustive()
    }
}
