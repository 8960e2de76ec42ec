//! [`Turn`]: the right to append to a store other than the ring, and the task that has it while others wait.
//!
//! Invariants: one batch at a time is with the store; while it is not known what the store took, nothing more is appended;
//! what it took is shown even if the publishers are gone.

#[cfg(feature = "tracing")]
use super::trace;
use super::{Append, Job, Kind, Outcome, Work, answer, failed};
use crate::{
    Topic, Topics,
    hub::{Shared, Store},
    replay::{AppendError, Entry, ErasedStore, Notice, Outcomes, Read, ReadError, ReadFrom, Record},
};
use std::{collections::BTreeSet, error::Error, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

/// How long to wait before a store that could not be read is asked again what it took; doubled each time, up to the
/// second.
const RECOVERY_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What those who wait are given to the store as one batch at most, in records and bytes, unless one of them alone has more:
/// servers have bounds for what they take and pass on at once, and the first is not to wait for long with the last.
const MOST_AT_ONCE: (usize, usize) = (4096, 8 * 1024 * 1024);

/// The right to append; there is one. Dropped, it goes to a task that serves those who wait, or back.
pub(super) struct Turn {
    shared: Arc<Shared>,
    /// Whether a task has it and is not done.
    serving: bool,
    /// Whether that task was ever polled.
    begun: bool,
}

impl Turn {
    pub(super) fn try_take(shared: &Arc<Shared>) -> Option<Self> {
        let taken = std::mem::replace(&mut shared.queue.state.lock().taken, true);
        (!taken).then(|| Self { shared: Arc::clone(shared), serving: false, begun: false })
    }

    fn waiting(&self) -> Vec<Job> {
        std::mem::take(&mut self.shared.queue.state.lock().waiting)
    }

    /// Finds out what the store took, if there is a runtime to do that in; or else the next `publish` does.
    pub(super) fn recover_later(mut self) {
        if let Some(runtime) = self.shared.runtime.clone().or_else(|| Handle::try_current().ok()) {
            self.serving = true;
            runtime.spawn(self.serve(Vec::new()));
        }
    }

    pub(super) fn is_unsure(&self) -> bool {
        !self.shared.queue.state.lock().unsure.is_empty()
    }

    /// Not where a feed brings what was stored, whatever the store answers.
    pub(super) fn mark_unsure(&self, batch: &[Record]) {
        if self.shared.has_feed {
            return;
        }
        self.shared.queue.state.lock().unsure.extend(batch.iter().map(|record| record.topic().clone()));
    }

    pub(super) fn mark_sure(&self) {
        self.shared.queue.state.lock().unsure.clear();
    }

    /// Shows what the store took, and makes the answers.
    pub(super) fn settle(&self, batch: &[Record], outcomes: Outcomes) -> Vec<Outcome> {
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
        if !self.shared.has_feed {
            let stored =
                batch.iter().zip(&outcomes).filter_map(|(record, outcome)| Some((record, outcome.as_ref().ok()?)));
            let entries =
                stored.map(|(record, cursor)| Arc::new(Entry::new(*cursor, record.clone()))).collect::<Vec<_>>();
            self.shared.window.publish(entries);
        }
        self.mark_sure();
        outcomes.into_iter().map(answer).collect()
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
                        self.refuse(jobs, &why);
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
            self.serve_some(store, &mut jobs).await;
        }
    }

    /// Does what was asked for first, and what can be done together with it. In their order: what was published before a
    /// topic was forgotten must not bring it back.
    async fn serve_some(&self, store: &Arc<dyn ErasedStore>, jobs: &mut Vec<Job>) {
        let alike = |job: &Job| match job.work {
            Work::Append(_) => 0,
            Work::Notify(..) => 1,
            Work::Forget(..) => 2,
        };
        let first = jobs.first().map(alike);
        let (mut count, mut bytes) = (0, 0);
        let mut goes_along = |job: &Job| {
            let is_first = count == 0;
            if let Work::Append(append) = &job.work {
                count += append.records.len().max(1);
                bytes += append.records.iter().map(Record::size).sum::<usize>();
            }
            Some(alike(job)) == first && (is_first || count <= MOST_AT_ONCE.0 && bytes <= MOST_AT_ONCE.1)
        };
        let until = jobs.iter().take_while(|job| goes_along(job)).count();
        let (mut appends, mut notices, mut forgets) = (Vec::new(), Vec::new(), Vec::new());
        // Until the store has answered.
        let mut rooms = Vec::new();
        for job in jobs.drain(..until) {
            match job.work {
                Work::Append(append) => appends.push(append),
                Work::Notify(notice, room) => {
                    notices.push(notice);
                    rooms.push(room);
                }
                Work::Forget(topic, reply) => forgets.push((topic, reply)),
            }
        }
        if !appends.is_empty() {
            self.append(store, appends, jobs).await;
        }
        if !notices.is_empty() {
            self.notify(store, notices).await;
        }
        for (topic, reply) in forgets {
            self.forget(store, topic, reply, jobs).await;
        }
    }

    async fn forget(
        &self,
        store: &Arc<dyn ErasedStore>,
        topic: Topic,
        reply: oneshot::Sender<Result<(), ReadError>>,
        behind: &mut Vec<Job>,
    ) {
        let asked = Instant::now();
        let forgotten = self.shared.in_time(Arc::clone(store).forget(topic.clone())).await;
        #[cfg(feature = "tracing")]
        let forgotten = forgotten.inspect_err(|error| trace::store_failed("forget", error));
        // Where there is a feed, it says when. After a failure, whether the topic is still there is for the store to say.
        if !self.shared.has_feed || forgotten.is_err() {
            self.shared.window.forget(&topic, forgotten.is_ok(), || ());
        }
        let late = forgotten.is_err() && asked.elapsed() >= self.shared.read_timeout;
        let _ = reply.send(forgotten);
        if late {
            // Nobody waits longer than this behind it.
            self.refuse_all(behind);
        }
    }

    /// Who they are for does not know of them, and so misses nothing if they are lost; but they are counted.
    async fn notify(&self, store: &Arc<dyn ErasedStore>, notices: Vec<Notice>) {
        let count = notices.len();
        let notified = timeout(self.shared.append_timeout, Arc::clone(store).notify(notices)).await;
        let notified = notified.unwrap_or_else(|_| Err(ReadError::new("the store did not answer in time")));
        self.notified(count, notified);
    }

    #[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "it is only counted"))]
    fn notified(&self, count: usize, notified: Result<(), ReadError>) {
        if let Err(error) = notified {
            self.shared.counters.notify_errors(count);
            #[cfg(feature = "tracing")]
            trace::store_failed("notify", &error);
        }
    }

    /// Appends what some ask for as one batch, and answers them.
    async fn append(&self, store: &Arc<dyn ErasedStore>, mut asked: Vec<Append>, behind: &mut Vec<Job>) {
        let batch: Arc<[Record]> = asked.iter_mut().flat_map(|one| std::mem::take(&mut one.records)).collect();
        self.mark_unsure(&batch);
        let limit = self.shared.append_timeout;
        let begun = Instant::now();
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
                self.refuse_all(behind);
            }
        };
        // Who came in the meantime would wait as long again, for a store that is away.
        let is_away = outcomes.is_err() && begun.elapsed() >= limit / 2;
        let mut answers = self.settle(&batch, outcomes).into_iter();
        for one in asked {
            // A publisher that is gone needs no answer.
            let _ = one.reply.send(answers.by_ref().take(one.count).collect());
        }
        if is_away {
            self.refuse_all(behind);
        }
    }

    /// Answers all who wait, those behind what was being done included: the store does not answer.
    fn refuse_all(&self, behind: &mut Vec<Job>) {
        behind.append(&mut self.waiting());
        let why: Arc<dyn Error + Send + Sync> = Arc::new(AppendError::refused("the store does not answer"));
        self.refuse(std::mem::take(behind), &why);
    }

    /// Answers those who waited for a store that cannot be used: nothing of theirs was given to it.
    fn refuse(&self, jobs: Vec<Job>, why: &Arc<dyn Error + Send + Sync>) {
        for job in jobs {
            match job.work {
                Work::Append(append) => append.fail(&Kind::Store(Arc::clone(why))),
                Work::Forget(_, reply) => drop(reply.send(Err(ReadError::new(Arc::clone(why))))),
                Work::Notify(..) => self.notified(1, Err(ReadError::new(Arc::clone(why)))),
            }
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
