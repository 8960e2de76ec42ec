//! [`Follower`]: the loop by which a subscription follows the log. It stands here and nowhere else.
//!
//! Resuming, catching up and following live are the same read: from the window where the cursor is on it, or else a page
//! of the store. A follower is a cursor and at most one page; it never has a queue of its own.
//!
//! Invariants: everything up to the cursor was handed over or reported as a gap; a gap is reported before the first
//! entry after it.

mod open;

use super::{
    Shared, Store,
    end::EndReason,
    error::SubscriptionError,
    gap::{Gap, GapPolicy, GapReason, Resume},
    lag::{LagBudget, Meter},
    snapshot::{Snapshot, Snapshots, Taking},
    window::{Age, Attached, Standing},
};
use crate::{
    Topics,
    replay::{Cursor, Entry, Page, Read, ReadError, ReadFrom, Record},
    response::FRAME_TARGET,
};
use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Taken from the window at a time: enough to fill one frame.
const BATCH: (usize, usize) = (64, FRAME_TARGET);

/// Pages, or batches of the window, that one poll may go through.
const MOST_ROUNDS: u32 = 8;

/// Pages in a row that may lead nowhere before the store is taken for broken.
const MOST_STUCK: u32 = 16;

/// Where a subscription begins whose client has no id of this log: it sent none, or one that is malformed or foreign, of
/// which it is told first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Start {
    /// With what is published from now on.
    #[default]
    Now,
    /// With the oldest event that is held.
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
}

enum Phase {
    /// On the window.
    Window,
    /// About to ask the store.
    Off(ReadFrom),
    /// Asking the store; with how the window was when that began.
    Reading(ReadFrom, Age, Pin<Box<dyn Future<Output = Result<Page, ReadError>> + Send>>),
    /// Asking the store where its log ends, because the page is of a run that the window does not know.
    Heading(ReadFrom, Age, Page, Pin<Box<dyn Future<Output = Result<Cursor, ReadError>> + Send>>),
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
                return Poll::Ready(Some(Err(error.into())));
            }
            if let Some((gap, resumes_after)) = self.gap.take() {
                self.apply_policy(resumes_after);
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
                self.phase = match self.shared.window.assess(&self.attached, self.cursor) {
                    Standing::Off => Phase::Off(ReadFrom::After(self.cursor)),
                    _ => Phase::Window,
                };
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
            let window = &self.shared.window;
            if self.meter.as_ref().is_some_and(|meter| meter.is_over(&window.published(&self.attached))) {
                self.phase = Phase::Ended(Some(EndReason::Lagged));
                return Poll::Ready(None);
            }
            match window.next(&self.attached, &mut self.cursor, BATCH, cx.waker(), &mut self.pending) {
                Standing::Behind => {}
                Standing::Level => return Poll::Pending,
                Standing::Off => self.phase = Phase::Off(ReadFrom::After(self.cursor)),
                Standing::Finished => self.phase = Phase::Ended(Some(EndReason::Finished)),
                Standing::Closed => self.phase = Phase::Ended(Some(EndReason::Closed)),
            }
        }
    }

    /// What becomes of the subscription once a gap was reported.
    fn apply_policy(&mut self, resumes_after: Cursor) {
        self.phase = match &self.on_gap {
            GapPolicy::Report => {
                self.cursor = resumes_after;
                return self.restart_meter();
            }
            GapPolicy::Snapshot(snapshots) => self.snapshot(snapshots),
            GapPolicy::End => {
                self.cursor = resumes_after;
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
            self.cursor = entry.cursor();
            if let Some(meter) = &mut self.meter {
                meter.handed(&entry);
            }
            if passes {
                return Some(entry);
            }
        }
    }

    /// Reads from the store for as long as that is what is to be done.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ReadError>> {
        loop {
            match &mut self.phase {
                Phase::Window | Phase::Snapshot(_) | Phase::Ended(_) => return Poll::Ready(Ok(())),
                Phase::Off(from) => {
                    let from = *from;
                    let (max_events, max_bytes) = self.shared.settings.page;
                    let read = Read { topics: self.topics.clone(), from, max_events, max_bytes };
                    let age = self.shared.window.age();
                    match &self.shared.store {
                        Store::Ring(ring) => {
                            let page = ring.read_now(&read);
                            self.take(from, age, page);
                        }
                        Store::Other(store) => self.phase = Phase::Reading(from, age, Arc::clone(store).read(read)),
                    }
                }
                Phase::Reading(from, age, read) => {
                    let page = ready!(read.as_mut().poll(cx));
                    let (from, age) = (*from, *age);
                    self.phase = Phase::Ended(None);
                    let page = page?;
                    match &self.shared.store {
                        Store::Other(store) if page.through.run() != age.run && self.shared.window.age() == age => {
                            self.phase = Phase::Heading(from, age, page, Arc::clone(store).head());
                        }
                        _ => self.take_checked(from, age, page)?,
                    }
                }
                Phase::Heading(_, age, _, head) => {
                    let head = ready!(head.as_mut().poll(cx));
                    let age = *age;
                    let Phase::Heading(from, _, page, _) = std::mem::replace(&mut self.phase, Phase::Ended(None))
                    else {
                        return Poll::Ready(Ok(()));
                    };
                    let head = head?;
                    self.shared.window.reset_if(age, head);
                    self.take_checked(from, self.shared.window.age(), page)?;
                }
            }
        }
    }

    /// A page that goes nowhere, again and again, would be an endless loop.
    fn take_checked(&mut self, from: ReadFrom, age: Age, page: Page) -> Result<(), ReadError> {
        if let ReadFrom::After(cursor) = from {
            let through = page.through;
            let backward = through.run() == cursor.run() && through.position() < cursor.position();
            let off = || self.shared.window.settle(&self.attached, &mut through.clone()) == Standing::Off;
            let nowhere = through == cursor && (page.foreign || off());
            // Once or twice is a burst that passed while the page was on its way.
            self.stuck = if nowhere { self.stuck + 1 } else { 0 };
            if !page.foreign && backward || self.stuck > MOST_STUCK {
                return Err(ReadError::new("the store's page ends before the window begins"));
            }
        }
        self.take(from, age, page);
        Ok(())
    }

    fn take(&mut self, from: ReadFrom, age: Age, page: Page) {
        if page.through.run() != self.cursor.run() {
            self.told = 0;
            self.restart_meter();
        }
        // Ids never run ahead of what was handed over, so not past the first entry that is held.
        let begin = page.entries.first().map_or(page.through, |entry| entry.cursor().before());
        match from {
            ReadFrom::After(cursor) if page.foreign => {
                let gap = Gap { reason: GapReason::Foreign, after: Some(cursor), through: page.through };
                self.set_gap(gap, page.through);
                if self.opened {
                    // The log was replaced under a live subscription: what is held may be what it has seen.
                    self.follow_from(page.through);
                } else {
                    self.begin(page.through);
                }
                return;
            }
            ReadFrom::After(cursor) if page.floor > cursor.position().max(self.told) => {
                self.told = page.floor;
                let through = page.through.run().at(page.floor);
                // A gap that is still to be reported grows.
                let earlier = self.gap.map(|(gap, _)| gap);
                let gap = earlier.unwrap_or(Gap { reason: GapReason::Evicted, after: Some(cursor), through });
                self.set_gap(Gap { through, ..gap }, begin);
            }
            ReadFrom::After(_) => {}
            ReadFrom::Earliest | ReadFrom::Last(_) => match &mut self.gap {
                Some((_, resumes_after)) => *resumes_after = begin,
                None => self.cursor = begin,
            },
        }
        self.shared.window.learn(&self.attached, &self.topics, &page, age);
        let late = !self.opened && !self.has_id() && matches!(from, ReadFrom::After(_));
        self.opened = true;
        if late && page.entries.is_empty() && page.finished.len() == self.topics.len() {
            // As in `follow_from`, now that the store has told.
            self.phase = Phase::Off(ReadFrom::Earliest);
            return;
        }
        self.phase = Phase::Window;
        self.pending = page.entries.into();
        self.through = Some(page.through);
    }

    fn set_gap(&mut self, gap: Gap, resumes_after: Cursor) {
        if !self.opened && self.outcome == Resume::Resumed {
            self.outcome = Resume::Gap(gap.reason);
        }
        self.owed_from = gap.after;
        self.gap = Some((gap, resumes_after));
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
