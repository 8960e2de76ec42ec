//! [`State`]: what the lock of the window guards, and how an entry gets in and out.

use super::{
    Age, Attached, Batch, Standing,
    ephemeral::{All, Ephemerals},
    life::{Due, Life},
    members::STAYS,
};
use crate::{
    Topic,
    hub::{member::Member, stats::Volume},
    replay::{Cursor, Entry, Shelf, Stretch},
};
use slab::Slab;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::Waker,
};
use tokio::time::Instant;

pub(super) struct State {
    /// The newest entry that was shown to everyone.
    pub(super) head: Cursor,
    pub(super) shelf: Shelf,
    /// Beside each row of the shelf.
    pub(super) places: Vec<Place>,
    pub(super) waiters: Slab<Waiter>,
    pub(super) closed: bool,
    pub(super) forgotten: Forgotten,
    pub(super) ephemerals: All,
    pub(super) due: Due,
    /// The list of wakers of the last publish, kept for its memory.
    pub(super) spare: Vec<Waker>,
    /// When an entry was last shown.
    pub(super) pushed: Instant,
    /// How many subscriptions there ever were, and how many of those that are there were told to go.
    pub(super) attached: u64,
    pub(super) told: usize,
    pub(super) counts: Counts,
}

/// When topics were forgotten, for pages of the store that are on their way meanwhile.
#[derive(Default)]
pub(super) struct Forgotten {
    /// How often one was, ever.
    count: u64,
    /// Of which of these times it is known what was forgotten: those after this.
    known_after: u64,
    /// The last time for the topic of each row. For another topic that has the row later, that is only too careful.
    rows: HashMap<usize, u64>,
}

/// More rows than that, and what is on its way is not believed, whatever it is of.
const MOST_FORGOTTEN: usize = 4096;

impl Forgotten {
    fn enter(&mut self, row: Option<usize>) {
        self.count += 1;
        let Some(row) = row else { return };
        if self.rows.len() == MOST_FORGOTTEN {
            self.rows = HashMap::new();
            self.known_after = self.count;
        }
        self.rows.insert(row, self.count);
    }

    /// Whether the topic of a row was forgotten since there were so many.
    pub(super) fn since(&self, count: u64, row: usize) -> bool {
        count < self.known_after || self.rows.get(&row).is_some_and(|last| *last > count)
    }
}

/// What went through the window, ever.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) published: Volume,
    pub(crate) delivered: Volume,
}

/// What there is of a topic beside its entries.
#[derive(Default)]
pub(super) struct Place {
    /// Which waiters follow it.
    pub(super) seats: Slab<usize>,
    /// Most topics never have any.
    pub(super) ephemerals: Option<Box<Ephemerals>>,
    pub(super) life: Option<Box<Life>>,
}

/// One subscription.
pub(super) struct Waiter {
    /// What to wake if it has everything.
    pub(super) waker: Option<Waker>,
    /// Most have none.
    pub(super) rare: Option<Box<Rare>>,
    /// Once others are to see it.
    pub(super) member: Option<Arc<Member>>,
    /// Among all that ever were: its place may be given again.
    pub(super) number: u64,
    /// It goes once it is at or past this position.
    pub(super) goes_at: u64,
    /// Up to where it has everything.
    pub(super) position: u64,
}

/// Of a subscription that rests, or may not lag as it likes.
#[derive(Default)]
pub(super) struct Rare {
    pub(super) sleep: Sleep,
    /// When the oldest entry came that it has not taken.
    pub(super) since: Option<Instant>,
    /// The number of the last ephemeral event that it is to hear if it was told to go.
    pub(super) hears: u64,
}

/// Whether a subscription that waits is woken for what is published.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Sleep {
    #[default]
    Awake,
    /// It does not want to look, and so is not behind.
    Rests,
    /// It waits for something else first, and is behind.
    Dozes,
}

impl State {
    /// Keeps the row of a topic, and the place beside it.
    pub(super) fn pin(&mut self, topic: &Topic) -> usize {
        let row = self.shelf.pin(topic);
        if self.places.len() > self.shelf.row_bound() {
            self.places.truncate(self.shelf.row_bound());
            self.places.shrink_to_fit();
        }
        if self.places.len() <= row {
            self.places.resize_with(row + 1, Place::default);
        }
        row
    }

    /// Whether a place of the log was shown, or passed over.
    pub(super) fn is_past(&self, place: Cursor) -> bool {
        place.run() == self.head.run() && place.position() <= self.head.position()
    }

    pub(super) fn forget(&mut self, topic: &Topic, sure: bool) {
        self.forgotten.enter(self.shelf.row(topic));
        self.shelf.forget(topic, sure);
    }

    pub(super) fn age(&self) -> Age {
        Age { run: self.head.run(), forgotten: self.forgotten.count }
    }

    #[inline]
    pub(super) fn standing(&self, attached: &Attached, cursor: Cursor) -> Standing {
        let position = cursor.position();
        // After a restart, only the store knows which topics are finished.
        let off = |row| self.shelf.floor(row) > position || !self.shelf.knows(row);
        if cursor.run() != self.head.run() || attached.rows().any(off) {
            return Standing::Off;
        }
        if attached.rows().any(|row| self.shelf.has_after(row, position)) || self.has_unheard(attached, position) {
            return Standing::Behind;
        }
        let end = position.max(self.head.position());
        // An end that the store has shown, and that is not on the window.
        if attached.rows().any(|row| self.shelf.finished(row).is_some_and(|at| at > end)) {
            return Standing::Off;
        }
        if attached.rows().all(|row| self.shelf.finished(row).is_some()) {
            return Standing::Finished;
        }
        if self.closed { Standing::Closed } else { Standing::Level }
    }

    /// Takes what a subscription is to have next, ephemeral events in their places between the others. Says whether that is
    /// all of it.
    pub(super) fn take(
        &self,
        attached: &mut Attached,
        mut after: u64,
        batch: Batch,
        out: &mut VecDeque<Arc<Entry>>,
    ) -> bool {
        let Batch { mut room, up_to, .. } = batch;
        for (number, ephemeral) in self.unheard(attached, (after, up_to)) {
            let until = ephemeral.position();
            if !self.shelf.collect(attached.rows(), (after, until), &mut room, out) || !room.take(ephemeral) {
                return false;
            }
            out.push_back(Arc::clone(ephemeral));
            (after, attached.heard) = (until, number);
        }
        self.shelf.collect(attached.rows(), (after, up_to), &mut room, out)
    }

    /// The same as one frame, if nothing ephemeral stands between.
    #[inline]
    pub(super) fn stretch(&mut self, attached: &Attached, cursor: Cursor) -> Option<(Stretch, bool)> {
        let level = attached.heard == self.ephemerals.count;
        if level { self.shelf.stretch_after(attached.rows(), cursor.position()) } else { None }
    }

    /// Whether who has everything has to wait for more.
    #[inline]
    pub(super) fn goes_on(&self, attached: &Attached) -> bool {
        !self.closed && attached.rows().all(|row| self.shelf.finished(row).is_none())
    }

    /// What a store has already shown may be past the head.
    pub(super) fn settle(&self, cursor: &mut Cursor) {
        if cursor.position() < self.head.position() {
            *cursor = self.head;
        }
    }

    pub(super) fn push(&mut self, entry: Arc<Entry>, now: Instant, wakers: &mut Vec<Waker>) {
        let cursor = entry.cursor();
        if cursor.run() != self.head.run() {
            self.reset(cursor.run().at(cursor.position().saturating_sub(1)), wakers);
        }
        self.head = cursor;
        self.pushed = now;
        self.counts.published.add(1, entry.frame().len());
        self.shelf.expire(now);
        // A topic that is followed has a row, and its row stays in place.
        let row = self.shelf.row_again(entry.record().topic());
        if let Some(row) = row {
            if let Some(life) = self.places.get_mut(row).and_then(|place| place.life.as_mut()) {
                life.used(now);
            }
            self.wake_row(row, Some(now), wakers);
        }
        // What is published to is used.
        self.forget_unused(now);
        self.shelf.push_to(row, entry, now);
    }

    pub(super) fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        for (_, waiter) in &mut self.waiters {
            if let Some(rare) = &mut waiter.rare {
                rare.sleep = Sleep::Awake;
            }
            wakers.extend(waiter.waker.take());
        }
    }

    /// Wakes those who follow the topic of a row.
    pub(super) fn wake_row(&mut self, row: usize, since: Option<Instant>, wakers: &mut Vec<Waker>) {
        let Some(place) = self.places.get(row) else { return };
        for (_, &waiter) in &place.seats {
            let waiter = &mut self.waiters[waiter];
            if let Some(rare) = &mut waiter.rare {
                if rare.sleep == Sleep::Rests {
                    continue;
                }
                rare.since = rare.since.or(since);
                if rare.sleep == Sleep::Dozes {
                    continue;
                }
            }
            wakers.extend(waiter.waker.take());
        }
    }

    pub(super) fn reset(&mut self, head: Cursor, wakers: &mut Vec<Waker>) {
        let begins_anew = head.run() != self.head.run();
        self.head = head;
        // Where positions begin anew, so does the place up to which somebody was to stay.
        for (_, waiter) in self.waiters.iter_mut().filter(|(_, waiter)| begins_anew && waiter.goes_at != STAYS) {
            waiter.goes_at = waiter.goes_at.min(1);
        }
        self.shelf.clear(head.position());
        for place in &mut self.places {
            place.drop_ephemerals(&mut self.ephemerals);
        }
        self.wake_all(wakers);
    }
}
