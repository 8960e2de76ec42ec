//! [`Shelf`]: entries in the order of their positions, kept for each topic within bounds.
//!
//! Both the hub's window and the [`Ring`](super::Ring) are one. It knows no lock, no clock and no waker.
//!
//! Invariant: for every topic, each entry that was pushed is held, or at or below the topic's floor, or one that came
//! after it and is any of these has taken its place.

mod collect;
#[cfg(test)]
mod model_tests;
mod removal;
mod stretch;

use self::stretch::Blocks;
pub(crate) use self::{collect::Room, stretch::Stretch};
use super::{Entry, Kind};
use crate::Topic;
use slab::Slab;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// What a shelf keeps. Each bound holds at once; the oldest entries go first.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) events_per_topic: usize,
    pub(crate) bytes_per_topic: usize,
    pub(crate) total_bytes: usize,
    pub(crate) age: Option<Duration>,
    /// For how long the newest event of a key is kept; `None` is for as long as the other bounds allow.
    pub(crate) latest: Option<Duration>,
    /// For how long a finished topic is remembered; `None` if there is someone else to ask once its entries are gone.
    pub(crate) finished: Option<Duration>,
}

impl Limits {
    /// The tighter of each bound.
    pub(crate) fn within(&self, other: &Self) -> Self {
        Self {
            events_per_topic: self.events_per_topic.min(other.events_per_topic),
            bytes_per_topic: self.bytes_per_topic.min(other.bytes_per_topic),
            total_bytes: self.total_bytes.min(other.total_bytes),
            age: self.age.into_iter().chain(other.age).min(),
            latest: self.latest.into_iter().chain(other.latest).min(),
            finished: self.finished,
        }
    }
}

pub(crate) struct Shelf {
    pub(crate) limits: Limits,
    index: HashMap<Topic, usize>,
    rows: Slab<Row>,
    /// The row that was last asked for.
    recent: usize,
    /// Every entry in the order it came, for the bounds over all topics. What was removed otherwise is still named here
    /// until it is passed over.
    order: VecDeque<Placed>,
    /// The same for those that are the newest of their key: they stay when others go for their age, and when there is no
    /// room, unless they take more than half of it.
    lasting: VecDeque<Placed>,
    /// Every end that is remembered, in the order they came.
    ends: VecDeque<Placed>,
    entries: usize,
    bytes: usize,
    /// Those of the newest of keys.
    lasting_bytes: usize,
    /// The floor of every topic that has no row.
    base: u64,
    /// With fewer rows than this, most of what is allocated is not needed.
    sparse: usize,
    /// Rows that have, or had, blocks.
    with_blocks: Vec<usize>,
    /// The memory of what is joined in them.
    joined: usize,
    /// How many entries made room for a newer one of their key, ever.
    replaced: u64,
}

struct Placed {
    position: u64,
    row: usize,
    at: Instant,
}

struct Row {
    topic: Topic,
    entries: VecDeque<Arc<Entry>>,
    /// Only if it was read by someone who was behind.
    blocks: Option<Box<Blocks>>,
    /// Where the newest entry of each key is, for keys that have one.
    keys: BTreeMap<Box<str>, u64>,
    bytes: usize,
    floor: u64,
    finished: Option<u64>,
    /// Up to where someone else said that it is not finished: an end before was forgotten, also if it comes later.
    open: u64,
    /// Where its last end is: nothing before lasts.
    ended: u64,
    /// Whether it is known here if the topic is finished.
    known: bool,
    pins: u32,
    /// Events and bytes that were ever pushed while the row was in place.
    pushed: (u64, u64),
}

impl Row {
    fn front(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.position())
    }

    /// Takes in that the topic has ended, unless that was forgotten since.
    fn end(&mut self, position: u64) {
        if position > self.open {
            self.finished = Some(position);
        }
    }

    fn newest(&self) -> u64 {
        self.entries.back().map_or(0, |entry| entry.position())
    }

    /// Whether an entry stays when others go for their age.
    fn lasts(&self, entry: &Entry) -> bool {
        entry.record().kind() == Kind::Latest && entry.position() > self.ended
    }

    /// The index of the entry at a position.
    fn find(&self, position: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&position, |entry| entry.position()).ok()
    }

    /// The index of the first entry after a position. Most who ask are near the end, so that is where it begins.
    #[inline]
    fn after(&self, position: u64) -> usize {
        let is_after = |index: usize| self.entries[index].position() > position;
        let (mut high, mut step) = (self.entries.len(), 1);
        while high >= step && is_after(high - step) {
            high -= step;
            step *= 2;
        }
        let mut low = (high + 1).saturating_sub(step);
        while low < high {
            let middle = low.midpoint(high);
            if is_after(middle) { high = middle } else { low = middle + 1 }
        }
        low
    }
}

impl Shelf {
    pub(crate) fn new(limits: Limits, base: u64) -> Self {
        Self {
            limits,
            index: HashMap::new(),
            rows: Slab::new(),
            recent: 0,
            order: VecDeque::new(),
            lasting: VecDeque::new(),
            ends: VecDeque::new(),
            entries: 0,
            bytes: 0,
            lasting_bytes: 0,
            base,
            sparse: 0,
            with_blocks: Vec::new(),
            joined: 0,
            replaced: 0,
        }
    }

    /// The row of a topic, if it has one.
    pub(crate) fn row(&self, topic: &Topic) -> Option<usize> {
        self.index.get(topic).copied()
    }

    /// The same for what comes again and again, mostly of the topic that it came of before.
    pub(crate) fn row_again(&mut self, topic: &Topic) -> Option<usize> {
        if self.rows.get(self.recent).is_none_or(|it| !it.topic.is_clone_of(topic)) {
            self.recent = self.row(topic)?;
        }
        Some(self.recent)
    }

    fn new_row(&mut self, topic: &Topic) -> usize {
        let row = self.rows.insert(Row {
            topic: topic.clone(),
            entries: VecDeque::new(),
            blocks: None,
            keys: BTreeMap::new(),
            bytes: 0,
            floor: self.base,
            finished: None,
            open: 0,
            ended: 0,
            known: false,
            pins: 0,
            pushed: (0, 0),
        });
        self.index.insert(topic.clone(), row);
        self.sparse = self.sparse.max(self.rows.len() / 2);
        row
    }

    /// Keeps the row of a topic in place, making it if need be.
    pub(crate) fn pin(&mut self, topic: &Topic) -> usize {
        let row = self.row(topic).unwrap_or_else(|| self.new_row(topic));
        self.rows[row].pins += 1;
        row
    }

    /// Undoes one `pin`.
    pub(crate) fn unpin(&mut self, row: usize) {
        self.rows[row].pins -= 1;
        self.drop_if_void(row);
    }

    /// Removes a row that holds nothing, so that topics which are no longer used cost nothing. They share one floor, at
    /// the price of a gap without need for a client that comes back after longer than anything is held.
    fn drop_if_void(&mut self, row: usize) {
        let it = &self.rows[row];
        let remembered = it.finished.is_some() && self.limits.finished.is_some();
        if it.pins == 0 && it.entries.is_empty() && !remembered {
            let it = self.rows.remove(row);
            self.base = self.base.max(it.floor);
            self.index.remove(&it.topic);
            self.shrink_if_sparse();
        }
    }

    /// Gives back what a crowd of topics took, once most of them are gone.
    fn shrink_if_sparse(&mut self) {
        const WORTH_IT: usize = 64;
        if self.rows.len() >= self.sparse || self.rows.capacity() < WORTH_IT {
            return;
        }
        self.sparse = self.rows.len().div_ceil(2);
        self.rows.shrink_to_fit();
        self.index.shrink_to_fit();
        for order in [&mut self.order, &mut self.lasting, &mut self.ends] {
            order.shrink_to(2 * order.len());
        }
    }

    /// No row has a number as high as this.
    pub(crate) fn row_bound(&self) -> usize {
        self.rows.capacity()
    }

    #[cfg(test)]
    fn push(&mut self, entry: Arc<Entry>, now: Instant) {
        self.push_to(self.row(entry.record().topic()), entry, now);
    }

    /// Puts an entry behind all others, and removes what no longer fits. `row` is that of its topic, if it has one.
    /// Gives the last of those that had to go.
    pub(crate) fn push_to(&mut self, row: Option<usize>, entry: Arc<Entry>, now: Instant) -> Option<Arc<Entry>> {
        let row = row.unwrap_or_else(|| self.new_row(entry.record().topic()));
        let position = entry.position();
        let kind = entry.record().kind();
        self.supersede(row, &entry);
        // An event that was accepted says that the topic is not finished, whatever was known.
        self.rows[row].finished = None;
        if kind == Kind::Finish {
            self.rows[row].end(position);
            self.end_lasting(row, position, now);
            if self.limits.finished.is_some() {
                self.ends.push_back(Placed { position, row, at: now });
                if self.ends.len() > 2 * self.rows.len() + 64 {
                    // Most are of topics that were forgotten since.
                    let rows = &self.rows;
                    self.ends.retain(|end| rows.get(end.row).is_some_and(|it| it.finished == Some(end.position)));
                }
            }
        }
        let cost = entry.cost();
        let it = &mut self.rows[row];
        // What is accepted for a topic says whether it is finished.
        it.known = true;
        it.pushed.0 += 1;
        it.pushed.1 += entry.frame().len() as u64;
        if let Some(blocks) = &mut it.blocks {
            self.joined -= blocks.push(&entry);
        }
        it.entries.push_back(entry);
        it.bytes += cost;
        self.bytes += cost;
        self.entries += 1;
        let placed = Placed { position, row, at: now };
        if kind == Kind::Latest {
            self.lasting_bytes += cost;
            self.lasting.push_back(placed);
        } else {
            self.order.push_back(placed);
        }
        let mut evicted = None;
        while {
            let it = &self.rows[row];
            it.entries.len() > self.limits.events_per_topic || it.bytes > self.limits.bytes_per_topic
        } {
            evicted = self.evict(row, 0);
        }
        while self.bytes > self.limits.total_bytes && self.entries > 0 {
            let too_much_lasts = self.lasting_bytes > self.limits.total_bytes / 2;
            let (first, then) = (&mut self.order, &mut self.lasting);
            let (first, then) = if too_much_lasts { (then, first) } else { (first, then) };
            let Some(oldest) = first.pop_front().or_else(|| then.pop_front()) else { break };
            if !too_much_lasts || !self.has_ended(&oldest) {
                self.evict_placed(&oldest);
            }
        }
        // Most of what goes for its own topic's bounds was the oldest of all.
        let gone = |placed: &Placed| {
            let it = self.rows.get(placed.row);
            it.and_then(Row::front).is_none_or(|front| front > placed.position)
        };
        while self.order.front().is_some_and(gone) {
            self.order.pop_front();
        }
        if self.order.len() + self.lasting.len() > 2 * self.entries + 64 {
            let rows = &self.rows;
            let held = |placed: &Placed| rows.get(placed.row).filter(|row| row.find(placed.position).is_some());
            self.order.retain(|placed| held(placed).is_some());
            self.lasting.retain(|placed| held(placed).is_some_and(|row| placed.position > row.ended));
        }
        if self.rows.contains(row) {
            self.drop_if_void(row);
        }
        evicted
    }

    /// Raises the floor of a topic, and removes what lies below.
    pub(crate) fn lose(&mut self, topic: &Topic, position: u64) {
        let Some(row) = self.row(topic) else {
            self.base = self.base.max(position);
            return;
        };
        while self.rows[row].front().is_some_and(|front| front <= position) {
            self.evict(row, 0);
        }
        let it = &mut self.rows[row];
        it.floor = it.floor.max(position);
        // What was lost may be the end.
        (it.finished, it.known) = (None, false);
        self.drop_if_void(row);
    }

    /// Removes everything: the log continues from `base`. Pinned rows stay in place, empty.
    pub(crate) fn clear(&mut self, base: u64) {
        self.drop_blocks();
        self.order.clear();
        self.lasting.clear();
        self.ends.clear();
        (self.entries, self.bytes, self.lasting_bytes, self.base) = (0, 0, 0, base);
        for (_, it) in &mut self.rows {
            it.entries.clear();
            it.keys.clear();
            (it.bytes, it.floor, it.finished, it.open, it.ended, it.known) = (0, base, None, 0, 0, false);
        }
        self.rows.retain(|_, it| it.pins > 0);
        self.index.retain(|_, row| self.rows.contains(*row));
    }

    pub(crate) fn floor(&self, row: usize) -> u64 {
        self.rows[row].floor
    }

    pub(crate) fn pushed(&self, row: usize) -> (u64, u64) {
        self.rows[row].pushed
    }

    /// The floor of a topic without a row.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn finished(&self, row: usize) -> Option<u64> {
        self.rows[row].finished
    }

    /// Whether it is known if a topic is finished.
    pub(crate) fn knows(&self, row: usize) -> bool {
        self.rows[row].known
    }

    /// Takes over from elsewhere whether a topic was finished at or before a position.
    pub(crate) fn learn(&mut self, row: usize, finished: bool, position: u64) {
        let it = &mut self.rows[row];
        // Between the position and the floor it may have ended, or been forgotten.
        if position < it.floor {
            return;
        }
        it.known = true;
        if finished {
            it.end(it.finished.map_or(position, |known| known.min(position)));
        } else {
            it.open = it.open.max(position);
            it.finished = it.finished.filter(|end| *end > it.open);
        }
    }

    /// Whether a row has an entry after a position.
    pub(crate) fn has_after(&self, row: usize, position: u64) -> bool {
        self.rows[row].newest() > position
    }
}

/// How much a shelf holds.
#[derive(Debug)]
#[expect(dead_code, reason = "for `Debug`")]
pub(crate) struct Contents {
    topics: usize,
    entries: usize,
    bytes: usize,
}

impl Shelf {
    /// How many of those that were ever pushed had to go.
    pub(crate) fn evicted(&self, pushed: u64) -> u64 {
        pushed - self.entries as u64 - self.replaced
    }

    pub(crate) fn topics(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn contents(&self) -> Contents {
        Contents { topics: self.rows.len(), entries: self.entries, bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests;
