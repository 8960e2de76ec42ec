//! Events that are not in the log: in their order among the rest for those who are there, and gone after that.
//!
//! Invariant: they have no position and move no floor. Each stands behind the position that was the newest when it came,
//! and is left out by who is already past that.

use super::{Attached, State, Window};
use crate::{
    hub::error::{PublishError, PublishErrorKind},
    replay::{Entry, Record, Refused},
};
use std::{collections::VecDeque, sync::Arc};

/// What is kept of a topic for those who have not taken it yet: enough for a burst, little enough for every topic that is
/// followed.
const MOST: usize = 64;
const MOST_BYTES: usize = 64 * 1024;

/// The newest ones of a topic, by their number over all topics.
#[derive(Default)]
pub(super) struct Ephemerals {
    held: VecDeque<(u64, Arc<Entry>)>,
    bytes: usize,
}

impl Ephemerals {
    fn push(&mut self, number: u64, entry: Arc<Entry>) {
        self.bytes += entry.frame().len();
        self.held.push_back((number, entry));
        // The newest stays, whatever its size.
        while self.held.len() > MOST || self.bytes > MOST_BYTES && self.held.len() > 1 {
            let oldest = self.held.pop_front();
            self.bytes -= oldest.map_or(0, |(_, entry)| entry.frame().len());
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
            state.ephemerals += 1;
            entry.stand_behind(state.head);
            place.ephemerals.get_or_insert_default().push(state.ephemerals, Arc::new(entry));
            state.wake_row(row, None, wakers);
            Ok(readers)
        })
    }
}

impl Window {
    /// Puts what a subscription at a position is still to have before another in its place among what the store has
    /// between them.
    pub(crate) fn put_between(&self, attached: &mut Attached, (at, before): (u64, u64), entries: &mut Vec<Arc<Entry>>) {
        let state = self.state.lock();
        let unheard = state.unheard(attached, (at, before.saturating_sub(1)));
        let Some((newest, _)) = unheard.last().copied() else { return };
        entries.extend(unheard.into_iter().map(|(_, ephemeral)| Arc::clone(ephemeral)));
        attached.heard = newest;
        drop(state);
        entries.sort_by_key(|entry| (entry.position(), entry.is_ephemeral()));
    }
}

impl State {
    pub(super) fn has_unheard(&self, attached: &Attached, position: u64) -> bool {
        let unheard = |row: usize| {
            let newest = self.places[row].ephemerals.as_ref().and_then(|ephemerals| ephemerals.held.back());
            newest.is_some_and(|(number, entry)| *number > attached.heard && entry.position() >= position)
        };
        attached.heard != self.ephemerals && attached.rows().any(unheard)
    }

    /// What a subscription between two positions is still to have, in order.
    pub(super) fn unheard(&self, attached: &Attached, (after, up_to): (u64, u64)) -> Vec<(u64, &Arc<Entry>)> {
        if attached.heard == self.ephemerals {
            return Vec::new();
        }
        let held = attached.rows().filter_map(|row| self.places[row].ephemerals.as_ref());
        let mut unheard: Vec<_> = held
            .flat_map(|ephemerals| &ephemerals.held)
            .filter(|(number, entry)| *number > attached.heard && (after..=up_to).contains(&entry.position()))
            .map(|(number, entry)| (*number, entry))
            .collect();
        unheard.sort_unstable_by_key(|(number, _)| *number);
        unheard
    }
}
