//! How far a subscription may fall behind: [`LagBudget`], and the meter that holds it to that.

use super::window::Published;
use crate::replay::{Cursor, Entry, Run, Stretch};
use std::time::Duration;

/// How far behind a subscription may fall before it is ended. Default: as far as the store reaches.
///
/// Each bound holds by itself. What counts is what was published to its topics since the subscription began, or since it
/// was last told of a gap, and not yet handed to its connection: a client that resumes from far back may take its time
/// for what it missed. The end is clean, and the client's last id is good: it can come back and go on.
///
/// ```
/// use std::time::Duration;
/// use tidings::{Hub, LagBudget};
///
/// let hub = Hub::builder().lag_budget(LagBudget::new().events(50_000).time(Duration::from_secs(60))).build();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct LagBudget {
    events: Option<u64>,
    bytes: Option<u64>,
    time: Option<Duration>,
}

impl LagBudget {
    /// No bound.
    pub const fn new() -> Self {
        Self { events: None, bytes: None, time: None }
    }

    /// At most this many events.
    pub const fn events(self, events: u64) -> Self {
        Self { events: Some(events), ..self }
    }

    /// At most this many bytes, as they go over the wire.
    pub const fn bytes(self, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// At most this long without once having everything: a subscription that is always a little behind is ended, too.
    pub const fn time(self, time: Duration) -> Self {
        Self { time: Some(time), ..self }
    }
}

/// Measures one subscription.
pub(crate) struct Meter {
    pub(crate) budget: LagBudget,
    /// Only what comes after this place counts.
    base: Cursor,
    before: Published,
    handed: (u64, u64),
}

impl Meter {
    pub(crate) fn new(budget: LagBudget, base: Cursor, before: Published) -> Self {
        Self { budget, base, before, handed: (0, 0) }
    }

    pub(crate) fn handed(&mut self, entry: &Entry) {
        if self.counts(entry) {
            self.handed.0 += 1;
            self.handed.1 += entry.frame().len() as u64;
        }
    }

    /// The same for a frame. What lies on both sides of the base is not counted, and so, once that matters, counted exactly.
    pub(crate) fn handed_stretch(&mut self, run: Run, stretch: &Stretch) {
        if run == self.base.run() && stretch.first > self.base.position() {
            self.handed.0 += stretch.events as u64;
            self.handed.1 += stretch.frame.len() as u64;
        }
    }

    fn counts(&self, entry: &Entry) -> bool {
        !entry.is_ephemeral() && entry.cursor().run() == self.base.run() && entry.position() > self.base.position()
    }

    /// Takes in what is still behind by exact count. Others took the place of what else was published.
    pub(crate) fn is_behind_by(&mut self, now: Published, (events, bytes): (u64, u64)) {
        self.before = now;
        self.before.events = now.events.saturating_sub(events);
        self.before.bytes = now.bytes.saturating_sub(bytes);
        self.handed = (0, 0);
    }

    /// After which position it counts.
    pub(crate) fn counts_after(&self, cursor: Cursor) -> u64 {
        let before_base = self.base.run() == cursor.run() && self.base.position() > cursor.position();
        if before_base { self.base.position() } else { cursor.position() }
    }

    pub(crate) fn is_over(&mut self, now: &Published) -> bool {
        // What was read from the store and never shown here is no credit: who is ahead is even.
        let (events, bytes) =
            (now.events.saturating_sub(self.before.events), now.bytes.saturating_sub(self.before.bytes));
        self.handed = (self.handed.0.min(events), self.handed.1.min(bytes));
        let behind = |now: u64, before: u64, handed: u64| now.saturating_sub(before).saturating_sub(handed);
        let events = behind(now.events, self.before.events, self.handed.0);
        let bytes = behind(now.bytes, self.before.bytes, self.handed.1);
        self.budget.events.is_some_and(|most| events > most)
            || self.budget.bytes.is_some_and(|most| bytes > most)
            || self.budget.time.is_some_and(|most| now.waiting_since.is_some_and(|since| since.elapsed() > most))
    }
}
