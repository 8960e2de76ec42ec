//! [`Read`] and [`Page`]: one step of reading a log.

use super::{Cursor, Entry, Record, Stretch};
use crate::{Topic, Topics};
use std::{collections::VecDeque, sync::Arc};

/// Where a read begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// With the first record after a cursor.
    After(Cursor),
    /// With the oldest record that is held.
    Earliest,
    /// With the last `n` records, counted over all the topics together.
    Last(usize),
}

/// What is asked of [`ReplayStore::read`](super::ReplayStore::read).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Read {
    /// Only records of these topics are returned.
    pub topics: Topics,
    /// Where to begin.
    pub from: ReadFrom,
    /// The most records in the page; at least 1.
    pub max_events: usize,
    /// The page ends with the record that reaches this many bytes, so that it always has at least one.
    pub max_bytes: usize,
    /// Frames in place of entries will do.
    pub(crate) joined: bool,
}

impl Read {
    /// A read of up to 256 records or 256 KiB.
    #[must_use]
    pub fn new(topics: impl Into<Topics>, from: ReadFrom) -> Self {
        Self { topics: topics.into(), from, max_events: 256, max_bytes: 256 * 1024, joined: false }
    }
}

/// What a store has between the place where a [`Read`] began and [`through`](Self::through): all of it, in order.
#[derive(Debug)]
#[non_exhaustive]
pub struct Page {
    /// The records of the asked topics, oldest first.
    pub entries: Vec<Arc<Entry>>,
    /// How far the page is complete, even if it is empty: no record of an asked topic up to here is missing from it,
    /// but those that are no longer held. In the store's present run.
    pub through: Cursor,
    /// The highest position of an asked topic that is no longer held; 0 if none was ever removed. A read that began
    /// below it has missed something.
    pub floor: u64,
    /// Whether the cursor that was asked for is none of this log's: of another epoch, of an older run and past the
    /// point where a later run began, or ahead of the newest record. Then the page is empty and `through` is the newest
    /// position.
    pub foreign: bool,
    /// Those of the asked topics that were finished at or before `through`.
    pub finished: Vec<Topic>,
    /// In place of entries.
    pub(crate) stretches: VecDeque<Stretch>,
}

impl Page {
    /// An empty page that is complete up to `through`.
    #[must_use]
    pub fn new(through: Cursor) -> Self {
        Self {
            entries: Vec::new(),
            through,
            floor: 0,
            foreign: false,
            finished: Vec::new(),
            stretches: VecDeque::new(),
        }
    }

    /// The answer to a cursor that is none of this log's.
    #[must_use]
    pub fn foreign(newest: Cursor) -> Self {
        Self { foreign: true, ..Self::new(newest) }
    }

    /// Before the first thing in it.
    pub(crate) fn begin(&self) -> Cursor {
        let entry = self.entries.first().map(|entry| entry.cursor());
        let stretch = || self.stretches.front().map(|stretch| self.through.run().at(stretch.first));
        entry.or_else(stretch).map_or(self.through, Cursor::before)
    }

    /// Adds the next record.
    pub fn push(&mut self, cursor: Cursor, record: Record) {
        self.entries.push(Arc::new(Entry::new(cursor, record)));
    }
}
