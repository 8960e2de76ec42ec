//! [`Liberal`]: a store that takes every liberty that the contract leaves.

use crate::model::{Disk, Log, Model, Outcomes};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidings::{
    Topic,
    replay::{AppendError, Cursor, Kind, Page, Read, ReadError, Record, Refused, ReplayStore, Run, conformance::Keep},
};

pub(crate) struct Liberal {
    model: Model,
    keep: usize,
}

impl Liberal {
    pub(crate) fn open(disk: Disk, keep: Keep) -> Self {
        // It always keeps something.
        let events = keep.events_per_topic.map_or(usize::MAX, |events| events.max(2));
        let mut model = Model::open(disk, Keep::default());
        let number = u32::MAX - 7 * model.run.number;
        model.log().runs.last_mut().unwrap().0 = number;
        model.run = Run { number, ..model.run };
        Self { model, keep: events }
    }

    /// Evicts the oldest, but state after all else.
    fn evict(&self, log: &mut Log, topic: &Topic) {
        let mut positions = log.positions(topic);
        let excess = positions.len().saturating_sub(self.keep);
        positions.sort_by_key(|position| log.records[position].kind() == Kind::Latest);
        for position in &positions[..excess] {
            log.remove(*position);
        }
    }
}

impl ReplayStore for Liberal {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.model.head().await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Outcomes, AppendError> {
        let mut log = self.model.log();
        let append = |record: &Record| {
            // Numbers are skipped, also for what is refused.
            log.newest += 2;
            // It remembers no idempotency keys.
            if record.idempotency_key().is_some() {
                return Err(Refused::Other("idempotency keys are not for this store".into()));
            }
            let outcome = self.model.append_one(&mut log, &in_millis(record));
            self.evict(&mut log, record.topic());
            outcome
        };
        Ok(records.iter().map(append).collect())
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let log = self.model.log();
        let mut page = self.model.page(&log, &read);
        let mut bytes = 0;
        let end = page.entries.iter().position(|entry| {
            bytes += entry.frame().len();
            bytes >= read.max_bytes
        });
        // Bytes are those of frames, and a page that is full ends with its last record even if nothing follows.
        page.entries.truncate(end.map_or(usize::MAX, |end| end + 1));
        if let Some(last) = page.entries.last().filter(|_| end.is_some() || page.entries.len() == read.max_events) {
            page.through = last.cursor();
        }
        let through = page.through.position();
        page.finished.retain(|topic| log.finished.get(topic).is_some_and(|ended| *ended <= through));
        // One floor for all topics.
        page.floor = log.floors.values().max().copied().unwrap_or(0);
        Ok(page)
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.model.forget(topic).await
    }
}

/// Times are kept in milliseconds.
fn in_millis(record: &Record) -> Record {
    let time = record.time().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(time.try_into().unwrap());
    let (topic, body) = (record.topic().clone(), record.body().clone());
    let mut copy = Record::from_stored(topic, record.kind(), &body, time).unwrap();
    if let Some(key) = record.key() {
        copy = copy.with_key(key);
    }
    record.labels().fold(copy, |copy, (name, value)| copy.with_label(name, value))
}
