//! The life of topics: which were created, who produces for them, and whether anybody reads them.
//!
//! Invariant: a topic that has a life has its row pinned once for that, and a topic that was created is looked at when it
//! could be unused for too long.

use super::{State, Window};
use crate::{Topic, Topics, hub::LONGEST};
use slab::Slab;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    task::{Poll, Waker},
    time::Duration,
};
use tokio::time::Instant;

/// With a shorter idle time, a topic that is in use would be looked at without end.
const SHORTEST: Duration = Duration::from_millis(1);

/// How topics come and go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicLife {
    /// Whether only those exist that were created.
    pub(crate) explicit: bool,
    /// After how long without use one that was created is forgotten.
    pub(crate) idle: Duration,
}

/// Of a topic that was created, or has a producer.
#[derive(Debug)]
pub(crate) struct Life {
    /// Its number among all creations, if it was created.
    created: Option<u64>,
    producers: usize,
    stop_asked: bool,
    /// Since when nobody reads it.
    unread_since: Option<Instant>,
    used: Instant,
    /// Those who wait for it to change; woken ones keep their slots.
    watchers: Slab<Option<Waker>>,
}

impl Life {
    pub(crate) fn is_stop_asked(&self) -> bool {
        self.stop_asked
    }

    pub(crate) fn unread_since(&self) -> Option<Instant> {
        self.unread_since
    }

    pub(super) fn used(&mut self, now: Instant) {
        self.used = now;
    }

    pub(super) fn read_by_someone(&mut self, wakers: &mut Vec<Waker>) {
        if self.unread_since.take().is_some() {
            self.changed(wakers);
        }
    }

    pub(super) fn read_by_nobody(&mut self, wakers: &mut Vec<Waker>) {
        let now = Instant::now();
        (self.unread_since, self.used) = (Some(now), now);
        self.changed(wakers);
    }

    fn ask_to_stop(&mut self, wakers: &mut Vec<Waker>) {
        self.stop_asked = true;
        self.changed(wakers);
    }

    fn changed(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.watchers.iter_mut().filter_map(|(_, waker)| waker.take()));
    }

    fn is_in_use(&self) -> bool {
        self.producers > 0 || self.unread_since.is_none()
    }
}

/// When to look whether topics that were created are still in use.
pub(super) struct Due {
    idle: Duration,
    looks: BinaryHeap<Reverse<Look>>,
    creations: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Look {
    at: Instant,
    row: usize,
    /// A topic may have been forgotten and created again since.
    creation: u64,
}

impl Due {
    pub(super) fn new(idle: Duration) -> Self {
        Self { idle: idle.clamp(SHORTEST, LONGEST), looks: BinaryHeap::new(), creations: 0 }
    }
}

impl Window {
    /// Lets a topic exist. Says whether it did not.
    pub(crate) fn create(&self, topic: &Topic) -> bool {
        self.change(|state, _| {
            let now = Instant::now();
            state.forget_unused(now);
            let row = state.live(topic);
            let Some(life) = state.places[row].life.as_mut().filter(|life| life.created.is_none()) else {
                return false;
            };
            let due = &mut state.due;
            due.creations += 1;
            life.created = Some(due.creations);
            due.looks.push(Reverse(Look { at: now + due.idle, row, creation: due.creations }));
            if due.looks.len() > 64 + 2 * state.places.len() {
                // Most are of topics that were forgotten since.
                let places = &state.places;
                let created = |look: &Look| places.get(look.row).and_then(|place| place.life.as_ref()?.created);
                due.looks.retain(|Reverse(look)| created(look) == Some(look.creation));
            }
            true
        })
    }

    /// A topic that was forgotten has to be created again.
    pub(crate) fn uncreate(&self, topic: &Topic) {
        self.change(|state, _| {
            if let Some(row) = state.live_row(topic) {
                state.places[row].life.as_mut().map(|life| life.created.take());
                state.end_if_over(row);
            }
        });
    }

    /// A place for one who produces for a topic.
    pub(crate) fn hold(&self, topic: &Topic) -> usize {
        self.change(|state, _| {
            let row = state.live(topic);
            if let Some(life) = &mut state.places[row].life {
                if life.producers == 0 && life.unread_since.is_some() {
                    // Whoever produces from now on has had no time to be read.
                    life.unread_since = Some(Instant::now());
                }
                life.producers += 1;
            }
            row
        })
    }

    /// Gives that place up.
    pub(crate) fn release(&self, row: usize) {
        self.change(|state, _| {
            if let Some(life) = &mut state.places[row].life {
                life.producers -= 1;
                life.used = Instant::now();
                // Whoever produces next was not asked.
                life.stop_asked &= life.producers > 0 || state.closed;
                state.end_if_over(row);
            }
        });
    }

    /// Asks those who produce for a topic to stop. Says whether there is one.
    pub(crate) fn ask_to_stop(&self, topic: &Topic) -> bool {
        self.change(|state, wakers| {
            let Some(life) = state.life(topic).filter(|life| life.producers > 0) else { return false };
            life.ask_to_stop(wakers);
            true
        })
    }

    /// A slot from which to watch the life of a topic that is held.
    pub(crate) fn watch(&self, row: usize) -> Watch<'_> {
        Watch { window: self, row, slot: None }
    }

    /// Whether a topic may be published to.
    pub(crate) fn admits(&self, topic: &Topic) -> bool {
        if !self.explicit {
            return true;
        }
        let mut state = self.state.lock();
        state.forget_unused(Instant::now());
        state.life(topic).is_some()
    }

    /// Those of some topics that exist only if the log has something of them.
    pub(crate) fn not_created(&self, topics: &Topics) -> Vec<Topic> {
        if !self.explicit {
            return Vec::new();
        }
        let mut state = self.state.lock();
        topics.iter().filter(|topic| state.life(topic).is_none()).cloned().collect()
    }
}

/// Dropped, it leaves nothing behind.
pub(crate) struct Watch<'a> {
    window: &'a Window,
    row: usize,
    slot: Option<usize>,
}

impl Watch<'_> {
    /// Looks at it.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Life) -> R) -> Option<R> {
        self.window.state.lock().places[self.row].life.as_deref().map(look)
    }

    /// Looks at it, and again when it has changed, until there is something to see.
    pub(crate) fn poll<R>(&mut self, waker: &Waker, look: impl FnOnce(&Life) -> Option<R>) -> Poll<R> {
        let mut state = self.window.state.lock();
        let Some(life) = state.places[self.row].life.as_mut() else { return Poll::Pending };
        if let Some(seen) = look(life) {
            return Poll::Ready(seen);
        }
        let slot = *self.slot.get_or_insert_with(|| life.watchers.insert(None));
        let old = life.watchers[slot].replace(waker.clone());
        drop(state);
        // Not under the lock: what a waker drops may be the application's.
        drop(old);
        Poll::Pending
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            let mut state = self.window.state.lock();
            let waker = state.places[self.row].life.as_mut().map(|life| life.watchers.remove(slot));
            drop(state);
            drop(waker);
        }
    }
}

impl State {
    pub(super) fn life(&mut self, topic: &Topic) -> Option<&mut Life> {
        self.places.get_mut(self.shelf.row(topic)?)?.life.as_deref_mut()
    }

    /// The row of a topic that has a life.
    fn live_row(&self, topic: &Topic) -> Option<usize> {
        self.shelf.row(topic).filter(|row| self.places.get(*row).is_some_and(|place| place.life.is_some()))
    }

    /// The row of a topic, which has a life from now on.
    fn live(&mut self, topic: &Topic) -> usize {
        self.live_row(topic).unwrap_or_else(|| {
            let row = self.pin(topic);
            let (place, now) = (&mut self.places[row], Instant::now());
            let unread_since = place.seats.is_empty().then_some(now);
            place.life = Some(Box::new(Life {
                created: None,
                producers: 0,
                stop_asked: self.closed,
                unread_since,
                used: now,
                watchers: Slab::new(),
            }));
            row
        })
    }

    /// Nobody produces for a hub that was closed.
    pub(super) fn stop_all(&mut self, wakers: &mut Vec<Waker>) {
        for life in self.places.iter_mut().filter_map(|place| place.life.as_mut()) {
            life.ask_to_stop(wakers);
        }
    }

    fn end_if_over(&mut self, row: usize) {
        let place = &mut self.places[row];
        if place.life.as_ref().is_some_and(|life| life.created.is_none() && life.producers == 0) {
            place.life = None;
            self.shelf.unpin(row);
        }
    }

    /// Ends the life of topics that were created, and not used for too long.
    pub(super) fn forget_unused(&mut self, now: Instant) {
        while self.due.looks.peek().is_some_and(|Reverse(look)| look.at <= now) {
            let Some(Reverse(mut look)) = self.due.looks.pop() else { return };
            // The row of one that was forgotten since may be gone, or another's.
            let life = self.places.get_mut(look.row).and_then(|place| place.life.as_mut());
            let Some(life) = life.filter(|life| life.created == Some(look.creation)) else { continue };
            let used = if life.is_in_use() { now } else { life.used };
            look.at = used + self.due.idle;
            if look.at > now {
                self.due.looks.push(Reverse(look));
            } else {
                life.created = None;
                self.end_if_over(look.row);
            }
        }
        let looks = &mut self.due.looks;
        if looks.capacity() > 64 + 4 * looks.len() {
            looks.shrink_to(2 * looks.len());
        }
    }
}
