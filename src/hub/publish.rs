//! How records get into the log and to the subscribers, in one order.
//!
//! Over the [`Ring`](crate::replay::Ring), appending and showing are one critical section. Over any other store, one
//! batch at a time has the turn: the store appends it, then the window shows it, then the next batch goes.
//!
//! Invariants: no code of a store runs under a lock; a record that a store took is shown even if its publisher is gone;
//! while it is not known what a store took, nothing more is appended.

#[cfg(feature = "tracing")]
use super::trace;
use super::{
    Shared, Store,
    error::{PublishError, PublishErrorKind as Kind},
};
use crate::{
    Topic, Topics,
    replay::{AppendError, Cursor, Draft, Entry, ErasedStore, Outcomes, Read, ReadError, ReadFrom, Record, Ring},
    sync::Mutex,
};
use std::{collections::BTreeSet, error::Error, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

type Outcome = Result<Cursor, PublishError>;

/// How long to wait before a store that could not be read is asked again what it took; doubled each time, up to the
/// second.
const RECOVERY_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

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
    let (entry, evicted) = ring.push(draft, now)?;
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

/// The right to append; there is one. Dropped, it goes to a task that serves those who wait, or back.
struct Turn {
    shared: Arc<Shared>,
    /// Whether a task has it and is not done.
    serving: bool,
    /// Whether that task was ever polled.
    begun: bool,
}

impl Turn {
    fn try_take(shared: &Arc<Shared>) -> Option<Self> {
        let taken = std::mem::replace(&mut shared.queue.state.lock().taken, true);
        (!taken).then(|| Self { shared: Arc::clone(shared), serving: false, begun: false })
    }

    fn waiting(&self) -> Vec<Job> {
        std::mem::take(&mut self.shared.queue.state.lock().waiting)
    }

    /// Finds out what the store took, if there is a runtime to do that in; or else the next `publish` does.
    fn recover_later(mut self) {
        if let Some(runtime) = self.shared.runtime.clone().or_else(|| Handle::try_current().ok()) {
            self.serving = true;
            runtime.spawn(self.serve(Vec::new()));
        }
    }

    fn is_unsure(&self) -> bool {
        !self.shared.queue.state.lock().unsure.is_empty()
    }

    fn mark_unsure(&self, batch: &[Record]) {
        self.shared.queue.state.lock().unsure.extend(batch.iter().map(|record| record.topic().clone()));
    }

    fn mark_sure(&self) {
        self.shared.queue.state.lock().unsure.clear();
    }

    /// Shows what the store took, and makes the answers.
    fn settle(&self, batch: &[Record], outcomes: Outcomes) -> Vec<Outcome> {
        let outcomes = match outcomes.inspect_err(|error| self.shared.append_failed(error)) {
            Ok(outcomes) if outcomes.len() == batch.len() => outcomes,
            Ok(_) => {
                let error = AppendError::unknown("the store's outcomes are not as many as the records");
                self.shared.append_failed(&error);
                return failed(batch.len(), &Kind::Unknown(Arc::new(error)));
            }
            Err(error) if error.is_unknown() => return failed(batch.len(), &Kind::Unknown(Arc::new(error))),
            Err(error) => {
                self.mark_sure();
                return failed(batch.len(), &Kind::Store(Arc::new(error)));
            }
        };
        let mut entries = Vec::with_capacity(batch.len());
        let mut answers = Vec::with_capacity(batch.len());
        for (record, outcome) in batch.iter().zip(outcomes) {
            entries.extend(outcome.as_ref().ok().map(|cursor| Arc::new(Entry::new(*cursor, record.clone()))));
            answers.push(outcome.map_err(PublishError::from));
        }
        self.shared.window.publish(entries);
        self.mark_sure();
        answers
    }

    /// Appends for those who wait until there are none.
    async fn serve(mut self, jobs: Vec<Job>) {
        self.begun = true;
        if let Store::Other(store) = &self.shared.store {
            self.serve_all(store, jobs).await;
        }
        self.serving = false;
    }

    async fn serve_all(&self, store: &Arc<dyn ErasedStore>, mut jobs: Vec<Job>) {
        let mut backoff = RECOVERY_BACKOFF.0;
        loop {
            let unsure = self.shared.queue.state.lock().unsure.clone();
            if !unsure.is_empty() {
                let recovered = timeout(self.shared.append_timeout, self.recover(store, unsure)).await;
                match recovered.unwrap_or_else(|_| Err(ReadError::new("the store does not answer"))) {
                    Ok(()) => self.mark_sure(),
                    // The hub is gone: nobody is left to show anything to.
                    Err(_) if self.shared.window.is_closed() => return,
                    Err(error) => {
                        self.shared.counters.read_error();
                        #[cfg(feature = "tracing")]
                        trace::store_failed("recover", &error);
                        jobs.append(&mut self.waiting());
                        let why: Arc<dyn Error + Send + Sync> = Arc::new(error);
                        refuse(jobs, &why);
                        sleep(backoff).await;
                        backoff = RECOVERY_BACKOFF.1.min(backoff * 2);
                        jobs = self.waiting();
                        continue;
                    }
                }
            }
            backoff = RECOVERY_BACKOFF.0;
            if jobs.is_empty() {
                jobs = self.waiting();
            }
            if jobs.is_empty() {
                return;
            }
            // In their order: what was published before a topic was forgotten must not bring it back.
            let forgets = |job: &Job| matches!(job.work, Work::Forget(..));
            let until = jobs.iter().position(forgets).unwrap_or(jobs.len()).max(1);
            let rest = jobs.split_off(until);
            let mut appends = Vec::new();
            for job in std::mem::replace(&mut jobs, rest) {
                match job.work {
                    Work::Append(append) => appends.push(append),
                    Work::Forget(topic, reply) => {
                        let asked = Instant::now();
                        let forgotten = self.shared.in_time(Arc::clone(store).forget(topic.clone())).await;
                        // After a failure, whether the topic is still there is for the store to say.
                        #[cfg(feature = "tracing")]
                        let forgotten = forgotten.inspect_err(|error| trace::store_failed("forget", error));
                        self.shared.window.forget(&topic, forgotten.is_ok(), || ());
                        let late = forgotten.is_err() && asked.elapsed() >= self.shared.read_timeout;
                        let _ = reply.send(forgotten);
                        if late {
                            // Nobody waits longer than this behind it.
                            jobs.append(&mut self.waiting());
                            let why: Arc<dyn Error + Send + Sync> =
                                Arc::new(AppendError::refused("the store does not answer"));
                            refuse(std::mem::take(&mut jobs), &why);
                        }
                    }
                }
            }
            if !appends.is_empty() {
                self.append(store, appends).await;
            }
        }
    }

    /// Appends what some ask for as one batch, and answers them.
    async fn append(&self, store: &Arc<dyn ErasedStore>, mut asked: Vec<Append>) {
        let batch: Arc<[Record]> = asked.iter_mut().flat_map(|one| std::mem::take(&mut one.records)).collect();
        self.mark_unsure(&batch);
        let limit = self.shared.append_timeout;
        let mut append = Arc::clone(store).append(Arc::clone(&batch));
        let in_time = timeout(limit, append.as_mut()).await;
        let outcomes = if let Ok(outcomes) = in_time {
            outcomes
        } else {
            // The append goes on, because what it stores must be shown. Nobody waits for it any more, nor longer than
            // this behind it.
            let error = AppendError::unknown("the store did not answer in time");
            self.shared.append_failed(&error);
            let unknown = Kind::Unknown(Arc::new(error));
            asked.drain(..).for_each(|one| one.fail(&unknown));
            loop {
                if let Ok(outcomes) = timeout(limit, append.as_mut()).await {
                    break outcomes;
                }
                let why: Arc<dyn Error + Send + Sync> = Arc::new(AppendError::refused("the store does not answer"));
                refuse(self.waiting(), &why);
            }
        };
        let mut answers = self.settle(&batch, outcomes).into_iter();
        for one in asked {
            // A publisher that is gone needs no answer.
            let _ = one.reply.send(answers.by_ref().take(one.count).collect());
        }
    }

    /// Shows what the store took of batches whose outcome is unknown.
    async fn recover(&self, store: &Arc<dyn ErasedStore>, topics: BTreeSet<Topic>) -> Result<(), ReadError> {
        let topics = Topics::with_limit(topics, usize::MAX).map_err(ReadError::new)?;
        let (max_events, max_bytes) = self.shared.settings.page;
        loop {
            let head = self.shared.window.head();
            let from = ReadFrom::After(head);
            let read = Read { max_events, max_bytes, ..Read::new(&topics, from) };
            let page = Arc::clone(store).read(read).await?;
            if page.foreign {
                self.shared.window.reset(page.through);
                return Ok(());
            }
            if page.floor > head.position() {
                // Some of what was stored is gone already: those who follow are told by the store.
                self.shared.window.lose(&topics, page.floor);
            }
            if page.entries.is_empty() {
                // Who comes now begins after what was lost.
                self.shared.window.advance(page.through);
                return Ok(());
            }
            self.shared.window.publish(page.entries);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.shared.queue.state.lock();
        // Dropped in the middle, and not by a panic, or before it began: the runtime is gone.
        let lost = self.serving && !(self.begun && std::thread::panicking());
        state.home_lost |= lost;
        let jobs = std::mem::take(&mut state.waiting);
        // A store that panicked may have stored what it was given. Not where a task is dropped with its runtime: there a
        // new one would be dropped at once, again and again.
        let unsure = !state.unsure.is_empty() && !lost && std::thread::panicking();
        let current = unsure.then(|| Handle::try_current().ok()).flatten();
        let home = self.shared.runtime.as_ref().filter(|_| !state.home_lost);
        let runtime = jobs.first().map(|job| home.unwrap_or(&job.runtime).clone()).or(current);
        state.taken = runtime.is_some();
        drop(state);
        if let Some(runtime) = runtime {
            runtime.spawn(Self { shared: Arc::clone(&self.shared), serving: true, begun: false }.serve(jobs));
        }
    }
}

impl Append {
    fn fail(self, kind: &Kind) {
        let _ = self.reply.send(failed(self.count, kind));
    }
}

/// Answers those who waited for a store that cannot be used: nothing of theirs was given to it.
fn refuse(jobs: Vec<Job>, why: &Arc<dyn Error + Send + Sync>) {
    for job in jobs {
        match job.work {
            Work::Append(append) => append.fail(&Kind::Store(Arc::clone(why))),
            Work::Forget(_, reply) => drop(reply.send(Err(ReadError::new(Arc::clone(why))))),
        }
    }
}
