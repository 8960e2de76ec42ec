//! The hub: publish, fan out, resume.
//!
//! [`window`] is the recent end of the log and knows who waits; [`publish`](mod@publish) puts records into the log in
//! one order; [`follow`] is the loop by which each subscription reads it; [`subscription`] and [`body`] show it to the
//! outside; [`registry`] says who is let in, and [`member`] is a subscription as others see it.

mod body;
mod builder;
mod control;
mod drain;
mod end;
mod error;
mod feed;
mod follow;
mod gap;
mod lag;
mod member;
mod pace;
mod presence;
mod producer;
mod publish;
mod registry;
#[cfg(feature = "client-heartbeats")]
mod session;
mod settings;
mod snapshot;
mod stats;
mod subscription;
mod terms;
#[cfg(feature = "tracing")]
mod trace;
mod window;

#[cfg(feature = "client-heartbeats")]
pub(crate) use self::session::Heard;
pub use self::{
    body::SubscriptionBody,
    builder::HubBuilder,
    drain::{Drain, Drained},
    end::{EndReason, EndWord},
    error::{PublishError, SubscriptionError},
    follow::Start,
    gap::{Gap, GapPolicy, GapReason, Resume},
    lag::LagBudget,
    member::{LeaveReason, Subscriber},
    presence::{Presence, PresenceChange, PresenceChanges},
    producer::Producer,
    registry::Limit,
    settings::{CursorMoves, Names},
    snapshot::Snapshots,
    stats::{FeedStats, Gaps, Lag, Left, Opened, Refusals, Stats, StoreErrors, Volume},
    subscription::{Message, Subscription},
};
use self::{
    control::Control, error::PublishErrorKind, publish::Queue, registry::Registry, settings::Settings, stats::Counters,
    window::Window,
};
use crate::{
    Event, LastEventId, Topic, Topics,
    replay::{BoxFuture, Cursor, Draft, ErasedStore, Kind, Notice, ReadError, Record, Ring},
};
use http::request::Parts;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{runtime::Handle as Runtime, task::AbortHandle, time::timeout};

/// A longer time than this counts as this, because clocks end somewhere.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Publishes events to topics, and lets any number of subscriptions follow them without a gap or a repeat.
///
/// A hub has one ordered log, and a subscription is a position in it. Resuming after a reconnect, catching up after
/// being slow, and following live are the same read, so nothing is lost or repeated where one passes into the other.
///
/// Cloning is cheap and gives the same hub. When the last clone is dropped, its streams end. A mounted
/// [`Handler`](crate::Handler) holds one, so a server that shuts down calls [`close`](Self::close).
///
/// ```
/// use tidings::{Event, Hub, Topic};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let hub = Hub::new();
/// let prices = Topic::new("prices")?;
/// let mut subscription = hub.subscribe(&prices);
///
/// let id = hub.publish(&prices, Event::new().data("42")).await?;
///
/// use futures_util::StreamExt;
/// let Some(Ok(tidings::Message::Event(event))) = subscription.next().await else { panic!() };
/// assert_eq!(event.cursor(), id);
/// assert_eq!(event.record().data().as_deref(), Some("42"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Hub {
    handle: Arc<Handle>,
}

/// What the clones of a hub share; subscriptions and tasks have only the inside, so that they do not keep it alive.
struct Handle {
    shared: Arc<Shared>,
    /// What takes in the feed, if there is one.
    feed: Option<AbortHandle>,
}

impl Handle {
    fn close(&self) {
        self.shared.window.close();
        self.feed.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

struct Shared {
    window: Window,
    store: Store,
    queue: Queue,
    registry: Registry,
    #[cfg(feature = "client-heartbeats")]
    sessions: session::Sessions,
    counters: Counters,
    settings: Arc<Settings>,
    max_event_bytes: usize,
    append_timeout: Duration,
    read_timeout: Duration,
    /// Whether the store is shared with other nodes, and its feed says what they and this one appended: nothing else is
    /// shown then.
    has_feed: bool,
    /// Tells what this hub says to others from what they say.
    node: u64,
    /// Where a store other than the ring is appended to: the runtime in which the hub was opened.
    runtime: Option<Runtime>,
}

/// The ring stands beside the others so that the usual case has no boxed future, and so that appending to it and showing
/// can be one critical section.
#[expect(clippy::large_enum_variant, reason = "there is one for each hub")]
enum Store {
    Ring(Ring),
    Other(Arc<dyn ErasedStore>),
}

impl Shared {
    fn check(&self, topic: &Topic, size: usize) -> Result<(), PublishError> {
        let limit = self.max_event_bytes;
        if size > limit {
            return Err(PublishErrorKind::TooLarge { size, limit }.into());
        }
        if !self.window.admits(topic) {
            return Err(PublishErrorKind::UnknownTopic(topic.clone()).into());
        }
        Ok(())
    }

    /// What a store is asked, for as long as it may take to answer.
    fn in_time<T: 'static>(
        self: &Arc<Self>,
        asked: impl Future<Output = Result<T, ReadError>> + Send + 'static,
    ) -> BoxFuture<Result<T, ReadError>> {
        let shared = Arc::clone(self);
        Box::pin(async move {
            let answer = timeout(shared.read_timeout, asked).await;
            let answer = answer.unwrap_or_else(|_| Err(ReadError::new("the store did not answer in time")));
            answer.inspect_err(|_| shared.counters.read_error())
        })
    }
}

impl Hub {
    /// A hub over a [`Ring`] in memory, with the defaults of [`HubBuilder`]. It needs no runtime to be made.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// For a hub with settings or a store of your own.
    pub fn builder() -> HubBuilder {
        HubBuilder::new()
    }

    /// Publishes one event and returns its [`Cursor`], whose text form is the event's id.
    ///
    /// The event is stored when this returns, and on its way to all who follow the topic. Events are received in the
    /// order in which they were published. Over the [`Ring`] this never waits, and so never yields to other tasks.
    ///
    /// Over a [log that nodes share](crate::replay::ReplayStore::feed) this hub learns of its own events as the others do, a
    /// little after this returns: who subscribes in between gets the event, though it was published before.
    ///
    /// # Errors
    ///
    /// When the topic is finished, the event is too large, or the store did not take it; after
    /// [`PublishError::is_unknown`] it may have been stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes nothing back: an event that the store takes is sent to all who follow the topic, or, if
    /// the future was never polled, does not exist.
    pub async fn publish(&self, topic: impl Into<Topic>, event: Event) -> Result<Cursor, PublishError> {
        let shared = &self.handle.shared;
        match &shared.store {
            Store::Ring(ring) => publish::into_ring(shared, ring, Draft::new(topic.into(), event)),
            Store::Other(_) => self.publish_record(Record::new(topic, event)).await,
        }
    }

    /// Publishes a batch in its order, and returns one outcome for each record.
    ///
    /// A store takes the batch at once, which is faster than one by one. A record that is refused does not fail the
    /// others. No other publisher's events come between, except where one in the middle was refused.
    ///
    /// ```
    /// # use tidings::{Event, Hub, Topic};
    /// # async fn example(hub: Hub, topic: Topic) -> Result<(), Box<dyn std::error::Error>> {
    /// let lines = ["one", "two", "three"].map(|line| (&topic, Event::new().data(line)));
    /// for outcome in hub.publish_all(lines).await {
    ///     outcome?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_all(
        &self,
        records: impl IntoIterator<Item: Into<Record>>,
    ) -> Vec<Result<Cursor, PublishError>> {
        let records: Vec<Record> = records.into_iter().map(Into::into).collect();
        publish::all(&self.handle.shared, records).await
    }

    /// Publishes one event without waiting, from any thread, inside or outside of a runtime.
    ///
    /// Always possible over the [`Ring`]. Another store may be able to answer at once
    /// ([`ReplayStore::try_append`](crate::replay::ReplayStore::try_append)).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish), and [`PublishError::is_busy`] where it would have to wait.
    pub fn publish_now(&self, topic: impl Into<Topic>, event: Event) -> Result<Cursor, PublishError> {
        let shared = &self.handle.shared;
        match &shared.store {
            Store::Ring(ring) => publish::into_ring(shared, ring, Draft::new(topic.into(), event)),
            Store::Other(_) => self.publish_record_now(Record::new(topic, event)),
        }
    }

    /// Publishes one record without waiting: an event with a key or labels, the newest of its key, or an end; also from
    /// where nothing can wait, such as the `Drop` of what stands for a user who is there.
    ///
    /// # Errors
    ///
    /// As [`publish_now`](Self::publish_now).
    pub fn publish_record_now(&self, record: Record) -> Result<Cursor, PublishError> {
        publish::now(&self.handle.shared, record)
    }

    /// Finishes a topic, with an optional last event.
    ///
    /// Those who follow it get what is left, and their streams end; a stream of several topics ends when all have
    /// finished. Nothing can be published to a finished topic. A client that comes later gets what is held, and then the
    /// end; an `EventSource` that comes back with everything is answered 204, which stops it for good. The [`Ring`]
    /// remembers this for [an hour](Ring::keep_finished).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    pub async fn finish(&self, topic: impl Into<Topic>, last: Option<Event>) -> Result<Cursor, PublishError> {
        self.publish_record(Record::finish(topic, last)).await
    }

    /// Publishes the newest event of a key: it takes the place of what the topic has under that key.
    ///
    /// For state that is always sent whole, such as prices, positions or presence. A client that comes late
    /// ([`Start::Earliest`]) gets one event for each key and then what is new; one that was away or is slow skips to the
    /// newest of each, without a gap. So of such events a client is not promised every one, but the newest of each key, in
    /// order, and none twice. Every store keeps them like this, for as long as [it says](Ring::keep_latest); a
    /// [removal](Record::removal) ends a key.
    ///
    /// ```
    /// # use tidings::{Event, Hub, Start, Subscription, Topic};
    /// # async fn example(hub: Hub, prices: Topic) -> Result<Subscription, tidings::PublishError> {
    /// hub.publish_latest(&prices, "ACME", Event::new().data("12.50")).await?;
    /// hub.publish_latest(&prices, "ACME", Event::new().data("12.60")).await?;
    /// Ok(hub.subscribe(&prices).start(Start::Earliest)) // gets 12.60 only
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_latest(
        &self,
        topic: impl Into<Topic>,
        key: impl AsRef<str>,
        event: Event,
    ) -> Result<Cursor, PublishError> {
        self.publish_record(Record::latest(topic, key, event)).await
    }

    /// Sends an event to those who are there, and does not keep it: that someone is typing, or where a pointer is.
    ///
    /// They get it in its order among what is published; who is behind by more than a few dozen of them, or comes later,
    /// does not, and is not told. It has no id. Returns how many subscriptions are to get it, before their filters.
    ///
    /// Over a [log that nodes share](crate::replay::ReplayStore::feed), the subscribers of all nodes get it; those of the
    /// others are not in the number. Where it cannot be sent, that is among the [`StoreErrors`].
    ///
    /// # Errors
    ///
    /// When the event is too large, the hub was closed, or the topic is known to be finished: the store is not asked, so
    /// where nobody reads this can also be `Ok(0)`. Over a log that nodes share also [`PublishError::is_busy`], when a
    /// thousand others wait for it.
    pub fn publish_ephemeral(&self, topic: impl Into<Topic>, event: Event) -> Result<usize, PublishError> {
        self.publish_ephemeral_record(Record::new(topic, event))
    }

    /// Sends one record to those who are there, and does not keep it: an event with labels for filters.
    ///
    /// # Errors
    ///
    /// As [`publish_ephemeral`](Self::publish_ephemeral), and when the record is of another [`Kind`] than an event: what
    /// ends a topic, or is the newest of its key, has to be kept.
    pub fn publish_ephemeral_record(&self, record: Record) -> Result<usize, PublishError> {
        let shared = &self.handle.shared;
        shared.check(record.topic(), record.size())?;
        if record.kind() != Kind::Event {
            return Err(PublishErrorKind::NotEphemeral.into());
        }
        let readers = if shared.has_feed {
            // It comes back on the feed, in the order in which all nodes get it.
            let readers = shared.window.readers(record.topic())?;
            publish::notify(shared, Notice::Ephemeral(record))?;
            readers
        } else {
            shared.window.publish_ephemeral(record)?
        };
        shared.counters.ephemeral();
        Ok(readers)
    }

    /// Publishes one record: an event with a key or labels.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    ///
    /// # Cancel safety
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_record(&self, record: Record) -> Result<Cursor, PublishError> {
        let shared = &self.handle.shared;
        if matches!(shared.store, Store::Ring(_)) {
            return publish::now(shared, record);
        }
        publish::all(shared, vec![record]).await.pop().unwrap_or(Err(PublishErrorKind::Lost.into()))
    }

    /// Lets a topic exist, in a hub where topics [have to be created](crate::HubBuilder::explicit_topics): it can be
    /// published to, and subscribed to before the first event. Returns whether it was not created already.
    ///
    /// It is known to this hub, not to its store: create it again after a restart, and on each node that shares the log. It
    /// is forgotten after it was not used [for some time](crate::HubBuilder::forget_idle_topics).
    pub fn create(&self, topic: impl Into<Topic>) -> bool {
        self.handle.shared.window.create(&topic.into())
    }

    /// The producer's side of a topic: it knows when a reader asked to [stop](Self::stop), and when nobody has been reading
    /// for some time. As long as it is held, the topic exists.
    pub fn producer(&self, topic: impl Into<Topic>) -> Producer {
        Producer::new(self.clone(), topic.into())
    }

    /// Asks the [`Producer`] of a topic to stop, on behalf of a reader. Returns whether there is one in this hub: over a
    /// [log that nodes share](crate::replay::ReplayStore::feed), those on the others are asked too.
    pub fn stop(&self, topic: impl Into<Topic>) -> bool {
        let (shared, topic) = (&self.handle.shared, topic.into());
        let here = shared.window.ask_to_stop(&topic);
        shared.tell_others(&Control::Stop { topic });
        here
    }

    /// Forgets a topic: its events, that it was finished, and that it was created. It can be published to again.
    ///
    /// Who follows it and has everything goes on with what comes next; who is behind, and who comes back, is told of a
    /// gap. Over a [log that nodes share](crate::replay::ReplayStore::feed), each hub shows what it has of the topic until
    /// its feed has told it, also this one.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached; over the [`Ring`] never.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the topic forgotten or not.
    pub async fn forget(&self, topic: impl Into<Topic>) -> Result<(), ReadError> {
        let (shared, topic) = (&self.handle.shared, topic.into());
        match &shared.store {
            Store::Ring(ring) => shared.window.forget(&topic, true, || ring.forget_now(&topic)),
            Store::Other(_) => {
                publish::forget(shared, topic.clone()).await?;
            }
        }
        shared.window.uncreate(&topic);
        Ok(())
    }

    /// Ends every stream once it has what was published, and publishes nothing more. Over a [log that nodes
    /// share](crate::replay::ReplayStore::feed) that is what this hub has heard of: the rest comes to who resumes elsewhere.
    ///
    /// Clients come back at the times that were drawn for them; one that comes back to this hub gets its reconnection time
    /// and the end. Call it when the server shuts down, because a server waits for its open responses:
    ///
    /// ```no_run
    /// # async fn example(listener: tokio::net::TcpListener, app: axum::Router, hub: tidings::Hub) -> std::io::Result<()> {
    /// let shutdown = async move {
    ///     let _ = tokio::signal::ctrl_c().await;
    ///     hub.close();
    /// };
    /// axum::serve(listener, app).with_graceful_shutdown(shutdown).await
    /// # }
    /// ```
    ///
    /// A client that has stopped reading is not ended by this: its connection is for the server to cut.
    pub fn close(&self) {
        self.handle.close();
    }

    /// Follows one topic ([`Topic`]) or several ([`Topics`]), from now on, or from where
    /// [`resume`](Subscription::resume) and [`start`](Subscription::start) say.
    ///
    /// Subscribing to a topic that nobody published to is fine, and leaves nothing behind.
    pub fn subscribe(&self, topics: impl Into<Topics>) -> Subscription {
        Subscription::new(&self.handle.shared, topics.into())
    }
}

impl Hub {
    #[cfg(feature = "test-util")]
    pub(crate) fn evict(&self) {
        self.handle.shared.window.evict();
        if let Store::Ring(ring) = &self.handle.shared.store {
            ring.evict();
        }
    }

    pub(crate) fn last_event_id(&self, request: &Parts) -> LastEventId {
        self.handle.shared.settings.names.last_event_id(request)
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("window", &self.handle.shared.window).finish_non_exhaustive()
    }
}
