//! What a subscription takes from the [`Window`], and how it waits for more.

use super::{
    Attached, Standing, Window,
    members::STAYS,
    state::{Sleep, State},
};
use crate::{
    replay::{Cursor, Entry, Room, Stretch},
    sync::{MutexGuard, Ordering},
};
use std::{collections::VecDeque, num::NonZeroU64, sync::Arc, task::Waker};
use tokio::time::Instant;

/// Which of the window's changes was the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Version(NonZeroU64);

/// What was published to the topics of a subscription, ever; only the difference of two means anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) waiting_since: Option<Instant>,
}

/// How much to take at once, and up to where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) room: Room,
    pub(crate) up_to: u64,
    /// As one frame, where that can be.
    pub(crate) joined: bool,
}

/// What a look at the window came to.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) standing: Standing,
    /// Where the log ended.
    pub(crate) head: Cursor,
    /// In place of entries.
    pub(crate) stretch: Option<Stretch>,
    /// Of which version there is nothing more, if the waker is kept for what comes.
    pub(crate) waits: Option<Version>,
}

impl Window {
    /// Takes what follows the cursor, as much as the batch allows. If there is nothing, moves the cursor to the end of the
    /// log, or of the batch, and keeps the waker for the next entry; the waker is also kept once a batch of frames has all.
    #[inline]
    pub(crate) fn next(
        &self,
        attached: &mut Attached,
        cursor: &mut Cursor,
        batch: Batch,
        waker: &Waker,
        out: &mut VecDeque<Arc<Entry>>,
    ) -> Taken {
        let mut state = self.state.lock();
        let mut standing = state.standing(attached, *cursor);
        // Whether it is to go, which nobody is to most of the time.
        let goes = state.told > 0 && state.waiters[attached.waiter].goes_at != STAYS;
        if goes && state.goes_now(attached, cursor.position()) {
            standing = Standing::Told;
        }
        let head = state.head;
        let mut stretch = None;
        let all = match standing {
            Standing::Off | Standing::Told => false,
            Standing::Behind => {
                let found = if batch.joined { state.stretch(attached, *cursor) } else { None };
                if let Some((found, all)) = found {
                    *cursor = cursor.run().at(found.last);
                    state.counts.delivered.add(found.events, found.frame.len());
                    stretch = Some(found);
                    attached.newest_at = Some(state.pushed);
                    all
                } else {
                    let all = state.take(attached, cursor.position(), batch, out);
                    if out.is_empty() {
                        *cursor = cursor.run().at(batch.up_to.min(head.position()));
                    }
                    all
                }
            }
            Standing::Level | Standing::Finished | Standing::Closed => {
                state.settle(cursor);
                // Nothing of its topics is left before where it was to stay.
                if goes {
                    standing = Standing::Told;
                }
                true
            }
        };
        if attached.handed.events > 0 {
            state.counts.delivered += std::mem::take(&mut attached.handed);
        }
        if all && batch.up_to >= head.position() {
            attached.heard = state.ephemerals.count;
        }
        let waits = standing == Standing::Level || batch.joined && all && !goes && state.goes_on(attached);
        let version = waits.then(|| self.version());
        let waiter = &mut state.waiters[attached.waiter];
        waiter.position = cursor.position();
        if let Some(rare) = &mut waiter.rare {
            match standing {
                // One that has slept counts from now on.
                Standing::Behind if !all => drop(rare.since.get_or_insert_with(Instant::now)),
                _ if all => rare.since = None,
                _ => {}
            }
        }
        if waits {
            Self::wait(state, attached, waker, Sleep::Awake);
        }
        Taken { standing, head, stretch, waits: version }
    }

    /// For as long as this stays the same, there is nothing new for anyone who waits.
    pub(crate) fn version(&self) -> Version {
        // It begins with 1 and only grows. That it is never 0 makes an optional one no larger.
        Version(NonZeroU64::new(self.version.load(Ordering::Acquire)).unwrap_or(NonZeroU64::MAX))
    }

    /// Keeps the waker for the end of the hub, and for nothing else. Not if that is there, or the end of its topics.
    pub(crate) fn sleep(&self, attached: &Attached, cursor: Cursor, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        let told = state.waiters[attached.waiter].goes_at != STAYS;
        let sleeps = !told && !state.closed && state.standing(attached, cursor) != Standing::Finished;
        if sleeps {
            // It is not behind for as long as it does not want to look.
            state.waiters[attached.waiter].rare.get_or_insert_default().since = None;
            Self::wait(state, attached, waker, Sleep::Rests);
        }
        sleeps
    }

    #[inline]
    pub(super) fn wait(mut state: MutexGuard<'_, State>, attached: &Attached, waker: &Waker, sleep: Sleep) {
        let waiter = &mut state.waiters[attached.waiter];
        if let Some(rare) = &mut waiter.rare {
            rare.sleep = sleep;
        }
        if !waiter.waker.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            let old = waiter.waker.replace(waker.clone());
            // Not under the lock: what a waker drops may be the application's.
            drop(state);
            drop(old);
        }
    }

    /// What was published to its topics so far. Who asks is also told, next time, since when it is behind.
    pub(crate) fn published(&self, attached: &Attached) -> Published {
        let mut state = self.state.lock();
        state.waiters[attached.waiter].rare.get_or_insert_default();
        Self::published_in(&state, attached)
    }

    /// The same, and how many events and bytes there are after a position; `None` for a cursor that is off the window.
    pub(crate) fn behind(&self, attached: &Attached, cursor: Cursor, after: u64) -> Option<(Published, (u64, u64))> {
        let state = self.state.lock();
        let on = state.standing(attached, cursor) != Standing::Off;
        on.then(|| (Self::published_in(&state, attached), state.shelf.sum_after(attached.rows(), after)))
    }

    fn published_in(state: &State, attached: &Attached) -> Published {
        let waiting_since = state.waiters[attached.waiter].rare.as_ref().and_then(|rare| rare.since);
        let mut published = Published { events: 0, bytes: 0, waiting_since };
        for row in attached.rows() {
            let (events, bytes) = state.shelf.pushed(row);
            published.events += events;
            published.bytes += bytes;
        }
        published
    }
}
