//! [`FaultyStore`]: a store that fails when a test says so.

use crate::{
    Topic,
    replay::{AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore, Ring},
    sync::Mutex,
};
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::Notify;

/// What happens to the next append, read or `forget`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails and nothing was stored.
    Refused,
    /// The append fails, without saying that nothing was stored; nothing was. A read or a `forget` fails.
    Unknown,
    /// The append fails, without saying that everything was stored; it was. A `forget` fails, and the topic is forgotten. A
    /// read fails.
    UnknownButStored,
    /// The call waits until [`Faults::release`], and then succeeds.
    Hangs,
}

/// A [`Ring`] whose appends and reads fail as scripted. It is a store like one of your own: the hub does not know that it
/// is a ring.
///
/// ```
/// use tidings::{Event, Hub, Topic, test_util::{Fault, FaultyStore}};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
/// let (store, faults) = FaultyStore::new();
/// let hub = Hub::builder().open(store).await.unwrap();
/// let topic = Topic::new("prices").unwrap();
///
/// faults.next_append(Fault::Unknown);
/// let error = hub.publish(&topic, Event::new().data("42")).await.unwrap_err();
/// assert!(error.is_unknown());
/// # })
/// ```
#[derive(Debug)]
pub struct FaultyStore {
    ring: Arc<Ring>,
    faults: Faults,
}

/// Says what a [`FaultyStore`] does next, and how often it was asked.
#[derive(Clone, Debug)]
pub struct Faults {
    ring: Arc<Ring>,
    state: Arc<Mutex<State>>,
    released: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    appends: Script,
    reads: Script,
    forgets: Script,
}

#[derive(Debug, Default)]
struct Script {
    next: VecDeque<Fault>,
    calls: usize,
}

impl Script {
    fn call(&mut self) -> Option<Fault> {
        self.calls += 1;
        self.next.pop_front()
    }
}

impl FaultyStore {
    /// A store over a new ring with its default bounds.
    #[must_use]
    pub fn new() -> (Self, Faults) {
        Self::over(Ring::new())
    }

    /// A store over this ring.
    #[must_use]
    pub fn over(ring: Ring) -> (Self, Faults) {
        let ring = Arc::new(ring);
        let faults = Faults { ring: Arc::clone(&ring), state: Arc::default(), released: Arc::default() };
        (Self { ring, faults: faults.clone() }, faults)
    }
}

impl Faults {
    /// Adds to what the next appends do; after that, they succeed.
    pub fn next_append(&self, fault: Fault) {
        self.state.lock().appends.next.push_back(fault);
    }

    /// Adds to what the next reads do; after that, they succeed.
    pub fn next_read(&self, fault: Fault) {
        self.state.lock().reads.next.push_back(fault);
    }

    /// Adds to what the next calls of `forget` do; after that, they succeed.
    pub fn next_forget(&self, fault: Fault) {
        self.state.lock().forgets.next.push_back(fault);
    }

    /// Lets one call go on that hangs now, or the next one that would.
    pub fn release(&self) {
        self.released.notify_one();
    }

    /// Makes a gap: nothing that was stored so far is held any more by this store. The hub's window may still have it:
    /// see [`evict`](super::evict).
    pub fn evict(&self) {
        self.ring.evict();
    }

    /// How many appends there were, failed ones included.
    #[must_use]
    pub fn appends(&self) -> usize {
        self.state.lock().appends.calls
    }

    /// How many reads there were, failed ones included.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.state.lock().reads.calls
    }
}

impl ReplayStore for FaultyStore {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.ring.head().await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let fault = self.faults.state.lock().appends.call();
        match fault {
            None => {}
            Some(Fault::Hangs) => self.faults.released.notified().await,
            Some(Fault::Refused) => return Err(AppendError::refused("scripted")),
            Some(Fault::Unknown) => return Err(AppendError::unknown("scripted")),
            Some(Fault::UnknownButStored) => {
                self.ring.append(records).await?;
                return Err(AppendError::unknown("scripted"));
            }
        }
        self.ring.append(records).await
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let fault = self.faults.state.lock().reads.call();
        match fault {
            None => {}
            Some(Fault::Hangs) => self.faults.released.notified().await,
            Some(_) => return Err(ReadError::new("scripted")),
        }
        self.ring.read(read).await
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        let fault = self.faults.state.lock().forgets.call();
        match fault {
            None => {}
            Some(Fault::Hangs) => self.faults.released.notified().await,
            Some(Fault::UnknownButStored) => {
                self.ring.forget(topic).await?;
                return Err(ReadError::new("scripted"));
            }
            Some(_) => return Err(ReadError::new("scripted")),
        }
        self.ring.forget(topic).await
    }
}
