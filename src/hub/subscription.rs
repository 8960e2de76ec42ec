//! [`Subscription`]: a place in the log as a stream, and as a response.

use super::{
    Shared,
    body::SubscriptionBody,
    end::EndReason,
    error::SubscriptionError,
    follow::{Follower, Start, Step},
    gap::{Gap, GapPolicy, Resume},
    lag::LagBudget,
    member::Subscriber,
    registry::Limit,
    settings::{CursorMoves, Settings},
    snapshot::Snapshots,
};
use crate::{
    Event, KeepAlive, LastEventId, Peer, Topics,
    replay::{Cursor, Entry, Record},
    response,
};
use futures_core::Stream;
use http::{HeaderValue, Method, Response, StatusCode, request::Parts};
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// What a [`Subscription`] yields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Message {
    /// The next event.
    Event(Arc<Entry>),
    /// Events may be missing here, before the next one.
    Gap(Gap),
    /// The state of the topics, as the application's [`Snapshots`] gave it; what follows came after it was asked for.
    Snapshot(Arc<[Event]>),
}

/// A place in a hub's log, from where it is followed: made by [`Hub::subscribe`](crate::Hub::subscribe).
///
/// It is a [`Stream`] of [`Message`]s, becomes an [`http::Response`] with [`into_http_response`](Self::into_http_response), and is
/// `IntoResponse` in axum.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{extract::State, response::IntoResponse};
/// use tidings::{Hub, LastEventId, Topic};
///
/// #[derive(Clone)]
/// struct App {
///     hub: Hub,
///     prices: Topic,
/// }
///
/// async fn events(State(app): State<App>, last: LastEventId) -> impl IntoResponse {
///     app.hub.subscribe(&app.prices).resume(last)
/// }
/// # }
/// ```
///
/// A subscription costs a position, not a queue: one that is never polled delays nobody, and one that is slow reads on
/// from the store at its own pace.
///
/// The stream ends when all topics are finished, when it falls further behind than its [`LagBudget`], or when the last
/// [`Hub`](crate::Hub) is dropped. It fails if the store cannot be read or a snapshot cannot be made; the client's last id
/// is then still good.
///
/// # Tracing
///
/// With feature `tracing`, it has a span `subscription` from when it is served, or first read as a stream, until it leaves,
/// within the span of its request. All is of target `tidings`:
///
/// | level | what | fields |
/// | --- | --- | --- |
/// | DEBUG | the span | `id`: [its number](Subscriber::id); `topics`: how many; `outcome`: a [`Resume`] as a word; and once it has left, `reason`: a [`LeaveReason`] as a word, and `last_event_id` |
/// | DEBUG | it begins; it has left | those of the span |
/// | DEBUG | it was turned away | `id`; `reason`: `over_limit`, `draining` or `unknown_topic` |
/// | WARN | it failed | `id`; `error`, with what is behind it |
/// | WARN | a store other than the [`Ring`](crate::replay::Ring) did not do what the hub asked | `operation`: `append`, `forget`, or `recover` for finding out what it took; `error` |
///
/// Deliveries are not traced. No event's data, no label and no topic is told, because topics, too, are often named after
/// users; the errors are in the words of the application's own store and snapshots.
///
/// [`LeaveReason`]: crate::LeaveReason
///
/// # Cancel safety
///
/// Nothing is lost when a pending `next()` is dropped. Dropping the subscription frees all it held.
///
/// # Panics
///
/// Outside of a tokio runtime that has its timer enabled: its response when it is idle, and the subscription itself when it
/// reads from a store other than the [`Ring`](crate::replay::Ring), or [rests](Self::min_interval).
#[must_use = "a subscription does nothing unless it is polled or served"]
pub struct Subscription {
    follower: Follower,
    settings: Arc<Settings>,
}

impl Subscription {
    pub(super) fn new(shared: &Arc<Shared>, topics: Topics) -> Self {
        let settings = Arc::clone(&shared.settings);
        let mut follower = Follower::new(Arc::clone(shared), topics);
        if settings.start != Start::Now {
            follower.start(settings.start);
        }
        follower.set_lag_budget(settings.lag_budget);
        follower.set_on_gap(settings.on_gap.clone());
        Self { follower, settings }
    }

    /// Goes on after the last event that the client received. An absent id leaves the subscription as it was.
    ///
    /// No id is an error: one that is too old, of another log, or not an id at all becomes a [`Gap`].
    pub fn resume(mut self, last: impl Into<LastEventId>) -> Self {
        self.follower.resume(&last.into());
        self
    }

    /// Takes from a request what the [`Handler`](crate::Handler) would, for handlers of your own: the last event id, from
    /// its header or from the query parameter that the hub's [`Names`](crate::Names) say; the [`Peer`] of its connection;
    /// and whether only the head is wanted (HEAD, which axum's `get` serves too), so that it takes nobody's place.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// use axum::{extract::State, http::request::Parts, response::IntoResponse};
    /// use tidings::{Hub, Topic};
    ///
    /// async fn events(State((hub, orders)): State<(Hub, Topic)>, request: Parts) -> impl IntoResponse {
    ///     hub.subscribe(orders).for_request(&request)
    /// }
    /// # }
    /// ```
    pub fn for_request(self, request: &Parts) -> Self {
        let last = self.settings.names.last_event_id(request);
        self.asked_for(&last, request.extensions.get().cloned(), request.method == Method::HEAD)
    }

    /// The same with what is left of the request.
    pub(crate) fn asked_for(mut self, last: &LastEventId, peer: Option<Peer>, head_only: bool) -> Self {
        if head_only {
            self.follower.stay_away();
        }
        if peer.is_some() {
            self.follower.intro().peer = peer;
        }
        self.follower.resume(last);
        self
    }

    /// Where to begin if the client has no id of this log; in any order with [`resume`](Self::resume). Default:
    /// the hub's.
    pub fn start(mut self, start: Start) -> Self {
        self.follower.start(start);
        self
    }

    /// Sets the heartbeats. Default: the hub's.
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        Arc::make_mut(&mut self.settings).keep_alive = keep_alive;
        self
    }

    /// Sets after how long a client that was cut reconnects: a time between half and one and a half of `delay` is drawn
    /// for each. Default: the hub's.
    pub fn retry(mut self, delay: Duration) -> Self {
        Arc::make_mut(&mut self.settings).retry = delay;
        self
    }

    /// Sets how the client's last id is moved where there is no event to carry it. Default: the hub's.
    pub fn cursor_moves(mut self, cursor_moves: CursorMoves) -> Self {
        Arc::make_mut(&mut self.settings).cursor_moves = cursor_moves;
        self
    }

    /// Begins with a snapshot of the application's state if the client sent no id, and goes on with what came after that
    /// was asked for. It replaces [`start`](Self::start).
    pub fn snapshot_first(mut self, snapshots: &Snapshots) -> Self {
        self.follower.snapshot_first(snapshots);
        self
    }

    /// Leaves out the events for which `wanted` is false: by their type, key or labels. It is called for each event and
    /// subscription, outside of any lock, and should be quick. Events stay encoded once for all.
    ///
    /// The position moves past what is left out, and heartbeats tell the client so. The guarantee covers what passes.
    ///
    /// ```
    /// # use tidings::{Hub, Subscription, Topic};
    /// # fn example(hub: Hub, orders: Topic, user: String) -> Subscription {
    /// hub.subscribe(orders).filter(move |record| record.label("user") == Some(&user))
    /// # }
    /// ```
    pub fn filter(mut self, wanted: impl Fn(&Record) -> bool + Send + Sync + 'static) -> Self {
        self.follower.set_filter(Arc::new(wanted));
        self
    }

    /// Lets it look for what is new no more often than this. What was replaced in between by a newer event of its key
    /// ([`Hub::publish_latest`](crate::Hub::publish_latest)) is skipped, so that each key comes at most once in an interval;
    /// everything else comes together. Default: everything as soon as it is published.
    ///
    /// Not for what a client missed before it came: that is sent at once.
    pub fn min_interval(mut self, interval: Duration) -> Self {
        self.follower.set_min_interval(interval);
        self
    }

    /// Sets what becomes of it after a gap. Default: the hub's.
    pub fn on_gap(mut self, policy: GapPolicy) -> Self {
        self.follower.set_on_gap(policy);
        self
    }

    /// Sets how far it may fall behind, counted from now on, before it is ended. Default: the hub's.
    pub fn lag_budget(mut self, budget: LagBudget) -> Self {
        self.follower.set_lag_budget(budget);
        self
    }

    /// Adds a label, for the application's own use: who it is, from where, with what client. [`Hub::end_where`] and
    /// [`Presence`](crate::Presence) see it; clients do not.
    ///
    /// [`Hub::end_where`]: crate::Hub::end_where
    pub fn label(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.follower.intro().labels.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Lets it be there only if its key has not as many already. Several limits can be set, for different keys; each
    /// holds. Default: none. Those of the whole hub: [`HubBuilder::max_subscriptions`](crate::HubBuilder::max_subscriptions).
    ///
    /// One that is turned away gets the same answer as while the hub is drained: see [`Handler`](crate::Handler).
    pub fn limit(mut self, limit: Limit) -> Self {
        self.follower.intro().limits.push(limit);
        self
    }

    /// Sets how long it may stay: a time between 80 and 100 % of this is drawn, so that those who came together do not
    /// leave together. Counted from when it is served, or first read. Default: the hub's
    /// [`max_lifetime`](crate::HubBuilder::max_lifetime).
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.follower.intro().lifetime = Some(lifetime);
        self
    }

    /// Ends it with [`EndReason::Expired`] after this time, counted from now: when what allows its client to be here
    /// expires. Nothing is sent after that but the end; the client comes back by itself, and is authorised anew. The
    /// shorter of this and [`max_lifetime`](Self::max_lifetime) counts. Default: never.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use tidings::{Hub, Subscription, Topic};
    /// fn inbox(hub: &Hub, topic: Topic, token_expires: SystemTime) -> Subscription {
    ///     // What has expired already is none.
    ///     let left = token_expires.duration_since(SystemTime::now()).unwrap_or_default();
    ///     hub.subscribe(topic).expires_in(left)
    /// }
    /// ```
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.follower.intro().expires = Instant::now().checked_add(time);
        self
    }

    /// Lets its client say that it is there: see [`HubBuilder::client_heartbeats`](crate::HubBuilder::client_heartbeats). Only
    /// for a subscription that is served, not for one that is read as a stream. Default: the hub's.
    #[cfg(feature = "client-heartbeats")]
    #[cfg_attr(docsrs, doc(cfg(feature = "client-heartbeats")))]
    pub fn client_heartbeats(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.settings).client_timeout = Some(timeout);
        self
    }

    /// For whoever looks after it: a way to end it, and to be told how it left.
    #[must_use]
    pub fn subscriber(&self) -> Subscriber {
        self.follower.subscriber()
    }

    /// Why the stream has ended: `None` before its end, and if it failed.
    #[must_use]
    pub fn end_reason(&self) -> Option<EndReason> {
        self.follower.end_reason()
    }

    /// The topics.
    #[must_use]
    pub fn topics(&self) -> &Topics {
        self.follower.topics()
    }

    /// From where to resume: the place up to which everything was handed over. While a gap is still to be reported or a
    /// snapshot to come, the place before it, so that who resumes from there is told again; `None` if there was none.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        self.follower.resume_from()
    }

    /// How the subscription began; `None` as long as that is not known, which it is at the latest when
    /// [`opened`](Self::opened) was awaited.
    #[must_use]
    pub fn outcome(&self) -> Option<Resume> {
        self.follower.outcome()
    }

    /// Waits until it is known how the subscription begins, so that the response can say it in its head.
    ///
    /// Over the [`Ring`](crate::replay::Ring) this never waits, and [`into_http_response`](Self::into_http_response) does it by
    /// itself. Over another store it may read a page; the handler made by [`Hub::handler`](crate::Hub::handler) does this
    /// for every request.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn opened(mut self) -> Result<Self, SubscriptionError> {
        poll_fn(|cx| self.poll_opened(cx)).await?;
        Ok(self)
    }

    /// The same without giving it away, which takes half the room in the future that waits.
    pub(crate) fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SubscriptionError>> {
        self.follower.poll_outcome(cx)
    }

    /// Lets others see it.
    pub(crate) fn enter(&mut self) -> Result<(), SubscriptionError> {
        self.follower.enter()
    }

    /// It becomes a body, and is read as frames from now on.
    pub(crate) fn join(&mut self) {
        self.follower.join();
    }

    /// When this client is to come back.
    pub(crate) fn draw_retry(&self) -> Duration {
        self.follower.draw_retry(&self.settings)
    }

    pub(crate) fn accel_buffering(&self) -> bool {
        self.settings.accel_buffering
    }

    /// The response for hyper, or for anything that takes an [`http::Response`].
    ///
    /// Over a store other than the [`Ring`](crate::replay::Ring), await [`opened`](Self::opened) first: otherwise the head
    /// cannot say what only the store knows, the gap or that everything is finished.
    ///
    /// 200 with an event stream; or 204, which stops an `EventSource` for good, if the client has everything there will
    /// ever be: its id is good, nothing follows it, and all its topics are finished; or 404 if one of them does not exist,
    /// where they [have to be created](crate::HubBuilder::explicit_topics). Where it is turned away, 200 with a reconnection
    /// time and the end.
    #[must_use]
    pub fn into_http_response(mut self) -> Response<SubscriptionBody> {
        self.join();
        if let Err(error) = self.follower.open_now().and_then(|()| self.follower.enter()) {
            if error.is_unknown_topic() {
                let mut response = Response::new(SubscriptionBody::empty());
                *response.status_mut() = StatusCode::NOT_FOUND;
                return response;
            }
            if error.is_denied() {
                let accel_buffering = self.accel_buffering();
                let mut response = Response::new(SubscriptionBody::come_back(self.follower, self.settings));
                response::set_headers(response.headers_mut(), accel_buffering);
                return response;
            }
        }
        let complete = self.follower.is_complete();
        let gap = self.follower.known_gap();
        let names = self.settings.names.clone();
        let accel_buffering = self.settings.accel_buffering;
        let mut response = if complete {
            let mut response = Response::new(SubscriptionBody::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        } else {
            let mut response = Response::new(SubscriptionBody::new(self.follower, self.settings));
            response::set_headers(response.headers_mut(), accel_buffering);
            response
        };
        if let Some(gap) = gap {
            response.headers_mut().insert(names.gap_header, HeaderValue::from_static(gap.reason.as_str()));
        }
        response
    }
}

impl Stream for Subscription {
    type Item = Result<Message, SubscriptionError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Err(error) = ready!(self.follower.poll_entered(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
            let message = match ready!(self.follower.poll_step(cx)) {
                // A finish without an event is seen as the end of the stream.
                Some(Ok(Step::Entry(entry))) if entry.record().is_bare_finish() => continue,
                Some(Ok(Step::Entry(entry))) => Some(Ok(Message::Event(entry))),
                Some(Ok(Step::Stretch(_))) => {
                    debug_assert!(false, "only a body asks for frames");
                    continue;
                }
                Some(Ok(Step::Gap(gap))) => Some(Ok(Message::Gap(gap))),
                Some(Ok(Step::Snapshot(snapshot))) => Some(Ok(Message::Snapshot(snapshot.events))),
                // Only a body has a client that sends heartbeats.
                #[cfg(feature = "client-heartbeats")]
                Some(Ok(Step::Pong(_))) => continue,
                Some(Err(error)) => Some(Err(error)),
                None => {
                    self.follower.leave();
                    None
                }
            };
            return Poll::Ready(message);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("follower", &self.follower).finish_non_exhaustive()
    }
}
