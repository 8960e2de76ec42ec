//! How entries leave a [`Shelf`]: replaced, evicted, or forgotten with their topic.

use super::{Placed, Shelf};
use crate::{Topic, replay::Entry};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

impl Shelf {
    /// Removes what an entry takes the place of. That raises no floor: who has not seen it sees the newer one.
    pub(super) fn supersede(&mut self, row: usize, entry: &Entry) {
        let Some(key) = entry.record().replaces() else { return };
        let keys = &mut self.rows[row].keys;
        let older = match keys.get_mut(key) {
            Some(place) => Some(std::mem::replace(place, entry.position())),
            None => keys.insert(key.into(), entry.position()),
        };
        if let Some(index) = older.and_then(|older| self.rows[row].find(older)) {
            self.take(row, index);
            self.replaced += 1;
        }
    }

    /// Once its topic is finished, nothing takes the place of what is the newest of its key: it is kept no longer than
    /// the rest.
    pub(super) fn end_lasting(&mut self, row: usize, end: u64, now: Instant) {
        let it = &mut self.rows[row];
        let newest = it.keys.values().filter_map(|position| it.find(*position).map(|index| &it.entries[index]));
        let mut lasting: Vec<_> = newest.filter(|entry| it.lasts(entry)).map(|e| (e.position(), e.cost())).collect();
        it.ended = end;
        lasting.sort_unstable();
        for (position, cost) in lasting {
            self.lasting_bytes -= cost;
            // It is passed over where it stands among those that last.
            self.order.push_back(Placed { position, row, at: now });
        }
    }

    /// Removes what is too old.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(oldest) = pop_old(&mut self.order, self.limits.age, now) {
            self.evict_placed(&oldest);
        }
        while let Some(oldest) = pop_old(&mut self.lasting, self.limits.latest, now) {
            if !self.has_ended(&oldest) {
                self.evict_placed(&oldest);
            }
        }
        // An end is remembered for no less time than the entries before it.
        while let Some(end) = pop_old(&mut self.ends, self.limits.finished.max(self.limits.age), now) {
            self.forget_end(&end);
        }
    }

    pub(super) fn forget_end(&mut self, &Placed { position, row, .. }: &Placed) {
        if let Some(it) = self.rows.get_mut(row).filter(|it| it.finished == Some(position)) {
            it.finished = None;
            self.drop_if_void(row);
        }
    }

    /// Whether one of those that last does so no longer, because its topic ended after it.
    pub(super) fn has_ended(&self, placed: &Placed) -> bool {
        self.rows.get(placed.row).is_some_and(|it| placed.position <= it.ended)
    }

    pub(super) fn evict_placed(&mut self, &Placed { position, row, .. }: &Placed) {
        // Positions are never given twice, so a row that was reused for another topic does not match.
        if let Some(index) = self.rows.get(row).and_then(|it| it.find(position)) {
            self.evict(row, index);
            self.drop_if_void(row);
        }
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn evict_all(&mut self) {
        let all: Vec<Placed> = self.order.drain(..).chain(self.lasting.drain(..)).collect();
        for placed in &all {
            self.evict_placed(placed);
        }
    }

    /// Removes an entry because it can no longer be kept.
    pub(super) fn evict(&mut self, row: usize, index: usize) -> Option<Arc<Entry>> {
        let entry = self.take(row, index)?;
        let it = &mut self.rows[row];
        it.floor = it.floor.max(entry.position());
        if let Some(key) = entry.record().replaces() {
            it.keys.remove(key);
        }
        Some(entry)
    }

    pub(super) fn take(&mut self, row: usize, index: usize) -> Option<Arc<Entry>> {
        let it = &mut self.rows[row];
        let entry = it.entries.remove(index)?;
        if let Some(blocks) = &mut it.blocks {
            self.joined -= blocks.remove(&entry, index == 0);
        }
        it.bytes -= entry.cost();
        self.bytes -= entry.cost();
        if it.lasts(&entry) {
            self.lasting_bytes -= entry.cost();
        }
        self.entries -= 1;
        Some(entry)
    }

    /// Removes what there is of a topic, which is not finished then, if that is known.
    pub(crate) fn forget(&mut self, topic: &Topic, known: bool) {
        let Some(row) = self.row(topic) else { return };
        while !self.rows[row].entries.is_empty() {
            self.evict(row, 0);
        }
        let it = &mut self.rows[row];
        (it.finished, it.known) = (None, known);
        self.drop_if_void(row);
    }
}

fn pop_old(queue: &mut VecDeque<Placed>, age: Option<Duration>, now: Instant) -> Option<Placed> {
    let oldest = queue.front()?;
    if now.duration_since(oldest.at) >= age? { queue.pop_front() } else { None }
}
