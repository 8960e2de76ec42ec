//! [`HubBuilder`]: a hub's settings, each with its default and why.

use super::{
    Counters, CursorMoves, GapPolicy, Handle, Hub, LagBudget, Names, Queue, Registry, Settings, Shared, Start, Store,
    Window, feed, window::TopicLife,
};
use crate::{
    KeepAlive,
    replay::{Cursor, ErasedStore, Feed, Limits, ReadError, ReplayStore, Ring, Run},
};
use std::{sync::Arc, time::Duration};
use tokio::runtime::Handle as Runtime;

/// Makes a [`Hub`]; from [`Hub::builder`].
///
/// ```
/// use std::time::Duration;
/// use tidings::{Hub, KeepAlive, replay::Ring};
///
/// let hub = Hub::builder()
///     .ring(Ring::new().events_per_topic(50_000))
///     .keep_alive(KeepAlive::new().interval(Duration::from_secs(25)))
///     .build();
/// ```
#[derive(Debug)]
#[must_use]
pub struct HubBuilder {
    ring: Ring,
    window: Limits,
    settings: Settings,
    max_event_bytes: usize,
    append_timeout: Duration,
    read_timeout: Duration,
    topic_life: TopicLife,
    max_subscriptions: usize,
}

impl HubBuilder {
    pub(crate) fn new() -> Self {
        Self {
            ring: Ring::new(),
            window: Limits {
                // A few seconds of a busy topic: who is further behind reads pages from the store.
                events_per_topic: 1024,
                bytes_per_topic: 4 * 1024 * 1024,
                total_bytes: 256 * 1024 * 1024,
                age: None,
                latest: None,
                finished: None,
            },
            settings: Settings::default(),
            // Far above any event that should be pushed, far below what would hurt a client that gets it.
            max_event_bytes: 1024 * 1024,
            append_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            topic_life: TopicLife { explicit: false, idle: Duration::from_secs(60 * 60) },
            max_subscriptions: usize::MAX,
        }
    }

    /// Sets the in-memory log. Default: [`Ring::new`].
    pub fn ring(mut self, ring: Ring) -> Self {
        self.ring = ring;
        self
    }

    /// Sets how many of the newest events of a topic are kept ready to be sent, in front of the store. Over the [`Ring`]
    /// never more, nor for longer, than the ring keeps. Default: 1,024.
    pub fn window_events(mut self, events: usize) -> Self {
        self.window.events_per_topic = events;
        self
    }

    /// Sets how many bytes of a topic are kept ready to be sent, in front of the store; over all topics at most 256 MiB.
    /// Over the [`Ring`] they are the ring's own bytes. What is joined for those who are behind takes up to 4 MiB more.
    /// Default: 4 MiB.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window.bytes_per_topic = bytes;
        self
    }

    /// Sets the most events, and the bytes at which a page ends, in one read of the store by a subscription that is not
    /// on the window. Default: 256 events, 256 KiB. Zero counts as one.
    ///
    /// A response that reads from the [`Ring`] shares joined frames with others instead: at most 64 KiB of them at a time.
    pub fn page(mut self, max_events: usize, max_bytes: usize) -> Self {
        self.settings.page = (max_events.max(1), max_bytes.max(1));
        self
    }

    /// Sets the largest event that can be published, in bytes as it is encoded, without its id but with key and labels.
    /// Default: 1 MiB.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Sets how long a publisher waits for a store other than the [`Ring`]. After that its outcome is unknown; the append
    /// goes on, and what it stores is sent. Those who wait behind one that fails after half of this or more are refused with
    /// it. Default: 5 seconds.
    pub fn append_timeout(mut self, timeout: Duration) -> Self {
        self.append_timeout = timeout;
        self
    }

    /// Sets how long a subscription waits for each answer of a store other than the [`Ring`], before it fails and its client
    /// comes back. Also how long [`Hub::forget`] waits. Default: 5 seconds.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// Lets topics exist only if they were created, with [`Hub::create`] or [`Hub::producer`], or if the log has something
    /// of them. Publishing to one that was not created is an error, and a client that asks for one that does not exist is
    /// answered 404, which stops an `EventSource` for good: so create what there is before you serve. Default: a topic exists once it is published to, and anyone can
    /// wait for that.
    pub fn explicit_topics(mut self) -> Self {
        self.topic_life.explicit = true;
        self
    }

    /// Sets after how long a topic that was [created](Hub::create) is forgotten if it has no producer and no reader, and
    /// nothing is published to it. What the log has of it is not touched. Until then it takes about half a kilobyte.
    /// Default: 1 hour.
    pub fn forget_idle_topics(mut self, after: Duration) -> Self {
        self.topic_life.idle = after;
        self
    }

    /// Sets the heartbeats of all subscriptions. Default: [`KeepAlive::new`], an empty comment after 15 idle seconds.
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.settings.keep_alive = keep_alive;
        self
    }

    /// Sets after how long a client that was cut reconnects. For each client a time between half and one and a half of
    /// `delay` is drawn, so that they do not all come back in the same second. Default: 3 seconds.
    pub fn retry(mut self, delay: Duration) -> Self {
        self.settings.retry = delay;
        self
    }

    /// Sets how a client's last id is moved where there is no event to carry it. Default: [`CursorMoves::IdOnly`].
    pub fn cursor_moves(mut self, cursor_moves: CursorMoves) -> Self {
        self.settings.cursor_moves = cursor_moves;
        self
    }

    /// Sets where a subscription begins whose client has no id of this log. Default: [`Start::Now`].
    pub fn start(mut self, start: Start) -> Self {
        self.settings.start = start;
        self
    }

    /// Sets what becomes of a subscription after it was told of a gap. Default: [`GapPolicy::Report`].
    pub fn on_gap(mut self, policy: GapPolicy) -> Self {
        self.settings.on_gap = policy;
        self
    }

    /// Sets how far a subscription may fall behind before it is ended, with an id from which it can go on. Default: as far
    /// as the store reaches, and then it is told of a gap.
    pub fn lag_budget(mut self, budget: LagBudget) -> Self {
        self.settings.lag_budget = budget;
        self
    }

    /// Sets how many subscriptions there may be at a time. One more is turned away: its client comes back at a time that is
    /// drawn for it ([`retry`](Self::retry)). Each node counts its own. For one user or address, see
    /// [`Subscription::limit`](crate::Subscription::limit).
    /// Default: as many as there is memory for.
    pub fn max_subscriptions(mut self, most: usize) -> Self {
        self.max_subscriptions = most;
        self
    }

    /// Sets how long a subscription may stay: for each a time between 80 and 100 % of this is drawn. Then it ends with
    /// [`EndReason::Expired`](crate::EndReason::Expired), and its client comes back, is authorised anew, and may come to
    /// another server. Default: as long as it likes.
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.max_lifetime = Some(lifetime);
        self
    }

    /// Lets each client say that it is there: it is given a token, and is to post it to the
    /// [`heartbeat_handler`](Hub::heartbeat_handler) every half of `timeout`. One that is silent for `timeout` is ended with
    /// [`EndReason::Silent`](crate::EndReason::Silent). Default: clients are not asked. At least 1 ms.
    ///
    /// The token comes at the beginning of each stream, in an event [`Names::session_event`]. It is for that stream only, and
    /// good until it ends.
    ///
    /// Browsers run the timers of hidden pages once a minute or so: with less than two minutes, those are ended and come
    /// back, again and again.
    ///
    /// For where a server must know soon that a client is gone, which TCP says only when something is sent and not
    /// acknowledged for some time; and for a client that is there and does not work any more.
    #[cfg(feature = "client-heartbeats")]
    #[cfg_attr(docsrs, doc(cfg(feature = "client-heartbeats")))]
    pub fn client_heartbeats(mut self, timeout: Duration) -> Self {
        self.settings.client_timeout = Some(timeout);
        self
    }

    /// Announces by a last event why the server ends a stream, for clients other than `EventSource`, to whom a clean end
    /// looks like success. Its name is [`Names::end_event`]. Default: ends are not announced.
    pub fn announce_ends(mut self) -> Self {
        self.settings.announce_ends = true;
        self
    }

    /// Sets the names that clients see. Default: [`Names::default`].
    pub fn names(mut self, names: Names) -> Self {
        self.settings.names = names;
        self
    }

    /// Lets nginx decide about buffering: leaves out `x-accel-buffering: no`. Default: the header is sent.
    pub fn allow_accel_buffering(mut self) -> Self {
        self.settings.accel_buffering = true;
        self
    }

    /// A hub over the in-memory log.
    #[must_use]
    pub fn build(mut self) -> Hub {
        let ring = std::mem::take(&mut self.ring);
        // The window shows nothing that the ring has let go.
        self.window = self.window.within(&ring.limits());
        self.hub(ring.head_now(), Store::Ring(ring), None)
    }

    /// A hub over another store, once it has said where its log ends. A [`ring`](Self::ring) that was set is not used.
    ///
    /// The store is appended to in the tokio runtime in which this is awaited, which must have its timer enabled and live
    /// as long as the hub; outside of one, in that of a publisher. A store that [nodes share](ReplayStore::feed) is also
    /// followed there, from now on and until the hub is closed or gone.
    ///
    /// # Errors
    ///
    /// When the store cannot be read, or is one that nodes share and there is no runtime.
    pub async fn open(self, store: impl ReplayStore) -> Result<Hub, ReadError> {
        let head = store.head().await?;
        let feed = store.feed(head);
        let store: Arc<dyn ErasedStore> = Arc::new(store);
        let Some(feed) = feed else { return Ok(self.hub(head, Store::Other(store), None)) };
        let runtime = Runtime::try_current().map_err(ReadError::new)?;
        Ok(self.hub(head, Store::Other(store), Some((feed, runtime))))
    }

    fn hub(self, head: Cursor, store: Store, feed: Option<(Feed, Runtime)>) -> Hub {
        let shared = Arc::new(Shared {
            window: Window::new(head, self.window, self.topic_life),
            store,
            queue: Queue::default(),
            registry: Registry::new(self.max_subscriptions),
            #[cfg(feature = "client-heartbeats")]
            sessions: super::session::Sessions::default(),
            counters: Counters::default(),
            settings: Arc::new(self.settings),
            max_event_bytes: self.max_event_bytes,
            append_timeout: self.append_timeout,
            read_timeout: self.read_timeout,
            has_feed: feed.is_some(),
            node: Run::new_log().epoch,
            runtime: Runtime::try_current().ok(),
        });
        let feed = feed.map(|(feed, runtime)| runtime.spawn(feed::follow(Arc::clone(&shared), feed)).abort_handle());
        Hub { handle: Arc::new(Handle { shared, feed }) }
    }
}
