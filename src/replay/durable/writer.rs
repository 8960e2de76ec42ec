//! The thread that writes: it appends for all who wait in one transaction, trims, syncs, and ends with its store.
//!
//! Invariants: nothing is answered before its transaction is committed. After a commit that failed, nothing is read or
//! appended until another one has shown that what failed can never come back.

use super::{
    error::{DurableError, Kind},
    file::Files,
    log::{Log, Outcomes},
};
use crate::{
    Topic,
    replay::{AppendError, ReadError, Record},
};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior::Immediate};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot::Sender;

/// What is appended in one transaction at most, unless one batch alone is more: so that its first is not kept waiting for
/// long by those who came after it.
const MOST_RECORDS: usize = 4096;

/// After how long a disk that failed is tried again if nobody appends.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Job {
    Append(Arc<[Record]>, Sender<Result<Outcomes, AppendError>>),
    Forget(Topic, Sender<Result<(), ReadError>>),
}

/// What the thread lets others see.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Whether a commit has failed of which it is not known that it can never come back.
    pub(super) unsure: AtomicBool,
    pub(super) commits: AtomicU64,
    pub(super) syncs: AtomicU64,
}

pub(super) struct Writer {
    files: Files,
    log: Log,
    jobs: Receiver<Job>,
    seen: Arc<Seen>,
    /// When what was acknowledged and is not on the disk has to be synced; `None` if all is.
    sync_at: Option<Instant>,
    /// Whether a commit syncs.
    syncs: bool,
    trim_at: Instant,
}

/// How a transaction failed.
enum Failure {
    /// It left nothing.
    Undone(DurableError),
    /// It may come back.
    Unsure(DurableError),
}

impl Writer {
    pub(super) fn new(files: Files, log: Log, jobs: Receiver<Job>, seen: Arc<Seen>) -> Self {
        // At once, for what became too old in the meantime.
        Self { files, log, jobs, seen, sync_at: None, syncs: true, trim_at: Instant::now() }
    }

    /// Works until the store is dropped, and closes the log.
    pub(super) fn run(mut self) {
        // What fails is tried again where a topic is appended to.
        let _ = self.transact(true, Log::bound_topics);
        while let Some(jobs) = self.next() {
            if self.seen.unsure.load(Ordering::Acquire) {
                if let Err(error) = self.fence() {
                    refuse(jobs, &error);
                    continue;
                }
            }
            if !jobs.is_empty() {
                self.work(jobs);
            }
            if self.sync_at.is_some_and(|at| at <= Instant::now()) {
                self.sync();
            }
            if self.trim_at <= Instant::now() {
                let more = self.transact(self.log.options.sync_every.is_none(), Log::expire).unwrap_or(false);
                self.trim_at = Instant::now() + if more { Duration::ZERO } else { self.log.trim_interval() };
            }
        }
        if self.sync_at.is_some() {
            self.sync();
        }
        self.files.close();
    }

    /// The next jobs, or none of them when it is time for something else; `None` in the end.
    fn next(&self) -> Option<Vec<Job>> {
        let retry = self.seen.unsure.load(Ordering::Acquire).then(|| Instant::now() + RETRY);
        let wake = [Some(self.trim_at), self.sync_at, retry].into_iter().flatten().min().unwrap_or(self.trim_at);
        let first = match self.jobs.recv_timeout(wake.saturating_duration_since(Instant::now())) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        let mut records = first.records();
        let mut jobs = vec![first];
        while records < MOST_RECORDS {
            let Ok(job) = self.jobs.try_recv() else { break };
            records += job.records();
            jobs.push(job);
        }
        Some(jobs)
    }

    /// Does what they ask for in one transaction, and answers them.
    fn work(&mut self, jobs: Vec<Job>) {
        let sync = self.log.options.sync_every.is_none_or(|_| self.sync_at.is_some_and(|at| at <= Instant::now()));
        let mut outcomes = Vec::with_capacity(jobs.len());
        let done = self.transact(sync, |log, tx| {
            for job in &jobs {
                outcomes.push(match job {
                    Job::Append(records, _) => log.append(tx, records)?,
                    Job::Forget(topic, _) => {
                        log.forget(tx, topic)?;
                        Outcomes::new()
                    }
                });
            }
            Ok(())
        });
        match done {
            Ok(()) => jobs.into_iter().zip(outcomes).for_each(|(job, outcomes)| job.answer(outcomes)),
            Err(Failure::Undone(error)) => refuse(jobs, &error),
            Err(Failure::Unsure(error)) => jobs.into_iter().for_each(|job| job.fail(&error)),
        }
    }

    /// Does something in one transaction. If it succeeds, others can see it.
    fn transact<T>(
        &mut self,
        sync: bool,
        work: impl FnOnce(&mut Log, &Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Failure> {
        let Self { files, log, .. } = self;
        if self.syncs != sync {
            let pragma = if sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            files.db.execute_batch(pragma).map_err(|error| undone(files, &error))?;
            self.syncs = sync;
        }
        let result = in_transaction(&mut files.db, |tx| {
            log.load(tx)?;
            let result = work(log, tx)?;
            Ok((result, log.save(tx)?))
        });
        match result {
            Ok((result, wrote)) => {
                if wrote {
                    files.mark.advance(log.newest);
                    self.seen.commits.fetch_add(1, Ordering::Relaxed);
                    self.synced(sync);
                }
                Ok(result)
            }
            Err(Broken::Before(error)) => Err(undone(&self.files, &error)),
            // Its end, without which it is nothing, found no room.
            Err(Broken::Commit(error)) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                Err(undone(&self.files, &error))
            }
            Err(Broken::Commit(error)) => {
                self.seen.unsure.store(true, Ordering::Release);
                let failed = DurableError::engine(&self.files.folder, &error);
                // Perhaps it was only this once.
                if self.fence().is_ok() { Err(Failure::Undone(failed)) } else { Err(Failure::Unsure(failed)) }
            }
        }
    }

    /// Brings to the disk what was acknowledged before. For that, nothing has to be written, for which there may be no room.
    fn sync(&mut self) {
        match self.files.sync() {
            Ok(()) => self.synced(true),
            // Nothing is lost yet.
            Err(_) => self.sync_at = Instant::now().checked_add(RETRY),
        }
    }

    /// Commits something, so that what failed to commit is overwritten.
    fn fence(&mut self) -> Result<(), DurableError> {
        let Self { files, .. } = self;
        let fence = |files: &mut Files| {
            files.db.execute_batch("PRAGMA synchronous = FULL").map_err(Broken::Before)?;
            in_transaction(&mut files.db, |tx| tx.execute("UPDATE log SET fence = fence + 1", []))
        };
        let fenced = fence(files);
        // If it is not known, it is set again.
        self.syncs = fenced.is_ok();
        match fenced {
            Ok(_) => {
                self.seen.unsure.store(false, Ordering::Release);
                self.synced(true);
                Ok(())
            }
            Err(broken) => Err(DurableError::engine(&self.files.folder, broken.error())),
        }
    }

    fn synced(&mut self, sync: bool) {
        if sync {
            self.sync_at = None;
            self.seen.syncs.fetch_add(1, Ordering::Relaxed);
        } else if self.sync_at.is_none() {
            self.sync_at = self.log.options.sync_every.and_then(|every| Instant::now().checked_add(every));
        }
    }
}

/// Where a transaction broke.
enum Broken {
    Before(rusqlite::Error),
    Commit(rusqlite::Error),
}

impl Broken {
    fn error(&self) -> &rusqlite::Error {
        match self {
            Self::Before(error) | Self::Commit(error) => error,
        }
    }
}

/// One that fails is rolled back.
fn in_transaction<T>(
    db: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> Result<T, Broken> {
    let tx = db.transaction_with_behavior(Immediate).map_err(Broken::Before)?;
    let result = work(&tx).map_err(Broken::Before)?;
    tx.commit().map_err(Broken::Commit)?;
    Ok(result)
}

fn undone(files: &Files, error: &rusqlite::Error) -> Failure {
    Failure::Undone(DurableError::engine(&files.folder, error))
}

impl Job {
    fn records(&self) -> usize {
        match self {
            Self::Append(records, _) => records.len(),
            Self::Forget(..) => 1,
        }
    }

    // Those who are gone need no answer.

    fn answer(self, outcomes: Outcomes) {
        match self {
            Self::Append(_, reply) => drop(reply.send(Ok(outcomes))),
            Self::Forget(_, reply) => drop(reply.send(Ok(()))),
        }
    }

    fn fail(self, why: &DurableError) {
        match self {
            Self::Append(_, reply) => drop(reply.send(Err(AppendError::unknown(why.again())))),
            Self::Forget(_, reply) => drop(reply.send(Err(ReadError::new(why.again())))),
        }
    }

    fn refuse(self, why: &DurableError) {
        match self {
            Self::Append(_, reply) => drop(reply.send(Err(AppendError::refused(why.again())))),
            Self::Forget(_, reply) => drop(reply.send(Err(ReadError::new(why.again())))),
        }
    }
}

fn refuse(jobs: Vec<Job>, why: &DurableError) {
    for job in jobs {
        job.refuse(why);
    }
}

/// What those get who come too late.
pub(super) fn closed() -> DurableError {
    DurableError::new(Kind::Closed)
}

#[cfg(test)]
mod tests;
