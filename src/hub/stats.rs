//! [`Stats`]: what a hub has done and how it is, in numbers. Counting is done where things happen, in memory that is
//! touched there anyway; here it is only put together.

use super::{EndReason, Hub, LeaveReason, Resume, Store, gap::GapReason};
use crate::Lost;
use std::{
    ops::AddAssign,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// What a [`Hub`] has done since it was made, and how it is now: from [`Hub::stats`].
///
/// Each event that was published to a topic is, for each subscription of that topic, at last delivered, filtered out,
/// reported in a gap, replaced by a newer one of its key, or still to be read from the log by whoever comes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Subscriptions that are there now: served, or read at least once.
    pub subscriptions: usize,
    /// Topics that are known now: those that are followed, created, or of which the window has something.
    pub topics: usize,
    /// What was published and is in the log, on whatever node of those that share it. Ephemeral events are not.
    pub published: Volume,
    /// What was handed over to subscriptions, as bytes on the wire: each event once for each of them.
    pub delivered: Volume,
    /// Ephemeral events that were published here.
    pub ephemeral: u64,
    /// Events that a subscription's filter has left out.
    pub filtered: u64,
    /// How subscriptions began.
    pub opened: Opened,
    /// How they left.
    pub left: Left,
    /// Those that were turned away, to come back later.
    pub refused: Refusals,
    /// Gaps that were reported to subscriptions.
    pub gaps: Gaps,
    /// How far behind the subscriptions are now.
    pub lag: Lag,
    /// Events that the [`Ring`](crate::replay::Ring) let go, for their age or for lack of room, or forgot with their topic; 0
    /// over another store.
    pub evicted: u64,
    /// What a store other than the [`Ring`](crate::replay::Ring) did not do.
    pub store_errors: StoreErrors,
    /// How the hub follows a log that it shares with others; `None` over a store of its own.
    pub feed: Option<FeedStats>,
    /// Heartbeats that were sent to clients. Those that clients send are not counted.
    pub heartbeats: u64,
}

/// Events, and their bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Volume {
    /// How many events.
    pub events: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Volume {
    pub(crate) fn add(&mut self, events: usize, bytes: usize) {
        self.events += events as u64;
        self.bytes += bytes as u64;
    }
}

impl AddAssign for Volume {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
    }
}

/// How subscriptions began, by [`Resume`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Opened {
    /// Without an id.
    pub fresh: u64,
    /// With a good one.
    pub resumed: u64,
    /// With one that is too old.
    pub evicted: u64,
    /// With one of another log.
    pub foreign: u64,
    /// With something that is no id.
    pub malformed: u64,
}

impl Opened {
    pub(crate) fn count(&mut self, outcome: Resume) {
        *match outcome {
            Resume::Fresh => &mut self.fresh,
            Resume::Resumed => &mut self.resumed,
            Resume::Gap(GapReason::Evicted) => &mut self.evicted,
            Resume::Gap(GapReason::Foreign) => &mut self.foreign,
            Resume::Gap(GapReason::Malformed) => &mut self.malformed,
        } += 1;
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.fresh + self.resumed + self.evicted + self.foreign + self.malformed
    }
}

/// How subscriptions left, by [`LeaveReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the reason of its name")]
pub struct Left {
    pub disconnected: u64,
    pub stalled: u64,
    pub vanished: u64,
    pub cut: u64,
    pub failed: u64,
    pub finished: u64,
    pub lagged: u64,
    pub gap: u64,
    pub closed: u64,
    pub drained: u64,
    pub expired: u64,
    pub replaced: u64,
    pub silent: u64,
    /// For whatever reason of the application's own.
    pub application: u64,
}

impl Left {
    pub(crate) fn count(&mut self, reason: LeaveReason) {
        *match reason {
            LeaveReason::Disconnected => &mut self.disconnected,
            LeaveReason::Lost(Lost::Stalled) => &mut self.stalled,
            LeaveReason::Lost(Lost::Vanished) => &mut self.vanished,
            LeaveReason::Lost(Lost::Cut) => &mut self.cut,
            LeaveReason::Failed => &mut self.failed,
            LeaveReason::Ended(reason) => match reason {
                EndReason::Finished => &mut self.finished,
                EndReason::Lagged => &mut self.lagged,
                EndReason::Gap => &mut self.gap,
                EndReason::Closed => &mut self.closed,
                EndReason::Drained => &mut self.drained,
                EndReason::Expired => &mut self.expired,
                EndReason::Replaced => &mut self.replaced,
                EndReason::Silent => &mut self.silent,
                EndReason::Application(_) => &mut self.application,
            },
        } += 1;
    }

    /// Each reason as a word, and how many left for it.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("disconnected", self.disconnected),
            ("stalled", self.stalled),
            ("vanished", self.vanished),
            ("cut", self.cut),
            ("failed", self.failed),
            ("finished", self.finished),
            ("lagged", self.lagged),
            ("gap", self.gap),
            ("closed", self.closed),
            ("drained", self.drained),
            ("expired", self.expired),
            ("replaced", self.replaced),
            ("silent", self.silent),
            ("application", self.application),
        ]
        .into_iter()
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }
}

/// Why subscriptions were turned away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusals {
    /// There were as many as there may be, in all or under a [`Limit`](crate::Limit).
    pub over_limit: u64,
    /// The hub was being drained.
    pub draining: u64,
}

/// Gaps that were reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gaps {
    /// How many.
    pub reports: u64,
    /// How many positions of the log they span, where that is known: at least as many as events that may be missing, and
    /// just as many if the hub has one topic.
    pub positions: u64,
}

/// How far subscriptions are behind, in positions of the log: at least as many as events of their topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// The furthest.
    pub max: u64,
    /// How many subscriptions have everything; are up to 10, 100, 1,000, 10,000 positions behind; or more.
    pub subscriptions: [usize; 6],
}

impl Lag {
    /// The bounds of [`subscriptions`](Self::subscriptions), but the last, which has none.
    pub const BOUNDS: [u64; 5] = [0, 10, 100, 1_000, 10_000];

    pub(crate) fn add(&mut self, lag: u64) {
        self.max = self.max.max(lag);
        self.subscriptions[Self::BOUNDS.partition_point(|bound| *bound < lag)] += 1;
    }
}

/// Calls to a store that failed, or were not answered in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreErrors {
    /// Batches that it did not take, or did not say whether it took them.
    pub append: u64,
    /// Everything else: reads, topics to be forgotten, where the log ends.
    pub read: u64,
    /// Ephemeral events, and messages to other nodes, that did not go out. Counted one by one.
    pub notify: u64,
}

/// How a hub follows the [feed](crate::replay::Feed) of a log that several nodes share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedStats {
    /// Whether it is followed now. If not, subscribers of this node get nothing new until it is; publishing may still work.
    pub connected: bool,
    /// How often it was cut off.
    pub interruptions: u64,
    /// Events that it did not bring by itself, and that were read from the log afterwards. Nothing was lost by that.
    pub missed: u64,
    /// How often events were not brought one by one, because they were too many or the log was rewound, so that every
    /// subscription had to read for itself. Who has lost something by that is among the [`Gaps`].
    pub skips: u64,
}

/// What is counted where no lock is held.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    ephemeral: AtomicU64,
    filtered: AtomicU64,
    gap_reports: AtomicU64,
    gap_positions: AtomicU64,
    store_append_errors: AtomicU64,
    store_read_errors: AtomicU64,
    notify_errors: AtomicU64,
    connected: AtomicBool,
    interruptions: AtomicU64,
    missed: AtomicU64,
    skips: AtomicU64,
    heartbeats: AtomicU64,
}

impl Counters {
    pub(crate) fn ephemeral(&self) {
        self.ephemeral.fetch_add(1, Relaxed);
    }

    pub(crate) fn filtered(&self, events: u64) {
        self.filtered.fetch_add(events, Relaxed);
    }

    pub(crate) fn gap(&self, positions: u64) {
        self.gap_reports.fetch_add(1, Relaxed);
        self.gap_positions.fetch_add(positions, Relaxed);
    }

    pub(crate) fn append_error(&self) {
        self.store_append_errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn read_error(&self) {
        self.store_read_errors.fetch_add(1, Relaxed);
    }

    pub(crate) fn notify_errors(&self, notices: usize) {
        self.notify_errors.fetch_add(notices as u64, Relaxed);
    }

    pub(crate) fn feed_lost(&self) {
        if self.connected.swap(false, Relaxed) {
            self.interruptions.fetch_add(1, Relaxed);
        }
    }

    /// With how many events it did not bring by itself.
    pub(crate) fn feed_caught(&self, missed: u64) {
        self.connected.store(true, Relaxed);
        self.missed.fetch_add(missed, Relaxed);
    }

    /// If it is followed now, after how many interruptions.
    #[cfg(feature = "client-heartbeats")]
    pub(crate) fn feed_connected(&self) -> Option<u64> {
        let interruptions = self.interruptions.load(Relaxed);
        self.connected.load(Relaxed).then_some(interruptions)
    }

    pub(crate) fn feed_skipped(&self) {
        self.skips.fetch_add(1, Relaxed);
    }

    fn feed(&self) -> FeedStats {
        FeedStats {
            connected: self.connected.load(Relaxed),
            interruptions: self.interruptions.load(Relaxed),
            missed: self.missed.load(Relaxed),
            skips: self.skips.load(Relaxed),
        }
    }

    pub(crate) fn heartbeat(&self) {
        self.heartbeats.fetch_add(1, Relaxed);
    }
}

impl Hub {
    /// What the hub has done since it was made, and how it is now.
    ///
    /// It looks at each subscription, a thousand at a time under the lock: fit for every few seconds, not for every event.
    /// The numbers are not all of one moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.handle.shared;
        let counters = &shared.counters;
        let (topics, window) = shared.window.counts();
        let registry = shared.registry.counts();
        Stats {
            subscriptions: registry.present,
            topics,
            published: window.published,
            delivered: window.delivered,
            ephemeral: counters.ephemeral.load(Relaxed),
            filtered: counters.filtered.load(Relaxed),
            opened: registry.opened,
            left: registry.left,
            refused: registry.refused,
            gaps: Gaps { reports: counters.gap_reports.load(Relaxed), positions: counters.gap_positions.load(Relaxed) },
            lag: shared.window.lag(),
            evicted: match &shared.store {
                Store::Ring(ring) => ring.evicted(),
                Store::Other(_) => 0,
            },
            store_errors: StoreErrors {
                append: counters.store_append_errors.load(Relaxed),
                read: counters.store_read_errors.load(Relaxed),
                notify: counters.notify_errors.load(Relaxed),
            },
            feed: shared.has_feed.then(|| counters.feed()),
            heartbeats: counters.heartbeats.load(Relaxed),
        }
    }
}
