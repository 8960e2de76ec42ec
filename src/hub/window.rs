//! [`Window`]: the recent end of the log, and those who wait for its next entry.
//!
//! It knows floors, entries and wakers, and nothing of tokio, of stores or of HTTP.
//!
//! Invariants: whoever was told to wait at a position is woken by the first entry of its topics after it, because
//! looking and registering are one critical section. Wakers run outside the lock. A position is on the window only if
//! it is at or past the floor of every topic it follows.

use crate::{
    Topic, Topics,
    replay::{Cursor, Entry, Limits, Page, Run, Shelf},
    sync::Mutex,
};
use slab::Slab;
use std::{collections::HashSet, fmt, sync::Arc, task::Waker};
use tokio::time::Instant;

pub(crate) struct Window {
    state: Mutex<State>,
}

struct State {
    /// The newest entry that was shown to everyone.
    head: Cursor,
    shelf: Shelf,
    /// Beside each row of the shelf: which waiters follow the topic.
    seats: Vec<Slab<usize>>,
    waiters: Slab<Waiter>,
    closed: bool,
    /// How often a topic was forgotten.
    forgotten: u64,
    /// The list of wakers of the last publish, kept for its memory.
    spare: Vec<Waker>,
}

/// One subscription.
#[derive(Default)]
struct Waiter {
    /// What to wake if it has everything.
    waker: Option<Waker>,
    /// When the oldest entry came that it has not taken.
    since: Option<Instant>,
}

/// What was published to the topics of a subscription, ever; only the difference of two means anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) waiting_since: Option<Instant>,
}

/// Of which run the window is, and how often something was forgotten: what a page says of a topic holds only as long as
/// this is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Age {
    pub(crate) run: Run,
    forgotten: u64,
}

/// A subscription's place among the waiters.
#[derive(Debug)]
pub(crate) struct Attached {
    waiter: usize,
    /// Row and seat, for each topic.
    seats: Box<[(usize, usize)]>,
}

impl Attached {
    fn rows(&self) -> impl Iterator<Item = usize> {
        self.seats.iter().map(|(row, _)| *row)
    }
}

/// Where a cursor stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// Something between it and the window is only in the store, if anywhere.
    Off,
    /// The window has entries after it.
    Behind,
    /// It has everything there is.
    Level,
    /// As `Level`, and nothing will ever follow: all topics are finished.
    Finished,
    /// As `Level`, and the hub is gone.
    Closed,
}

impl Window {
    /// A window in front of a log that goes up to `head`.
    pub(crate) fn new(head: Cursor, limits: Limits) -> Self {
        Self {
            state: Mutex::new(State {
                head,
                shelf: Shelf::new(limits, head.position()),
                seats: Vec::new(),
                waiters: Slab::new(),
                closed: false,
                forgotten: 0,
                spare: Vec::new(),
            }),
        }
    }

    pub(crate) fn head(&self) -> Cursor {
        self.state.lock().head
    }

    /// Takes a place, and says where the log ends at that moment.
    pub(crate) fn attach(&self, topics: &Topics) -> (Attached, Cursor) {
        let mut state = self.state.lock();
        let state = &mut *state;
        // Who comes late is not shown what the store behind would no longer show.
        state.shelf.expire(Instant::now());
        let waiter = state.waiters.insert(Waiter::default());
        let seats = topics
            .iter()
            .map(|topic| {
                let row = state.shelf.pin(topic);
                if state.seats.len() <= row {
                    state.seats.resize_with(row + 1, Slab::new);
                }
                (row, state.seats[row].insert(waiter))
            })
            .collect();
        (Attached { waiter, seats }, state.head)
    }

    /// Gives a place up. Nothing of it stays.
    pub(crate) fn detach(&self, attached: &Attached) {
        let mut state = self.state.lock();
        for &(row, seat) in &attached.seats {
            state.seats[row].remove(seat);
            if state.seats[row].is_empty() {
                state.seats[row] = Slab::new();
            }
            state.shelf.unpin(row);
        }
        let waiter = state.waiters.remove(attached.waiter);
        drop(state);
        drop(waiter);
    }

    /// Where a cursor stands that a client sent. `Off` also if it is ahead of the log.
    pub(crate) fn assess(&self, attached: &Attached, cursor: Cursor) -> Standing {
        let state = self.state.lock();
        if cursor.position() > state.head.position() { Standing::Off } else { state.standing(attached, cursor) }
    }

    /// Takes up to `max_events` entries after the cursor, or up to the one that reaches `max_bytes`. If there is none,
    /// moves the cursor to the end of the log, and keeps the waker for the next entry.
    pub(crate) fn next(
        &self,
        attached: &Attached,
        cursor: &mut Cursor,
        (max_events, max_bytes): (usize, usize),
        waker: &Waker,
        out: &mut impl Extend<Arc<Entry>>,
    ) -> Standing {
        let mut state = self.state.lock();
        let standing = state.standing(attached, *cursor);
        let level = match standing {
            Standing::Off => false,
            Standing::Behind => state.shelf.collect(attached.rows(), cursor.position(), max_events, max_bytes, out),
            Standing::Level | Standing::Finished | Standing::Closed => {
                state.settle(cursor);
                true
            }
        };
        let waiter = &mut state.waiters[attached.waiter];
        if level {
            waiter.since = None;
        }
        if standing == Standing::Level && !waiter.waker.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            let old = waiter.waker.replace(waker.clone());
            drop(state);
            drop(old);
        }
        standing
    }

    /// What was published to its topics so far.
    pub(crate) fn published(&self, attached: &Attached) -> Published {
        let state = self.state.lock();
        let mut published = Published { events: 0, bytes: 0, waiting_since: state.waiters[attached.waiter].since };
        for row in attached.rows() {
            let (events, bytes) = state.shelf.pushed(row);
            published.events += events;
            published.bytes += bytes;
        }
        published
    }

    /// Moves the cursor to the end of the log if nothing of its topics lies between, and says where it stands.
    pub(crate) fn settle(&self, attached: &Attached, cursor: &mut Cursor) -> Standing {
        let state = self.state.lock();
        let standing = state.standing(attached, *cursor);
        if !matches!(standing, Standing::Off | Standing::Behind) {
            state.settle(cursor);
        }
        standing
    }

    /// Takes over what a page of the store says of topics that were not published to since the hub was opened.
    pub(crate) fn learn(&self, attached: &Attached, topics: &Topics, page: &Page, age: Age) {
        let finished: HashSet<&Topic> = page.finished.iter().collect();
        let mut state = self.state.lock();
        // What was true of an older run, or before a topic was forgotten, may not be true of this one.
        if page.through.run() == state.head.run() && state.age() == age {
            for (row, topic) in attached.rows().zip(topics) {
                state.shelf.learn(row, finished.contains(topic), page.through.position());
            }
        }
    }

    /// Lets `append` give the log its next entries and shows them to everyone, in one critical section.
    pub(crate) fn publish<R>(&self, append: impl FnOnce(&mut dyn FnMut(Arc<Entry>)) -> R) -> R {
        self.change(|state, wakers| append(&mut |entry| state.push(entry, wakers)))
    }

    /// The same, unless the hub was closed.
    pub(crate) fn publish_if_open<R>(&self, append: impl FnOnce(&mut dyn FnMut(Arc<Entry>)) -> R) -> Option<R> {
        self.change(|state, wakers| (!state.closed).then(|| append(&mut |entry| state.push(entry, wakers))))
    }

    /// Removes what there is of a topic. Who follows it and has everything goes on; others are sent to the store.
    pub(crate) fn forget(&self, topic: &Topic, forget_behind: impl FnOnce()) {
        let mut state = self.state.lock();
        forget_behind();
        state.shelf.forget(topic);
        state.forgotten += 1;
    }

    /// Sends those who follow some topics, and are not past a position, to the store: what lies before was lost.
    pub(crate) fn lose(&self, topics: &Topics, position: u64) {
        self.change(|state, wakers| {
            for topic in topics {
                state.wake_topic(topic, None, wakers);
                state.shelf.lose(topic, position);
            }
        });
    }

    /// Starts anew at `head`: the log was replaced or rewound. Every subscription is sent to the store.
    pub(crate) fn reset(&self, head: Cursor) {
        self.change(|state, wakers| state.reset(head, wakers));
    }

    /// The same, unless the window is no longer what it was.
    pub(crate) fn reset_if(&self, age: Age, head: Cursor) {
        self.change(|state, wakers| {
            if state.age() == age && head.run() != age.run {
                state.reset(head, wakers);
            }
        });
    }

    pub(crate) fn age(&self) -> Age {
        self.state.lock().age()
    }

    /// Ends every subscription once it has what there is.
    pub(crate) fn close(&self) {
        self.change(|state, wakers| {
            state.closed = true;
            state.wake_all(wakers);
        });
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn evict(&self) {
        self.state.lock().shelf.evict_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Changes the state under the lock, and then, outside of it, wakes whom that concerns.
    fn change<R>(&self, change: impl FnOnce(&mut State, &mut Vec<Waker>) -> R) -> R {
        let mut state = self.state.lock();
        let mut wakers = std::mem::take(&mut state.spare);
        let result = change(&mut state, &mut wakers);
        drop(state);
        if wakers.capacity() == 0 {
            return result;
        }
        let waking = Waking(&mut wakers);
        while let Some(waker) = waking.0.pop() {
            waker.wake();
        }
        drop(waking);
        let mut state = self.state.lock();
        if state.spare.capacity() < wakers.capacity() {
            std::mem::swap(&mut state.spare, &mut wakers);
        }
        drop(state);
        result
    }
}

/// Wakes the rest also if one of them panics.
struct Waking<'a>(&'a mut Vec<Waker>);

impl Drop for Waking<'_> {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

impl State {
    fn age(&self) -> Age {
        Age { run: self.head.run(), forgotten: self.forgotten }
    }

    fn standing(&self, attached: &Attached, cursor: Cursor) -> Standing {
        let position = cursor.position();
        // After a restart, only the store knows which topics are finished.
        let off = |row| self.shelf.floor(row) > position || !self.shelf.knows(row);
        if cursor.run() != self.head.run() || attached.rows().any(off) {
            return Standing::Off;
        }
        if attached.rows().any(|row| self.shelf.has_after(row, position)) {
            return Standing::Behind;
        }
        let end = position.max(self.head.position());
        if attached.rows().all(|row| self.shelf.finished(row).is_some_and(|at| at <= end)) {
            return Standing::Finished;
        }
        if self.closed { Standing::Closed } else { Standing::Level }
    }

    /// What a store has already shown may be past the head.
    fn settle(&self, cursor: &mut Cursor) {
        if cursor.position() < self.head.position() {
            *cursor = self.head;
        }
    }

    fn push(&mut self, entry: Arc<Entry>, wakers: &mut Vec<Waker>) {
        let cursor = entry.cursor();
        if cursor.run() != self.head.run() {
            self.reset(cursor.run().at(cursor.position().saturating_sub(1)), wakers);
        }
        self.head = cursor;
        let now = Instant::now();
        self.shelf.expire(now);
        self.wake_topic(entry.record().topic(), Some(now), wakers);
        self.shelf.push(entry, now);
    }

    fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.waiters.iter_mut().filter_map(|(_, waiter)| waiter.waker.take()));
    }

    fn wake_topic(&mut self, topic: &Topic, since: Option<Instant>, wakers: &mut Vec<Waker>) {
        // A topic that is followed has a row, and its row stays in place.
        if let Some(seats) = self.shelf.row(topic).and_then(|row| self.seats.get(row)) {
            for (_, &waiter) in seats {
                let waiter = &mut self.waiters[waiter];
                waiter.since = waiter.since.or(since);
                wakers.extend(waiter.waker.take());
            }
        }
    }

    fn reset(&mut self, head: Cursor, wakers: &mut Vec<Waker>) {
        self.head = head;
        self.shelf.clear(head.position());
        self.wake_all(wakers);
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let (head, contents, subscriptions) = (state.head, state.shelf.contents(), state.waiters.len());
        // The lock is not held while code of the application may run, which what is written to may be.
        drop(state);
        f.debug_struct("Window")
            .field("head", &head)
            .field("contents", &contents)
            .field("subscriptions", &subscriptions)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, tidings_loom))]
#[path = "window_loom.rs"]
mod loom_tests;
