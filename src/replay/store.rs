//! The trait and its contract.

use super::{AppendError, Cursor, Feed, Notice, Page, Read, ReadError, Record, Refused};
use crate::Topic;
use std::{pin::Pin, sync::Arc};

/// Where a hub keeps its log.
///
/// # For users
///
/// A hub over [`Ring`](super::Ring), the default, keeps its log in the memory of the process: clients resume across
/// reconnects, not across a restart, which they are told of as a gap. A durable store keeps ids good across restarts.
/// Pass it to [`HubBuilder::open`](crate::HubBuilder::open). A store belongs to one hub, unless it has a
/// [`feed`](Self::feed): appending to it from elsewhere leaves the hub's subscribers without those events until they
/// reconnect. A store with a feed is shared by any number of hubs, each in a process of its own: what is published to one
/// is received by the subscribers of all, in the same order.
///
/// # For implementors
///
/// The conformance suite (`tidings::replay::conformance`, feature `conformance`) checks these rules; the repository's
/// `examples/custom_store.rs` is a store over `SQLite` that keeps them, and the page `tidings::replay::writing_a_store` says
/// how to do that over `PostgreSQL`, for one process or several.
///
/// **Order.** The store *must* give every record a position higher than any it gave before in this run, over all topics
/// together, in the order of the batch, and with no record of another batch between. Positions *may* skip numbers; they
/// *must not* be given again because what had them was removed. Once a position has been readable, nothing lower *must*
/// ever become readable: a number that is given before a transaction commits (a plain SQL sequence) breaks this, because
/// a later number can commit first.
///
/// **Runs.** The store *must* draw an epoch ([`Run::new_log`](super::Run::new_log)) when it creates a log and keep it
/// with the log. Whenever the log may have lost what it had, the store *must* begin a new run and keep the position at
/// which it began; a log of one process begins one each time it is opened, because that process may have crashed. Its
/// number *must* be one that no run of the log ever had. A log that can be restored from an older copy does not know them
/// all, and the clock gives the same twice within its unit, so draw it at random. A cursor of an older run is good up to the
/// lowest position at which a later run began, and foreign past it. Every cursor that the store returns *must* be of its
/// present run, also that of a record of an older one.
///
/// **Append.** Either a record is stored and its cursor returned, or it is [`Refused`] and leaves no trace; one outcome
/// for each record, in order. A refused record *must not* fail the others of its batch. A record for a finished topic
/// *must* be refused with [`Refused::Finished`], also when the end is earlier in the same batch; that the topic is
/// finished is state of the log, kept as long as the topic, even if all its records are gone. The hub sends one batch at
/// a time and never drops the future of an append before it is done. If the store cannot know whether it has the batch,
/// it *must* answer [`AppendError::unknown`]: unless the store has a feed, the hub then reads what follows its last position
/// before it appends again.
///
/// **Idempotency keys.** A record with one ([`Record::idempotency_key`]) that a stored record of its topic had *must* be
/// refused with [`Refused::Duplicate`] and the place of that record, before anything else is looked at: also if that was
/// earlier in the same batch, is no longer held, or was the end of the topic. The store says for how long it remembers
/// keys; five minutes is usual. The key of a record that was refused *must not* be remembered, and another topic's key is
/// another key. Those of a forgotten topic *may* be forgotten with it. A store that remembers none *must* refuse each record that has one, with [`Refused::Other`].
///
/// **Read.** A page *must* come from one consistent view of the log. It *must* have every record of the asked topics
/// that is held between where the read began and `through`, and none of any other topic, whatever the cursor says. It
/// *must not* end before the last record unless it has reached `max_events` or `max_bytes`, which counts bodies (a store
/// *may* count what it adds to them, up to the size of [`Entry::frame`](super::Entry::frame)). A page that has everything
/// *must* have the newest position as `through`, even if it is empty; one that a bound has ended, its last record, or a
/// place between that and the next. `finished` *must* have each asked topic once that ended at or before `through`, even
/// if its end is no longer held. Of a foreign page nothing but `through` means anything. Reads run at the same time as
/// each other and as appends, and their futures *may* be dropped.
///
/// **Floors.** `floor` *must* be at least the highest position of an asked topic that was removed, by eviction or by
/// [`forget`](Self::forget), and *may* be higher: a store may keep one floor for many topics, at the price of clients
/// that refresh without need. It *must* stay 0 while nothing was removed, and *must not* be past the newest position.
///
/// **Newest of a key.** A record of kind [`Latest`](super::Kind::Latest) or [`Removal`](super::Kind::Removal) takes the
/// place of the record of these kinds that its topic has under the same key ([`Record::replaces`]), however old that is:
/// the store *must* remove that in the same step, so that no page has both or neither. This raises *no* floor and is not
/// counted as removed, because who has not read the older one reads the newer. A record of another kind replaces nothing
/// and is replaced by nothing, whatever its key. A refused record replaces nothing.
///
/// **Eviction.** The store decides what it keeps, oldest first within a topic: what is held of a topic is its newest
/// records, but that those of kind `Latest` may outlast the others. It *must* raise the floor no later than the record becomes unreadable, and what was removed *must not* come
/// back. What goes by its age *should not* be a record of kind `Latest` whose topic is not finished: that is state, and
/// good until it is replaced.
///
/// **Several tasks.** All methods can run at the same time as each other and as themselves. The hub appends one batch at a
/// time, but the rules do not depend on it.
///
/// **Several nodes.** A store of a log that others append to *must* have a [`feed`](Self::feed). It gives each record of
/// the log once, of all topics, in the order of their positions, from the place that it was asked for: whatever was
/// appended, by whomever, also through this store. It *must not* leave a record out without a [`FeedItem::Skip`](super::FeedItem::Skip) to a
/// place at or past it, unless a newer one of its key has taken its place; so a feed that is notified of what is appended
/// *must* find out what it was not notified of, also if nothing more is appended. Where another run begins, it *must* say
/// so with a `Skip` to a place in it. [`forget`](Self::forget) has its place in that order; a `Skip` past it will do, where
/// what came before it is no longer known. The feed hears notices from when it is first polled. It *must not* end: it goes on
/// by itself when the log is within reach again, and says [`FeedItem::Lost`](super::FeedItem::Lost) and [`FeedItem::Caught`](super::FeedItem::Caught) around that time. A
/// log that is opened by one more node while others have it open is *not* opened anew: no run begins by that.
///
/// **Records.** Topic, kind, body, time, key and labels *must* be returned as they were given, the time to within a
/// millisecond. Encode [`Topic::as_key`], [`Kind::as_str`](super::Kind::as_str) and [`Record::body`] as they are; rebuild
/// with [`Record::from_stored`]. Keys, labels and values are any text of any length up to what
/// [`max_event_bytes`](crate::HubBuilder::max_event_bytes) allows, also empty, with NUL, or alike but for their case. An end is a record like others, with or without a body.
///
/// **Failures.** Over a store that has a feed, what was stored is shown when the feed brings it, whatever the publisher was
/// answered, and the hub asks nothing after an unknown append. Over any other, it asks again only where nothing else could be right: after an unknown append it reads what follows
/// its last position, at once, and then every 50 ms, twice that, and so on up to 5 s, until that is answered; meanwhile
/// nothing is appended, and publishers are refused. It never repeats an append. A read that fails, or is not answered
/// within [`read_timeout`](crate::HubBuilder::read_timeout), fails its subscription, whose client comes back by itself at
/// a time that was drawn for it. A [`forget`](Self::forget) that fails, or whose future was dropped after that time, is as if
/// it were not known whether the topic is forgotten.
///
/// Methods take owned arguments, so that an implementation can move them to a thread where it may block
/// (`tokio::task::spawn_blocking`).
pub trait ReplayStore: Send + Sync + 'static {
    /// The present run and the newest position: no lower than any that was given, lower than all that will be, and 0 in a
    /// new log.
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

    /// Removes a topic with all its records, and that it was finished, in one step: a page has the topic as it was before,
    /// or nothing of it. It can be appended to again. Forgetting an unknown topic does nothing.
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

    /// What any node appends after a place, in order, for a log that several nodes share.
    ///
    /// A hub asks for it once, with the place that [`head`](Self::head) gave, and once more if it has ended or panicked. It
    /// shows its subscribers what the feed brings, and nothing else. The default is `None`: nobody else appends.
    fn feed(&self, after: Cursor) -> Option<Feed> {
        let _ = after;
        None
    }

    /// Gives notices to the feeds of all nodes, this one's included, in order. They are not kept, and who is cut off does not
    /// get them.
    ///
    /// Asked only of a store that has a [`feed`](Self::feed). The default is an error.
    ///
    /// # Errors
    ///
    /// When they cannot be sent; some may have been.
    fn notify(&self, notices: Vec<Notice>) -> impl Future<Output = Result<(), ReadError>> + Send {
        let _ = notices;
        std::future::ready(Err(ReadError::new("this store has nobody to notify")))
    }
}

/// A store that is shared, so that something else can look after it.
impl<S: ReplayStore> ReplayStore for Arc<S> {
    fn head(&self) -> impl Future<Output = Result<Cursor, ReadError>> + Send {
        (**self).head()
    }

    fn append(&self, records: Arc<[Record]>) -> impl Future<Output = Outcomes> + Send {
        (**self).append(records)
    }

    fn read(&self, read: Read) -> impl Future<Output = Result<Page, ReadError>> + Send {
        (**self).read(read)
    }

    fn forget(&self, topic: Topic) -> impl Future<Output = Result<(), ReadError>> + Send {
        (**self).forget(topic)
    }

    fn try_append(&self, records: &Arc<[Record]>) -> Option<Outcomes> {
        (**self).try_append(records)
    }

    fn feed(&self, after: Cursor) -> Option<Feed> {
        (**self).feed(after)
    }

    fn notify(&self, notices: Vec<Notice>) -> impl Future<Output = Result<(), ReadError>> + Send {
        (**self).notify(notices)
    }
}

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type Outcomes = Result<Vec<Result<Cursor, Refused>>, AppendError>;

/// A store whose type was forgotten, so that the types of a hub do not depend on it. The futures own the store.
pub(crate) trait ErasedStore: Send + Sync {
    fn head(self: Arc<Self>) -> BoxFuture<Result<Cursor, ReadError>>;
    fn append(self: Arc<Self>, records: Arc<[Record]>) -> BoxFuture<Outcomes>;
    fn read(self: Arc<Self>, read: Read) -> BoxFuture<Result<Page, ReadError>>;
    fn forget(self: Arc<Self>, topic: Topic) -> BoxFuture<Result<(), ReadError>>;
    fn try_append(&self, records: &Arc<[Record]>) -> Option<Outcomes>;
    fn feed(&self, after: Cursor) -> Option<Feed>;
    fn notify(self: Arc<Self>, notices: Vec<Notice>) -> BoxFuture<Result<(), ReadError>>;
}

impl<S: ReplayStore> ErasedStore for S {
    fn head(self: Arc<Self>) -> BoxFuture<Result<Cursor, ReadError>> {
        Box::pin(async move { ReplayStore::head(&*self).await })
    }

    fn append(self: Arc<Self>, records: Arc<[Record]>) -> BoxFuture<Outcomes> {
        Box::pin(async move { ReplayStore::append(&*self, records).await })
    }

    fn read(self: Arc<Self>, read: Read) -> BoxFuture<Result<Page, ReadError>> {
        Box::pin(async move { ReplayStore::read(&*self, read).await })
    }

    fn forget(self: Arc<Self>, topic: Topic) -> BoxFuture<Result<(), ReadError>> {
        Box::pin(async move { ReplayStore::forget(&*self, topic).await })
    }

    fn try_append(&self, records: &Arc<[Record]>) -> Option<Outcomes> {
        ReplayStore::try_append(self, records)
    }

    fn feed(&self, after: Cursor) -> Option<Feed> {
        ReplayStore::feed(self, after)
    }

    fn notify(self: Arc<Self>, notices: Vec<Notice>) -> BoxFuture<Result<(), ReadError>> {
        Box::pin(async move { ReplayStore::notify(&*self, notices).await })
    }
}
