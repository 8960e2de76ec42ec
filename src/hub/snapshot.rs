//! [`Snapshots`]: the application's state as events, for subscriptions that cannot be brought up to date from the log.
//!
//! Invariants: the place from which the log is followed was taken before the application's function ran, so nothing falls
//! between; the function never runs under a lock, and never twice at once for the same topics.

use super::Shared;
use crate::{Event, Topics, encode::Lines, replay::Cursor, sync::Mutex};
use bytes::Bytes;
use std::{collections::HashMap, error::Error, fmt, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    sync::{OnceCell, Semaphore},
    time::timeout,
};

type Source = Arc<dyn Error + Send + Sync>;
type Made = Result<Vec<Event>, Source>;
type Make = dyn Fn(Topics) -> Pin<Box<dyn Future<Output = Made> + Send>> + Send + Sync;
pub(crate) type Taking = Pin<Box<dyn Future<Output = Result<Snapshot, Source>> + Send>>;

/// How to bring a client up to date from the application's own state: after a gap with
/// [`GapPolicy::Snapshot`](crate::GapPolicy), or as the beginning of a fresh subscription with
/// [`Subscription::snapshot_first`](crate::Subscription::snapshot_first).
///
/// The function gets the topics and returns the events that describe their state. They are sent without ids; then the
/// client's id is moved to where the log was before the function ran, and the log is followed from there. So an
/// application must change its state before it publishes the change, and a client must bear to be told of a change that
/// the snapshot already shows.
///
/// Subscriptions that ask for the same topics at the same time share one run. If a run fails or takes too long, their
/// streams fail with a reconnection time drawn for each, and their ids are still good.
///
/// ```
/// use std::convert::Infallible;
/// use tidings::{Event, EventType, GapPolicy, Hub, Snapshots, Topics};
///
/// const STATE: EventType = EventType::from_static("state");
///
/// let snapshots = Snapshots::new(|topics: Topics| async move {
///     // Read the state of these topics.
///     Ok::<_, Infallible>(vec![Event::new().event_type(STATE).data("42")])
/// });
/// let hub = Hub::builder().on_gap(GapPolicy::Snapshot(snapshots)).build();
/// ```
#[derive(Clone)]
pub struct Snapshots {
    make: Arc<Make>,
    permits: Arc<Semaphore>,
    timeout: Duration,
    running: Arc<Mutex<HashMap<Key, Arc<Run>>>>,
}

/// The hub and the topics.
type Key = (usize, Topics);
type Run = OnceCell<Result<Snapshot, Source>>;

/// A snapshot that was taken, shared by those who asked for it.
#[derive(Clone)]
pub(crate) struct Snapshot {
    /// Where the log was before.
    pub(crate) cursor: Cursor,
    pub(crate) events: Arc<[Event]>,
    /// The events as they go over the wire.
    pub(crate) frame: Bytes,
}

impl Snapshots {
    /// At most this many runs at once, unless [`concurrency`](Self::concurrency) says otherwise: enough for a reconnect
    /// storm over many topics, few enough for a database behind it.
    pub const DEFAULT_CONCURRENCY: usize = 32;

    /// Snapshots made by a function.
    pub fn new<F, R, E>(make: F) -> Self
    where
        F: Fn(Topics) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<Event>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let make = move |topics| -> Pin<Box<dyn Future<Output = Made> + Send>> {
            let run = make(topics);
            Box::pin(async move { run.await.map_err(|error| error.into().into()) })
        };
        Self {
            make: Arc::new(make),
            permits: Arc::new(Semaphore::new(Self::DEFAULT_CONCURRENCY)),
            timeout: Duration::from_secs(10),
            running: Arc::default(),
        }
    }

    /// Sets how many runs there may be at once, for different topics. Default: 32. Zero counts as one.
    #[must_use]
    pub fn concurrency(self, runs: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(runs.clamp(1, Semaphore::MAX_PERMITS))), ..self }
    }

    /// Sets how long a client waits for its snapshot, its turn to run included. Default: 10 seconds.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Takes a snapshot, or waits for the one that is being taken.
    pub(super) fn take(&self, shared: Arc<Shared>, topics: Topics) -> Taking {
        let this = self.clone();
        Box::pin(async move {
            let key = (Arc::as_ptr(&shared).addr(), topics.clone());
            let run = Arc::clone(this.running.lock().entry(key.clone()).or_default());
            let running = Running { snapshots: &this, key, run };
            let result = running.run.get_or_init(|| async { this.run(&shared, topics).await }).await;
            result.clone()
        })
    }

    async fn run(&self, shared: &Shared, topics: Topics) -> Result<Snapshot, Source> {
        let run = async {
            // The semaphore is never closed.
            let _permit = self.permits.acquire().await;
            let cursor = shared.window.head();
            let events = (self.make)(topics).await?;
            let mut frame = Lines::default();
            for event in &events {
                event.clone().join(None, &mut frame, 0);
            }
            Ok(Snapshot { cursor, events: events.into(), frame: frame.take_frame() })
        };
        timeout(self.timeout, run).await.unwrap_or_else(|_| Err(Source::from(TookTooLong(self.timeout).boxed())))
    }
}

/// Someone who waits for a run. The last one to go removes it, so that the next to ask starts anew.
struct Running<'a> {
    snapshots: &'a Snapshots,
    key: Key,
    run: Arc<Run>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut running = self.snapshots.running.lock();
        let ours = running.get(&self.key).is_some_and(|run| Arc::ptr_eq(run, &self.run));
        // The map's and ours.
        if ours && (self.run.initialized() || Arc::strong_count(&self.run) == 2) {
            running.remove(&self.key);
        }
    }
}

#[derive(Debug)]
struct TookTooLong(Duration);

impl TookTooLong {
    fn boxed(self) -> Box<dyn Error + Send + Sync> {
        Box::new(self)
    }
}

impl fmt::Display for TookTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the snapshot was not there after {:?}", self.0)
    }
}

impl Error for TookTooLong {}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.running.lock().len();
        f.debug_struct("Snapshots").field("timeout", &self.timeout).field("running", &running).finish_non_exhaustive()
    }
}
