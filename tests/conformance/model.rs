//! [`Model`]: a store that keeps the contract as plainly as can be.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tidings::{
    Topic,
    replay::{
        AppendError, Cursor, Kind, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Run,
        conformance::Keep,
    },
};
use tokio::task::yield_now;

pub(crate) type Outcomes = Vec<Result<Cursor, Refused>>;

/// What outlives an opening.
pub(crate) type Disk = Arc<Mutex<Log>>;

#[derive(Clone, Default)]
pub(crate) struct Log {
    pub(crate) epoch: u64,
    /// The number of each run, and where it began.
    pub(crate) runs: Vec<(u32, u64)>,
    pub(crate) newest: u64,
    pub(crate) records: BTreeMap<u64, Record>,
    /// What newer records took the place of. Nobody reads it, but by a fault.
    pub(crate) replaced: BTreeMap<u64, Record>,
    /// The highest position of each topic that was removed.
    pub(crate) floors: BTreeMap<Topic, u64>,
    pub(crate) finished: BTreeMap<Topic, u64>,
    /// The idempotency keys, which are never forgotten.
    pub(crate) keys: BTreeMap<(Topic, String), u64>,
}

pub(crate) struct Model {
    pub(crate) disk: Disk,
    pub(crate) run: Run,
    pub(crate) keep: Option<usize>,
}

impl Model {
    pub(crate) fn open(disk: Disk, keep: Keep) -> Self {
        let mut log = disk.lock().unwrap();
        if log.runs.is_empty() {
            log.epoch = Run::new_log().epoch;
        }
        let number = log.runs.len().try_into().unwrap();
        let begin = log.newest;
        log.runs.push((number, begin));
        let run = Run { epoch: log.epoch, number };
        drop(log);
        Self { disk, run, keep: keep.events_per_topic }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.disk.lock().unwrap()
    }

    pub(crate) fn page(&self, log: &Log, read: &Read) -> Page {
        let newest = self.run.at(log.newest);
        let asked: Vec<_> = log.records.iter().filter(|(_, record)| read.topics.contains(record.topic())).collect();
        let after = match read.from {
            ReadFrom::After(cursor) if log.is_foreign(cursor) => return Page::foreign(newest),
            ReadFrom::After(cursor) => cursor.position(),
            ReadFrom::Last(n) => {
                let first = asked.len().saturating_sub(n);
                asked.get(first).map_or(log.newest, |(first, _)| **first - 1)
            }
            _ => 0,
        };
        let mut page = Page::new(newest);
        let mut bytes = 0;
        for (position, record) in asked.into_iter().filter(|(position, _)| **position > after) {
            if page.entries.len() >= read.max_events || bytes >= read.max_bytes {
                page.through = page.entries.last().unwrap().cursor();
                break;
            }
            bytes += record.body().len();
            page.push(self.run.at(*position), record.clone());
        }
        page.floor = read.topics.iter().filter_map(|topic| log.floors.get(topic)).max().copied().unwrap_or(0);
        let through = page.through.position();
        let finished = |topic: &&Topic| log.finished.get(topic).is_some_and(|end| *end <= through);
        page.finished = read.topics.iter().filter(finished).cloned().collect();
        page
    }

    pub(crate) fn append_one(&self, log: &mut Log, record: &Record) -> Result<Cursor, Refused> {
        if let Some(first) = log.first_of(record) {
            return Err(Refused::Duplicate(self.run.at(first)));
        }
        if log.finished.contains_key(record.topic()) {
            return Err(Refused::Finished);
        }
        let position = log.newest + 1;
        self.insert(log, position, record);
        Ok(self.run.at(position))
    }

    pub(crate) fn insert(&self, log: &mut Log, position: u64, record: &Record) {
        let topic = record.topic();
        log.newest = log.newest.max(position);
        let older = record.replaces().and_then(|key| log.newest_of(topic, key));
        log.replaced.extend(older.and_then(|older| log.records.remove_entry(&older)));
        log.records.insert(position, record.clone());
        if let Some(key) = record.idempotency_key() {
            log.keys.insert((topic.clone(), key.to_owned()), position);
        }
        if record.kind() == Kind::Finish {
            log.finished.insert(topic.clone(), position);
        }
        let positions = log.positions(topic);
        let excess = positions.len().saturating_sub(self.keep.unwrap_or(usize::MAX));
        for position in &positions[..excess] {
            log.remove(*position);
        }
    }
}

impl Log {
    /// Whether a cursor means nothing here.
    pub(crate) fn is_foreign(&self, cursor: Cursor) -> bool {
        let Run { epoch, number } = cursor.run();
        let Some(begun) = self.runs.iter().position(|(run, _)| *run == number) else { return true };
        let later = self.runs[begun + 1..].iter().map(|(_, begin)| *begin);
        epoch != self.epoch || cursor.position() > later.min().unwrap_or(self.newest)
    }

    /// Where the record is that this one repeats.
    pub(crate) fn first_of(&self, record: &Record) -> Option<u64> {
        self.keys.get(&(record.topic().clone(), record.idempotency_key()?.to_owned())).copied()
    }

    pub(crate) fn positions(&self, topic: &Topic) -> Vec<u64> {
        self.records.iter().filter(|(_, record)| record.topic() == topic).map(|(position, _)| *position).collect()
    }

    /// Where the newest record of a key is.
    pub(crate) fn newest_of(&self, topic: &Topic, key: &str) -> Option<u64> {
        let is_of_key = |record: &Record| record.topic() == topic && record.replaces() == Some(key);
        self.records.iter().find(|(_, record)| is_of_key(record)).map(|(position, _)| *position)
    }

    pub(crate) fn remove(&mut self, position: u64) {
        if let Some(record) = self.records.remove(&position) {
            let floor = self.floors.entry(record.topic().clone()).or_default();
            *floor = position.max(*floor);
        }
    }

    pub(crate) fn forget(&mut self, topic: &Topic) {
        for position in self.positions(topic) {
            self.remove(position);
        }
        self.finished.remove(topic);
    }
}

// Each call yields once, so that calls mix on a single thread too.
impl ReplayStore for Model {
    async fn head(&self) -> Result<Cursor, ReadError> {
        yield_now().await;
        Ok(self.run.at(self.log().newest))
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Outcomes, AppendError> {
        yield_now().await;
        let mut log = self.log();
        Ok(records.iter().map(|record| self.append_one(&mut log, record)).collect())
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        yield_now().await;
        Ok(self.page(&self.log(), &read))
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        yield_now().await;
        self.log().forget(&topic);
        Ok(())
    }

    fn try_append(&self, records: &Arc<[Record]>) -> Option<Result<Outcomes, AppendError>> {
        // Not where it would have to wait.
        let mut log = self.disk.try_lock().ok()?;
        Some(Ok(records.iter().map(|record| self.append_one(&mut log, record)).collect()))
    }
}
