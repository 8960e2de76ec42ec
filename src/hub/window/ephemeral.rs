//! Events that are not in the log: in their order among the rest for those who are there, and gone after that.
//!
//! Invariant: they have no position and move no floor. Each stands behind the position that was the newest when it came,
//! and is left out by who is already past that.

use super::{Attached, State, Window, state::Place};
use crate::{
    Topic,
    hub::error::{PublishError, PublishErrorKind},
    replay::{Cursor, Entry, Record, Refused},
};
use std::{collections::VecDeque, sync::Arc};

/// What is kept of a topic for those who have not taken it yet: enough for a burst, little enough for every topic that is
/// followed.
const MOST: usize = 64;
const MOST_BYTES: usize = 64 * 1024;

/// The same over all topics: they are for those who are there, and most of those have them at once.
const MOST_BYTES_IN_ALL: usize = 16 * 1024 * 1024;

/// The newest ones of a topic, by their number over all topics.
#[derive(Default)]
pub(super) struct Ephemerals {
    held: VecDeque<(u64, Arc<Entry>)>,
    bytes: usize,
}

/// What there is over all topics.
#[derive(Default)]
pub(super) struct All {
    /// How many there ever were.
    pub(super) count: u64,
    bytes: usize,
    held: usize,
    /// By row and number, in the order they came; what is gone otherwise is named until it is passed over.
    order: VecDeque<(usize, u64)>,
}

impl Ephemerals {
    fn pop(&mut self, all: &mut All) {
        if let Some((_, entry)) = self.held.pop_front() {
            self.bytes -= entry.frame().len();
            all.bytes -= entry.frame().len();
            all.held -= 1;
        }
    }
}

impl Place {
    pub(super) fn drop_ephemerals(&mut self, all: &mut All) {
        if let Some(ephemerals) = self.ephemerals.take() {
            all.bytes -= ephemerals.bytes;
            all.held -= ephemerals.held.len();
        }
    }
}

impl Window {
    /// Shows an event to those who follow its topic, and says how many they are.
    pub(crate) fn publish_ephemeral(&self, record: Record) -> Result<usize, PublishError> {
        // Encoded outside of the lock; which position it stands behind is known only inside.
        let mut entry = Entry::ephemeral(self.head(), record);
        self.change(|state, wakers| {
            if state.closed {
                return Err(PublishErrorKind::Closed.into());
            }
            let Some(row) = state.shelf.row(entry.record().topic()) else { return Ok(0) };
            if state.shelf.finished(row).is_some() {
                return Err(Refused::Finished.into());
            }
            let Some(place) = state.places.get_mut(row).filter(|place| !place.seats.is_empty()) else { return Ok(0) };
            let readers = place.seats.len();
            entry.stand_behind(state.head);
            let (all, it) = (&mut state.ephemerals, place.ephemerals.get_or_insert_default());
            all.count += 1;
            all.held += 1;
            all.bytes += entry.frame().len();
            all.order.push_back((row, all.count));
            it.bytes += entry.frame().len();
            it.held.push_back((all.count, Arc::new(entry)));
            // The newest stays, whatever its size.
            while it.held.len() > MOST || it.bytes > MOST_BYTES && it.held.len() > 1 {
                it.pop(all);
            }
            state.drop_old_ephemerals();
            state.wake_row(row, None, wakers);
            Ok(readers)
        })
    }
}

impl Window {
    /// How many follow a topic.
    ///
    /// # Errors
    ///
    /// As to publish to it.
    pub(crate) fn readers(&self, topic: &Topic) -> Result<usize, PublishError> {
        let state = self.state.lock();
        if state.closed {
            return Err(PublishErrorKind::Closed.into());
        }
        let Some(row) = state.shelf.row(topic) else { return Ok(0) };
        if state.shelf.finished(row).is_some() {
            return Err(Refused::Finished.into());
        }
        Ok(state.places.get(row).map_or(0, |place| place.seats.len()))
    }

    /// Whether a subscription is still to have something ephemeral before a place.
    pub(crate) fn has_between(&self, attached: &Attached, through: Cursor) -> bool {
        !self.state.lock().unheard_between(attached, 0, through).is_empty()
    }

    /// Puts what a subscription at a position is still to have before another in its place among what the store has
    /// between them.
    pub(crate) fn put_between(&self, attached: &mut Attached, at: u64, through: Cursor, entries: &mut Vec<Arc<Entry>>) {
        let state = self.state.lock();
        let unheard = state.unheard_between(attached, at, through);
        let Some((newest, _)) = unheard.last().copied() else { return };
        entries.extend(unheard.into_iter().map(|(_, ephemeral)| Arc::clone(ephemeral)));
        attached.heard = newest;
        drop(state);
        entries.sort_by_key(|entry| (entry.position(), entry.is_ephemeral()));
    }
}

impl State {
    /// Keeps to the bound over all topics.
    fn drop_old_ephemerals(&mut self) {
        let (all, places) = (&mut self.ephemerals, &mut self.places);
        let front = |places: &[Place], (row, number): (usize, u64)| {
            let held = places.get(row).and_then(|place| place.ephemerals.as_ref()).map(|it| &it.held);
            held.and_then(|held| held.front()).is_some_and(|(first, _)| *first == number)
        };
        while all.bytes > MOST_BYTES_IN_ALL && all.held > 1 {
            let Some(oldest) = all.order.pop_front() else { break };
            if front(places, oldest) {
                if let Some(it) = &mut places[oldest.0].ephemerals {
                    it.pop(all);
                }
            }
        }
        if all.order.len() > 2 * all.held + 64 {
            all.order.retain(|&(row, number)| {
                let held = places.get(row).and_then(|place| place.ephemerals.as_ref());
                held.is_some_and(|it| it.held.binary_search_by_key(&number, |(number, _)| *number).is_ok())
            });
        }
    }

    pub(super) fn has_unheard(&self, attached: &Attached, position: u64) -> bool {
        let unheard = |row: usize| {
            let newest = self.places[row].ephemerals.as_ref().and_then(|ephemerals| ephemerals.held.back());
            newest.is_some_and(|(number, entry)| *number > attached.heard && entry.position() >= position)
        };
        attached.heard != self.ephemerals.count && attached.rows().any(unheard)
    }

    /// What a subscription at a position is still to have before a place; nothing if that is of another run, whose positions
    /// mean nothing here.
    fn unheard_between(&self, attached: &Attached, at: u64, through: Cursor) -> Vec<(u64, &Arc<Entry>)> {
        if self.head.run() != through.run() {
            return Vec::new();
        }
        self.unheard(attached, (at, through.position().saturating_sub(1)))
    }

    /// What a subscription between two positions is still to have, in order.
    pub(super) fn unheard(&self, attached: &Attached, (after, up_to): (u64, u64)) -> Vec<(u64, &Arc<Entry>)> {
        if attached.heard == self.ephemerals.count {
            return Vec::new();
        }
        let held = attached.rows().filter_map(|row| self.places[row].ephemerals.as_ref());
        let mut unheard: Vec<_> = held
            .flat_map(|ephemerals| {
                ephemerals.held.range(ephemerals.held.partition_point(|(n, _)| *n <= attached.heard)..)
            })
            .filter(|(_, entry)| (after..=up_to).contains(&entry.position()))
            .map(|(number, entry)| (*number, entry))
            .collect();
        unheard.sort_unstable_by_key(|(number, _)| *number);
        unheard
    }
}
