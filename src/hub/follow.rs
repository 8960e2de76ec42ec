//! [`Follower`]: the loop by which a subscription follows the log. It stands here and nowhere else.
//!
//! Resuming, catching up and following live are the same read: from the window where the cursor is on it, or else a page
//! of the store. A follower is a cursor and at most one page; it never has a queue of its own.
//!
//! Invariants: everything up to the cursor was handed over or reported as a gap; a gap is reported before the first
//! entry after it.

mod open;
mod read;

use self::open::Doubt;
use super::{
    Shared,
    end::EndReason,
    error::SubscriptionError,
    gap::{Gap, GapPolicy, GapReason, Resume},
    lag::{LagBudget, Meter},
    pace::Pace,
    snapshot::{Snapshot, Snapshots, Taking},
    window::{Age, Attached, Batch, Standing},
};
use crate::{
    Topics,
    replay::{BoxFuture, Cursor, Entry, Page, ReadError, ReadFrom, Record, Room},
    response::FRAME_TARGET,
};
use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

/// Taken from the window at a time: enough to fill one frame.
const BATCH: Room = Room { events: 64, bytes: FRAME_TARGET };

/// Pages, or batches of the window, that one poll may go through.
const MOST_ROUNDS: u32 = 8;

/// Where a subscription begins whose client has no id of this log: it sent none, or one that is malformed or foreign, of
/// which it is told first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Start {
    /// With what is published from now on.
    #[default]
    Now,
    /// With the oldest event that is held. That there were older ones is not reported: who has to know gives the first
    /// event of a topic a type of its own, or keeps enough of it.
    Earliest,
    /// With the last `n` events that are held, counted over all its topics together.
    Last(usize),
}

/// Says which records a subscription wants.
pub(crate) type Filter = dyn Fn(&Record) -> bool + Send + Sync;

/// What a subscription comes to next.
pub(crate) enum Step {
    Entry(Arc<Entry>),
    Gap(Gap),
    Snapshot(Snapshot),
}

pub(crate) struct Follower {
    shared: Arc<Shared>,
    topics: Topics,
    attached: Attached,
    /// Everything up to here was handed over.
    cursor: Cursor,
    /// What was read and is not yet handed over.
    pending: VecDeque<Arc<Entry>>,
    /// Where the cursor goes once `pending` is empty.
    through: Option<Cursor>,
    /// To be reported before anything else, and where the cursor goes then.
    gap: Option<(Gap, Cursor)>,
    /// Losses up to this position were reported: whoever fetched anew when told has what was lost.
    told: u64,
    /// Where the client was when a gap was found that is not yet made good for.
    owed_from: Option<Cursor>,
    /// Pages in a row that led nowhere.
    stuck: u32,
    /// How it began, and whether that is known for good.
    outcome: Resume,
    opened: bool,
    phase: Phase,
    start: Start,
    on_gap: GapPolicy,
    filter: Option<Arc<Filter>>,
    /// Only if it may not lag as it likes.
    meter: Option<Box<Meter>>,
    /// Only if it is not to have everything at once.
    pace: Option<Box<Pace>>,
    /// Until it is known that its topics exist.
    doubt: Option<Box<Doubt>>,
}

enum Phase {
    /// On the window.
    Window,
    /// About to ask the store.
    Off(ReadFrom),
    /// Asking the store; with how the window was when that began.
    Reading(ReadFrom, Age, BoxFuture<Result<Page, ReadError>>),
    /// Asking the store where its log ends, because the page is of a run that the window does not know.
    Heading(ReadFrom, Age, Page, BoxFuture<Result<Cursor, ReadError>>),
    /// Asking the application.
    Snapshot(Taking),
    /// With the reason, unless it failed.
    Ended(Option<EndReason>),
}

impl Follower {
    pub(crate) fn set_on_gap(&mut self, policy: GapPolicy) {
        self.on_gap = policy;
    }

    pub(crate) fn set_filter(&mut self, filter: Arc<Filter>) {
        self.filter = Some(filter);
    }

    pub(crate) fn set_min_interval(&mut self, interval: Duration) {
        self.pace = Some(Box::new(Pace::new(interval)));
    }

    /// Sets how far it may fall behind, from now on.
    pub(crate) fn set_lag_budget(&mut self, budget: LagBudget) {
        self.meter = None;
        if budget != LagBudget::new() {
            let window = &self.shared.window;
            let meter = Meter::new(budget, window.head(), window.published(&self.attached));
            self.meter = Some(Box::new(meter));
        }
    }

    /// Why it ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        match self.phase {
            Phase::Ended(reason) => reason,
            _ => None,
        }
    }

    pub(crate) fn topics(&self) -> &Topics {
        &self.topics
    }

    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The place up to which everything was handed over. There is none while a gap is to be reported, or made good for by
    /// a snapshot: who resumed from there would miss it.
    pub(crate) fn place(&self) -> Option<Cursor> {
        let owed = self.gap.is_some() || matches!(self.phase, Phase::Snapshot(_));
        (!owed).then_some(self.cursor)
    }

    /// From where to resume: while there is no place, from where the client was, to be told again.
    pub(crate) fn resume_from(&self) -> Option<Cursor> {
        self.place().or(self.owed_from)
    }

    /// Whether there is nothing to hand over at this moment; then the cursor is at the end of the log.
    pub(crate) fn is_level(&mut self) -> bool {
        matches!(self.phase, Phase::Window)
            && self.gap.is_none()
            && self.pending.is_empty()
            && self.through.is_none()
            && self.shared.window.settle(&self.attached, &mut self.cursor) == Standing::Level
    }

    fn snapshot(&self, snapshots: &Snapshots) -> Phase {
        Phase::Snapshot(snapshots.take(Arc::clone(&self.shared), self.topics.clone()))
    }

    /// The next step; `None` at the end.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Step, SubscriptionError>>> {
        let mut rounds = 0;
        loop {
            rounds += 1;
            if rounds > MOST_ROUNDS {
                // Others have their turn while much is left out.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Err(error) = ready!(self.poll_read(cx)) {
                // Nothing follows a failure.
                self.clear();
                return Poll::Ready(Some(Err(error)));
            }
            if let Some((gap, resumes_after)) = self.gap.take() {
                self.apply_policy(gap, resumes_after);
                return Poll::Ready(Some(Ok(Step::Gap(gap))));
            }
            if let Phase::Snapshot(taking) = &mut self.phase {
                let snapshot = ready!(taking.as_mut().poll(cx));
                self.phase = Phase::Ended(None);
                let snapshot = match snapshot {
                    Ok(snapshot) => snapshot,
                    Err(source) => return Poll::Ready(Some(Err(SubscriptionError::snapshot(source)))),
                };
                self.cursor = snapshot.cursor;
                // The snapshot may be older than the report, if another asked for it first.
                self.told = self.told.min(snapshot.cursor.position());
                self.phase = Phase::Window;
                self.restart_meter();
                return Poll::Ready(Some(Ok(Step::Snapshot(snapshot))));
            }
            if let Some(entry) = self.next_within(usize::MAX) {
                return Poll::Ready(Some(Ok(Step::Entry(entry))));
            }
            if let Some(through) = self.through.take() {
                self.cursor = through;
                // A page's worth of memory is not kept for a subscription that is live again.
                self.pending = VecDeque::new();
            }
            if matches!(self.phase, Phase::Ended(_)) {
                return Poll::Ready(None);
            }
            // Whoever rests does not lag.
            let limit = ready!(self.poll_rest(cx));
            if self.lags() {
                self.phase = Phase::Ended(Some(EndReason::Lagged));
                return Poll::Ready(None);
            }
            let batch = Batch { room: BATCH, up_to: limit.unwrap_or(u64::MAX) };
            let window = &self.shared.window;
            let taken = window.next(&mut self.attached, &mut self.cursor, batch, cx.waker(), &mut self.pending);
            if let (Some(pace), None, Standing::Behind) = (&mut self.pace, limit, taken.standing) {
                pace.found(taken.head);
            }
            match taken.standing {
                Standing::Behind => {}
                Standing::Level => return Poll::Pending,
                Standing::Off => self.phase = Phase::Off(ReadFrom::After(self.cursor)),
                Standing::Finished => self.phase = Phase::Ended(Some(EndReason::Finished)),
                Standing::Closed => self.phase = Phase::Ended(Some(EndReason::Closed)),
            }
        }
    }

    /// Waits while it is not to look for what is new. Then says up to where it may, if not as far as the log goes.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let Some(pace) = &mut self.pace else { return Poll::Ready(None) };
        match pace.poll_limit(self.cursor, cx) {
            Poll::Pending if !self.shared.window.sleep(&self.attached, self.cursor, cx.waker()) => Poll::Ready(None),
            limit => limit,
        }
    }

    /// Whether it is further behind than it may be.
    fn lags(&mut self) -> bool {
        let (window, Some(meter)) = (&self.shared.window, &mut self.meter) else { return false };
        if !meter.is_over(&window.published(&self.attached)) {
            return false;
        }
        // Some of what was published may have been replaced, and is not to be read any more.
        let after = meter.counts_after(self.cursor);
        let Some((now, behind)) = window.behind(&self.attached, self.cursor, after) else { return true };
        meter.is_behind_by(now, behind);
        meter.is_over(&now)
    }

    /// What becomes of the subscription once a gap was reported.
    fn apply_policy(&mut self, gap: Gap, resumes_after: Cursor) {
        self.phase = match &self.on_gap {
            GapPolicy::Report => {
                self.cursor = resumes_after;
                return self.restart_meter();
            }
            GapPolicy::Snapshot(snapshots) => self.snapshot(snapshots),
            GapPolicy::End => {
                // What is held of one topic may lie before what another has lost: whoever came back from there would be
                // told of that again, and again.
                let told = gap.reason == GapReason::Evicted && gap.through.position() > resumes_after.position();
                self.cursor = if told { gap.through } else { resumes_after };
                Phase::Ended(Some(EndReason::Gap))
            }
        };
        self.pending.clear();
        self.through = None;
    }

    /// Drops what was read and what was to be reported.
    fn clear(&mut self) {
        self.pending.clear();
        self.through = None;
        self.gap = None;
        self.told = 0;
    }

    /// What it can no longer read does not count against it.
    fn restart_meter(&mut self) {
        if let Some(meter) = self.meter.take() {
            self.set_lag_budget(meter.budget);
        }
    }

    /// The next entry that passes the filter, if it was read already and its frame has at most `bytes`. The cursor moves
    /// past those that do not.
    pub(crate) fn next_within(&mut self, bytes: usize) -> Option<Arc<Entry>> {
        loop {
            let next = self.pending.front()?;
            let passes = self.filter.as_ref().is_none_or(|filter| filter(next.record()));
            if passes && next.frame().len() > bytes {
                return None;
            }
            let entry = self.pending.pop_front()?;
            // An ephemeral event has no place: it may stand behind what a gap has already passed.
            if !entry.is_ephemeral() {
                self.cursor = entry.cursor();
            }
            if let Some(meter) = &mut self.meter {
                meter.handed(&entry);
            }
            if passes {
                return Some(entry);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.window.detach(&self.attached);
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("topics", &self.topics)
            .field("cursor", &self.cursor)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}
