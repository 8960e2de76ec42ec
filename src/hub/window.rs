//! [`Window`]: the recent end of the log, and those who wait for its next entry.
//!
//! It knows floors, entries and wakers, and nothing of tokio, of stores or of HTTP. [`take`] is what a subscription takes
//! from it, and how it waits; [`ephemeral`] has the events that are not in the log; [`life`] knows which topics were
//! created, and who produces for them; [`members`] shows the subscriptions to others, and lets them be told to go.
//!
//! Invariants: whoever was told to wait at a position is woken by the first entry of its topics after it, because
//! looking and registering are one critical section. Wakers run outside the lock. A position is on the window only if
//! it is at or past the floor of every topic it follows. As long as the version is what it was when someone was told to
//! wait, there is nothing new for them.

mod ephemeral;
mod life;
mod members;
mod state;
mod take;

use self::{
    life::Due,
    members::STAYS,
    state::{Forgotten, Sleep, State, Waiter},
};
pub(crate) use self::{
    life::{Life, TopicLife, Watch},
    members::Goes,
    state::Counts,
    take::{Batch, Published, Version},
};
use crate::{
    Topic, Topics,
    hub::stats::{Lag, Volume},
    replay::{Cursor, Entry, Limits, Page, Run, Shelf},
    sync::{AtomicU64, Mutex, Ordering, wake_all},
};
use slab::Slab;
use std::{collections::HashSet, fmt, sync::Arc, task::Waker};
use tokio::time::Instant;

pub(crate) struct Window {
    state: Mutex<State>,
    /// Changes, under the lock, with all that could be news to someone who waits.
    version: AtomicU64,
    /// Whether only those topics exist that were created.
    explicit: bool,
}

/// Of which run the window is, and how often something was forgotten: what a page says of a topic holds only as long as
/// the run is the same, and the topic was not forgotten since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    pub(crate) run: Run,
    forgotten: u64,
}

/// A subscription's place among the waiters.
#[derive(Debug)]
pub(crate) struct Attached {
    waiter: usize,
    seats: Seats,
    /// It had, or is not to have, the ephemeral events up to this number.
    heard: u64,
    /// When the newest frame that it took was published, if that was on the window.
    pub(crate) newest_at: Option<Instant>,
    /// What was handed over and is not yet counted.
    pub(crate) handed: Volume,
}

/// Row and seat, for each topic.
#[derive(Debug)]
enum Seats {
    /// Most follow one topic, and need no list.
    One((usize, usize)),
    Several(Box<[(usize, usize)]>),
}

impl Attached {
    fn seats(&self) -> &[(usize, usize)] {
        match &self.seats {
            Seats::One(seat) => std::slice::from_ref(seat),
            Seats::Several(seats) => seats,
        }
    }

    pub(crate) fn waiter(&self) -> usize {
        self.waiter
    }

    fn rows(&self) -> impl Iterator<Item = usize> {
        self.seats().iter().map(|(row, _)| *row)
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
    /// It was told to go, and has what it was still to have.
    Told,
}

impl Window {
    /// A window in front of a log that goes up to `head`.
    pub(crate) fn new(head: Cursor, limits: Limits, topic_life: TopicLife) -> Self {
        Self {
            state: Mutex::new(State {
                head,
                shelf: Shelf::new(limits, head.position()),
                places: Vec::new(),
                waiters: Slab::new(),
                closed: false,
                forgotten: Forgotten::default(),
                ephemerals: ephemeral::All::default(),
                due: Due::new(topic_life.idle),
                spare: Vec::new(),
                pushed: Instant::now(),
                attached: 0,
                told: 0,
                counts: Counts::default(),
            }),
            version: AtomicU64::new(1),
            explicit: topic_life.explicit,
        }
    }

    pub(crate) fn head(&self) -> Cursor {
        self.state.lock().head
    }

    /// Takes a place, and says where the log ends at that moment.
    pub(crate) fn attach(&self, topics: &Topics) -> (Attached, Cursor) {
        self.change(|state, wakers| {
            // Who comes late is not shown what the store behind would no longer show.
            let now = Instant::now();
            state.shelf.expire(now);
            state.forget_unused(now);
            state.attached += 1;
            let waiter = state.waiters.insert(Waiter::new(state.attached, state.head));
            let mut sit = |topic| {
                let row = state.pin(topic);
                let place = &mut state.places[row];
                if let Some(life) = &mut place.life {
                    life.read_by_someone(wakers);
                }
                (row, place.seats.insert(waiter))
            };
            let mut topics = topics.iter();
            let seats = match (topics.next(), topics.as_slice()) {
                (Some(one), []) => Seats::One(sit(one)),
                (first, others) => Seats::Several(first.into_iter().chain(others).map(sit).collect()),
            };
            let (heard, handed) = (state.ephemerals.count, Volume::default());
            (Attached { waiter, seats, heard, newest_at: None, handed }, state.head)
        })
    }

    /// Gives a place up. Nothing of it stays.
    pub(crate) fn detach(&self, attached: &Attached) {
        let waiter = self.change(|state, wakers| {
            state.counts.delivered += attached.handed;
            for &(row, seat) in attached.seats() {
                let place = &mut state.places[row];
                place.seats.remove(seat);
                if place.seats.is_empty() {
                    place.seats = Slab::new();
                    place.drop_ephemerals(&mut state.ephemerals);
                    if let Some(life) = &mut place.life {
                        life.read_by_nobody(wakers);
                    }
                }
                state.shelf.unpin(row);
            }
            let waiter = state.waiters.remove(attached.waiter);
            state.told -= usize::from(waiter.goes_at != STAYS);
            waiter
        });
        // Not under the lock: it has a waker.
        drop(waiter);
    }

    /// Where a cursor stands that a client sent. `Off` also if it is ahead of the log.
    pub(crate) fn assess(&self, attached: &Attached, cursor: Cursor) -> Standing {
        let state = self.state.lock();
        if cursor.position() > state.head.position() { Standing::Off } else { state.standing(attached, cursor) }
    }

    /// How many topics it knows, and what went through it.
    pub(crate) fn counts(&self) -> (usize, Counts) {
        let state = self.state.lock();
        (state.shelf.topics(), state.counts)
    }

    /// How far the subscriptions that others see are behind. A few at a time, so that nobody waits long for the lock.
    pub(crate) fn lag(&self) -> Lag {
        const AT_ONCE: usize = 1024;
        let (mut lag, mut next) = (Lag::default(), 0);
        loop {
            let state = self.state.lock();
            let head = state.head.position();
            for (_, waiter) in (next..next + AT_ONCE).filter_map(|key| Some((key, state.waiters.get(key)?))) {
                if waiter.member.is_some() {
                    let dozes = waiter.rare.as_ref().is_some_and(|rare| rare.sleep == Sleep::Dozes);
                    let waits = waiter.waker.is_some() && !dozes;
                    lag.add(if waits { 0 } else { head.saturating_sub(waiter.position) });
                }
            }
            next += AT_ONCE;
            if next >= state.waiters.capacity() {
                return lag;
            }
        }
    }

    /// Only under the lock, so that nobody else changes it.
    fn changed(&self) {
        self.version.store(self.version.load(Ordering::Relaxed) + 1, Ordering::Release);
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
        if page.through.run() == state.head.run() && age.run == state.head.run() {
            for (row, topic) in attached.rows().zip(topics) {
                if !state.forgotten.since(age.forgotten, row) {
                    state.shelf.learn(row, finished.contains(topic), page.through.position());
                }
            }
            self.changed();
        }
    }

    /// Shows entries that a store took to everyone.
    pub(crate) fn publish(&self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        let now = Instant::now();
        self.change(|state, wakers| entries.into_iter().for_each(|entry| state.push(entry, now, wakers)));
    }

    /// The same for what a feed brings, which may be behind what the store has shown.
    pub(crate) fn publish_new(&self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        let now = Instant::now();
        self.change(|state, wakers| {
            for entry in entries {
                if !state.is_past(entry.cursor()) {
                    state.push(entry, now, wakers);
                }
            }
        });
    }

    /// Takes in that a topic was forgotten at a place, which may be the newest.
    pub(crate) fn forget_at(&self, topic: &Topic, place: Cursor) {
        self.change(|state, wakers| {
            if place.run() != state.head.run() {
                state.reset(place, wakers);
            } else if place.position() >= state.head.position() {
                state.forget(topic, true);
                state.head = place;
            }
        });
    }

    /// Starts anew at a place, if that is news. Every subscription that is not there yet is sent to the store.
    pub(crate) fn skip_to(&self, place: Cursor) {
        self.change(|state, wakers| {
            if !state.is_past(place) {
                state.reset(place, wakers);
            }
        });
    }

    /// Lets `append` give the log its next entries and shows them to everyone, in one critical section; unless the hub was
    /// closed.
    pub(crate) fn publish_if_open<R>(
        &self,
        append: impl FnOnce(Instant, &mut dyn FnMut(Arc<Entry>)) -> R,
    ) -> Option<R> {
        let now = Instant::now();
        let show =
            |state: &mut State, wakers: &mut Vec<Waker>| append(now, &mut |entry| state.push(entry, now, wakers));
        self.change(|state, wakers| (!state.closed).then(|| show(state, wakers)))
    }

    /// Removes what there is of a topic. Who follows it and has everything goes on, if it is sure that it was forgotten
    /// behind; others are sent to the store.
    pub(crate) fn forget(&self, topic: &Topic, sure: bool, forget_behind: impl FnOnce()) {
        let mut state = self.state.lock();
        forget_behind();
        state.forget(topic, sure);
        self.changed();
    }

    /// Sends those who follow some topics, and are not past a position, to the store: what lies before was lost.
    pub(crate) fn lose(&self, topics: &Topics, position: u64) {
        self.change(|state, wakers| {
            for topic in topics {
                if let Some(row) = state.shelf.row(topic) {
                    state.wake_row(row, None, wakers);
                }
                state.shelf.lose(topic, position);
            }
        });
    }

    /// Goes on from a place up to which everything was shown or lost.
    pub(crate) fn advance(&self, place: Cursor) {
        let mut state = self.state.lock();
        if place.run() == state.head.run() && place.position() > state.head.position() {
            state.head = place;
            self.changed();
        }
    }

    /// Starts anew at `head`: the log was replaced or rewound. Every subscription is sent to the store.
    pub(crate) fn reset(&self, head: Cursor) {
        self.change(|state, wakers| state.reset(head, wakers));
    }

    /// The same, unless the window is no longer of the run that it was. Says what a page of that run is as old as.
    pub(crate) fn reset_if(&self, age: Age, head: Cursor) -> Age {
        self.change(|state, wakers| {
            if state.head.run() == age.run && head.run() != age.run {
                state.reset(head, wakers);
            }
        });
        Age { run: head.run(), ..age }
    }

    pub(crate) fn age(&self) -> Age {
        self.state.lock().age()
    }

    /// Ends every subscription once it has what there is.
    pub(crate) fn close(&self) {
        self.change(|state, wakers| {
            state.closed = true;
            state.wake_all(wakers);
            state.stop_all(wakers);
        });
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn evict(&self) {
        let mut state = self.state.lock();
        state.shelf.evict_all();
        self.changed();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Changes the state under the lock, and then, outside of it, wakes whom that concerns.
    fn change<R>(&self, change: impl FnOnce(&mut State, &mut Vec<Waker>) -> R) -> R {
        let mut state = self.state.lock();
        let mut wakers = std::mem::take(&mut state.spare);
        let result = change(&mut state, &mut wakers);
        self.changed();
        drop(state);
        if wakers.capacity() == 0 {
            return result;
        }
        wake_all(&mut wakers);
        let mut state = self.state.lock();
        if state.spare.capacity() < wakers.capacity() {
            std::mem::swap(&mut state.spare, &mut wakers);
        }
        drop(state);
        result
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
mod loom_tests;

#[cfg(all(test, not(tidings_loom)))]
mod tests;
