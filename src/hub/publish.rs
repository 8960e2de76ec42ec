//! How records get into the log and to the subscribers, in one order.
//!
//! Over the [`Ring`](crate::replay::Ring), appending and showing are one critical section. Over any other store, one
//! batch at a time has the [`turn`]: the store appends it, then the window shows it, then the next batch goes. Over one that
//! nodes share, it is the [feed](super::feed) that shows what was appended.
//!
//! Invariants: no code of a store runs under a lock; a record that a store took is shown even if its publisher is gone;
//! while it is not known what a store took, nothing more is appended.

mod turn;

use self::turn::Turn;
#[cfg(feature = "tracing")]
use super::trace;
use super::{
    Shared, Store,
    error::{PublishError, PublishErrorKind as Kind},
};
use crate::{
    Topic,
    replay::{AppendError, Cursor, Draft, Entry, Notice, ReadError, Record, Refused, Ring},
    sync::Mutex,
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{runtime::Handle, sync::oneshot, time::Instant};

type Outcome = Result<Cursor, PublishError>;

impl Shared {
    /// Takes in that the store did not take a batch, or does not say whether it did.
    #[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "it is only counted"))]
    fn append_failed(&self, error: &AppendError) {
        self.counters.append_error();
        #[cfg(feature = "tracing")]
        trace::store_failed("append", error);
    }
}

/// Who has the turn to append, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    /// How many notices wait, or are with the store.
    notices: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct QueueState {
    taken: bool,
    waiting: Vec<Job>,
    /// Whether the runtime in which the hub was opened has ended.
    home_lost: bool,
    /// The topics of a batch that is with the store, or whose outcome is unknown.
    unsure: BTreeSet<Topic>,
}

#[derive(Debug)]
struct Job {
    work: Work,
    runtime: Handle,
}

#[derive(Debug)]
enum Work {
    Append(Append),
    Forget(Topic, oneshot::Sender<Result<(), ReadError>>),
    /// For all nodes.
    Notify(Notice, Room),
}

/// A place among the notices that wait. Given back however that ends, also if the store panics.
#[derive(Debug)]
struct Room(Arc<AtomicUsize>);

impl Room {
    fn take(notices: &Arc<AtomicUsize>) -> Option<Self> {
        let waiting = notices.fetch_add(1, Ordering::Relaxed);
        let room = Self(Arc::clone(notices));
        (waiting < MOST_NOTICES).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Append {
    records: Vec<Record>,
    count: usize,
    reply: oneshot::Sender<Vec<Outcome>>,
}

/// Forgets a topic, between two batches: an answer that is under way would bring it back.
pub(crate) async fn forget(shared: &Arc<Shared>, topic: Topic) -> Result<(), ReadError> {
    let runtime = Handle::try_current().map_err(ReadError::new)?;
    let (reply, answer) = oneshot::channel();
    enqueue(shared, Job { work: Work::Forget(topic, reply), runtime });
    answer.await.unwrap_or_else(|lost| Err(ReadError::new(lost)))
}

/// Notices that may wait for the store at a time: they are worth nothing later.
const MOST_NOTICES: usize = 1024;

/// Sends a notice to all nodes, in its order among what is published here. Whether that worked, the counters know.
pub(crate) fn notify(shared: &Arc<Shared>, notice: Notice) -> Result<(), PublishError> {
    let runtime = Handle::try_current().ok().or_else(|| shared.runtime.clone()).ok_or(Kind::NoRuntime)?;
    if shared.window.is_closed() {
        return Err(Kind::Closed.into());
    }
    let room = Room::take(&shared.queue.notices).ok_or(Kind::Busy)?;
    enqueue(shared, Job { work: Work::Notify(notice, room), runtime });
    Ok(())
}

/// Publishes without waiting, or says why that cannot be.
pub(crate) fn now(shared: &Arc<Shared>, record: Record) -> Outcome {
    let store = match &shared.store {
        Store::Ring(ring) => return into_ring(shared, ring, record.into()),
        Store::Other(store) => store,
    };
    shared.check(record.topic(), record.size())?;
    if shared.window.is_closed() {
        return Err(Kind::Closed.into());
    }
    let turn = Turn::try_take(shared).ok_or(Kind::Busy)?;
    if turn.is_unsure() {
        turn.recover_later();
        return Err(Kind::Busy.into());
    }
    let batch: Arc<[Record]> = [record].into();
    turn.mark_unsure(&batch);
    let Some(outcomes) = store.try_append(&batch) else {
        turn.mark_sure();
        return Err(Kind::Busy.into());
    };
    let outcome = turn.settle(&batch, outcomes).pop();
    if turn.is_unsure() {
        turn.recover_later();
    }
    outcome.unwrap_or(Err(Kind::Lost.into()))
}

/// Publishes from where nothing can wait for the outcome.
pub(crate) fn without_waiting(shared: &Arc<Shared>, record: Record) {
    if matches!(shared.store, Store::Ring(_)) {
        let _ = now(shared, record);
        return;
    }
    // Only for when the hub's own is gone, which is tried first.
    let Some(runtime) = Handle::try_current().ok().or_else(|| shared.runtime.clone()) else { return };
    if shared.check(record.topic(), record.size()).is_ok() && !shared.window.is_closed() {
        let (reply, _) = oneshot::channel();
        enqueue(shared, Job { work: Work::Append(Append { records: vec![record], count: 1, reply }), runtime });
    }
}

/// Publishes a batch; one outcome for each record, in order.
pub(crate) async fn all(shared: &Arc<Shared>, records: Vec<Record>) -> Vec<Outcome> {
    let count = records.len();
    // What is too large is told apart first, so that the others go on without it.
    let checked = records.into_iter().map(|record| shared.check(record.topic(), record.size()).map(|()| record));
    if let Store::Ring(ring) = &shared.store {
        let drafts: Vec<_> = checked.map(|record| record.map(Draft::from)).collect();
        let pushed = shared.window.publish_if_open(|now, show| {
            drafts.into_iter().map(|draft| Ok(push(ring, draft?, now, show)?.0)).collect()
        });
        return pushed.unwrap_or_else(|| failed(count, &Kind::Closed));
    }
    if shared.window.is_closed() {
        return failed(count, &Kind::Closed);
    }
    let mut good = Vec::new();
    let refused: Vec<_> = checked.map(|record| record.map(|record| good.push(record)).err()).collect();
    let mut stored = if good.is_empty() { Vec::new() } else { wait_for_turn(shared, good).await }.into_iter();
    let outcome = |refused: Option<PublishError>| match refused {
        Some(error) => Err(error),
        None => stored.next().unwrap_or(Err(Kind::Lost.into())),
    };
    refused.into_iter().map(outcome).collect()
}

/// Publishes over the ring, which never waits.
pub(crate) fn into_ring(shared: &Shared, ring: &Ring, draft: Draft) -> Outcome {
    shared.check(draft.topic(), draft.size())?;
    let pushed = shared.window.publish_if_open(|now, show| push(ring, draft, now, show));
    let (cursor, _evicted) = pushed.unwrap_or_else(|| Err(Kind::Closed.into()))?;
    Ok(cursor)
}

/// With the last of those that had to go for it, to be dropped outside of the locks: freeing it takes longer than the rest.
fn push(
    ring: &Ring,
    draft: Draft,
    now: Instant,
    show: &mut dyn FnMut(Arc<Entry>),
) -> Result<(Cursor, Option<Arc<Entry>>), PublishError> {
    let (entry, evicted) = match ring.push(draft, now) {
        Err(Refused::Duplicate(first)) => return Ok((first, None)),
        pushed => pushed?,
    };
    let cursor = entry.cursor();
    show(entry);
    Ok((cursor, evicted))
}

async fn wait_for_turn(shared: &Arc<Shared>, records: Vec<Record>) -> Vec<Outcome> {
    let count = records.len();
    let Ok(runtime) = Handle::try_current() else { return failed(count, &Kind::NoRuntime) };
    let (reply, answer) = oneshot::channel();
    enqueue(shared, Job { work: Work::Append(Append { records, count, reply }), runtime });
    // The task does not depend on this future: dropping it takes nothing back.
    answer.await.unwrap_or_else(|_| failed(count, &Kind::Lost))
}

fn enqueue(shared: &Arc<Shared>, job: Job) {
    shared.queue.state.lock().waiting.push(job);
    // Whoever has the turn passes it on to those who wait, and so does this one if there is none.
    drop(Turn::try_take(shared));
}

fn failed(count: usize, kind: &Kind) -> Vec<Outcome> {
    (0..count).map(|_| Err(kind.clone().into())).collect()
}

impl Append {
    fn fail(self, kind: &Kind) {
        let _ = self.reply.send(failed(self.count, kind));
    }
}

/// What a publisher is answered.
fn answer(outcome: Result<Cursor, Refused>) -> Outcome {
    match outcome {
        Err(Refused::Duplicate(first)) => Ok(first),
        outcome => Ok(outcome?),
    }
}
