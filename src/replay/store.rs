//! The trait and its contract.

use super::{AppendError, Cursor, Page, Read, ReadError, Record, Refused};
use crate::Topic;
use std::{pin::Pin, sync::Arc};

/// Where a hub keeps its log.
///
/// # For users
///
/// A hub over [`Ring`](super::Ring), the default, keeps its log in the memory of the process: clients resume across
/// reconnects, not across a restart, which they are told of as a gap. A durable store keeps ids good across restarts.
/// Pass it to [`HubBuilder::open`](crate::HubBuilder::open). A store belongs to one hub: appending to it from elsewhere
/// leaves the hub's subscribers without those events until they reconnect.
///
/// # For implementors
///
/// The conformance suite (`tidings::replay::conformance`, feature `conformance`) checks these rules; the repository's
/// `examples/custom_store.rs` is a store over `SQLite` that keeps them.
///
/// **Order.** The store *must* give every record a position higher than any it gave before in this run, over all topics
/// together, in the order of the batch. Positions *may* skip numbers. Once a position has been readable, nothing lower
/// *must* ever become readable: a number that is given before a transaction commits (a plain SQL sequence) breaks this,
/// because a later number can commit first.
///
/// **Runs.** The store *must* draw an epoch ([`Run::new_log`](super::Run::new_log)) when it creates a log and keep it
/// with the log. Each time the log is opened, and whenever it may have lost what it had, the store *must* begin a new run
/// and keep the position at which it began. A cursor of an older run is good up to the lowest position at which a later
/// run began, and foreign past it.
///
/// **Append.** Either a record is stored and its cursor returned, or it is [`Refused`] and leaves no trace; one outcome
/// for each record, in order. A refused record *must not* fail the others of its batch. A record for a finished topic
/// *must* be refused with [`Refused::Finished`]; that the topic is finished is state of the log, kept as long as the
/// topic, even if all its records are gone. The hub sends one batch at a time and never drops the future of an append
/// before it is done. If the store cannot know whether it has the batch, it *must* answer [`AppendError::unknown`]: the
/// hub then reads what follows its last position before it appends again.
///
/// **Read.** A page *must* come from one consistent view of the log. It *must* have every record of the asked topics
/// that is held between where the read began and `through`, and none of any other topic, whatever the cursor says.
/// `floor` *must* be at least the highest position of an asked topic that was removed, by eviction or by
/// [`forget`](Self::forget), and *may* be higher: a store may keep one floor for many topics, at the price of clients
/// that refresh without need. It *must* stay 0 while nothing was removed. Reads run at the same time as each other and
/// as appends, and their futures *may* be dropped.
///
/// **Eviction.** The store decides what it keeps, oldest first within a topic. It *must* raise the floor no later than
/// the record becomes unreadable.
///
/// **Records.** Topic, kind, body, time, key and labels *must* be returned as they were given. Encode
/// [`Topic::as_key`] and [`Record::body`] as they are; rebuild with [`Record::from_stored`].
///
/// Methods take owned arguments, so that an implementation can move them to a thread where it may block
/// (`tokio::task::spawn_blocking`).
pub trait ReplayStore: Send + Sync + 'static {
    /// The present run and the newest position, 0 in a new log.
    ///
    /// # Errors
    ///
    /// When the log cannot be reached.
    fn head(&self) -> impl Future<Output = Result<Cursor, ReadError>> + Send;

    /// Appends records in order. One outcome for each: its cursor, or why it was refused.
    ///
    /// # Errors
    ///
    /// When nothing was stored, or when that cannot be known.
    fn append(
        &self,
        records: Arc<[Record]>,
    ) -> impl Future<Output = Result<Vec<Result<Cursor, Refused>>, AppendError>> + Send;

    /// The next records of some topics.
    ///
    /// # Errors
    ///
    /// When the log cannot be reached. A cursor that means nothing here is not an error.
    fn read(&self, read: Read) -> impl Future<Output = Result<Page, ReadError>> + Send;

    /// Removes a topic with all its records, and that it was finished. Forgetting an unknown topic does nothing.
    ///
    /// # Errors
    ///
    /// When the log cannot be reached.
    fn forget(&self, topic: Topic) -> impl Future<Output = Result<(), ReadError>> + Send;

    /// Appends at once, where no waiting is needed: what [`Hub::publish_now`](crate::Hub::publish_now) uses.
    ///
    /// The default is `None`: this store cannot. A store *must* answer `None` before it has stored anything.
    fn try_append(&self, records: &Arc<[Record]>) -> Option<Result<Vec<Result<Cursor, Refused>>, AppendError>> {
        let _ = records;
        None
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type Outcomes = Result<Vec<Result<Cursor, Refused>>, AppendError>;

/// A store whose type was forgotten, so that the types of a hub do not depend on it. The futures own the store.
pub(crate) trait ErasedStore: Send + Sync {
    fn append(self: Arc<Self>, records: Arc<[Record]>) -> BoxFuture<Outcomes>;
    fn read(self: Arc<Self>, read: Read) -> BoxFuture<Result<Page, ReadError>>;
    fn try_append(&self, records: &Arc<[Record]>) -> Option<Outcomes>;
}

impl<S: ReplayStore> ErasedStore for S {
    fn append(self: Arc<Self>, records: Arc<[Record]>) -> BoxFuture<Outcomes> {
        Box::pin(async move { ReplayStore::append(&*self, records).await })
    }

    fn read(self: Arc<Self>, read: Read) -> BoxFuture<Result<Page, ReadError>> {
        Box::pin(async move { ReplayStore::read(&*self, read).await })
    }

    fn try_append(&self, records: &Arc<[Record]>) -> Option<Outcomes> {
        ReplayStore::try_append(self, records)
    }
}
