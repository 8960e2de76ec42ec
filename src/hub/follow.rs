//! [`Follower`]: the loop by which a subscription follows the log. It stands here and nowhere else.
//!
//! Resuming, catching up and following live are the same read: from the window where the cursor is on it, or else a page
//! of the store. A follower is a cursor and at most one page; it never has a queue of its own.
//!
//! Invariants: everything up to the cursor was handed over or reported as a gap; a gap is reported before the first
//! entry after it.

mod bounds;
mod enter;
mod open;
mod read;

use self::{
    enter::{Intro, Seen},
    open::Doubt,
};
use super::{
    Shared,
    end::EndReason,
    error::SubscriptionError,
    gap::{Gap, GapPolicy, GapReason, Resume},
    lag::Meter,
    member::Member,
    pace::Pace,
    snapshot::{Snapshot, Snapshots, Taking},
    terms::Terms,
    window::{Age, Attached, Batch, Standing, Version},
};
use crate::{
    Topics,
    replay::{BoxFuture, Cursor, Entry, Page, ReadError, ReadFrom, Record, Room, Stretch},
    response::FRAME_TARGET,
};
use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};
use tokio::time::Instant;

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
    /// Entries in one frame, only if that was asked for.
    Stretch(Stretch),
    Gap(Gap),
    Snapshot(Snapshot),
    /// An answer to its client's heartbeat of that number.
    #[cfg(feature = "client-heartbeats")]
    Pong(u64),
}

pub(crate) struct Follower {
    shared: Arc<Shared>,
    /// As others see it.
    member: Arc<Member>,
    attached: Attached,
    /// Everything up to here was handed over.
    cursor: Cursor,
    /// What was read and is not yet handed over.
    pending: VecDeque<Arc<Entry>>,
    /// What else there is of a page.
    held: Option<Box<Held>>,
    /// To be reported before anything else, and where the cursor goes then.
    gap: Option<Box<(Gap, Cursor)>>,
    /// Losses up to this position were reported: whoever fetched anew when told has what was lost.
    told: u64,
    /// Pages in a row that led nowhere.
    stuck: u32,
    /// How it began, and whether that is known for good.
    outcome: Resume,
    opened: bool,
    phase: Phase,
    start: Start,
    /// Whether frames will do in place of entries.
    joined: bool,
    /// Of which version of the window it has everything, and who is woken for what comes.
    waits: Option<Version>,
    waker: Option<Waker>,
    /// If it is not to be reported and no more.
    on_gap: Option<Box<GapPolicy>>,
    filter: Option<Arc<Filter>>,
    /// Only if it may not lag as it likes.
    meter: Option<Box<Meter>>,
    /// Only if it is not to have everything at once.
    pace: Option<Box<Pace>>,
    /// Until it is known that its topics exist.
    doubt: Option<Box<Doubt>>,
    /// Only if it may not stay as long as it likes.
    terms: Option<Box<Terms>>,
    /// What is said of it before others see it. Most have nothing to say.
    intro: Option<Box<Intro>>,
    seen: Seen,
    /// For as long as others see it, if anybody collects that.
    #[cfg(feature = "tracing")]
    span: Option<Box<tracing::Span>>,
    /// Whether it was ended while its client had no place to come back to.
    placeless: bool,
}

/// Of a page, beside its entries.
struct Held {
    /// In place of entries.
    stretches: VecDeque<Stretch>,
    /// Where the cursor goes once everything was handed over.
    through: Cursor,
}

/// What takes more room than a place on the window is boxed: most subscriptions are on it.
enum Phase {
    /// On the window.
    Window,
    /// About to ask the store.
    Off(Box<ReadFrom>),
    /// Asking the store.
    Reading(Box<Reading>),
    /// Asking the store where its log ends, because the page is of a run that the window does not know.
    Heading(Box<Heading>),
    /// Asking the application; with where the client was, if that has missed something.
    Snapshot(Box<(Taking, Option<Cursor>)>),
    /// With the reason, unless it failed.
    Ended(Option<EndReason>),
}

struct Reading {
    from: ReadFrom,
    /// How the window was when that began.
    age: Age,
    read: BoxFuture<Result<Page, ReadError>>,
}

struct Heading {
    from: ReadFrom,
    age: Age,
    page: Page,
    head: BoxFuture<Result<Cursor, ReadError>>,
}

impl Follower {
    pub(crate) fn set_on_gap(&mut self, policy: GapPolicy) {
        self.on_gap = (!matches!(policy, GapPolicy::Report)).then(|| Box::new(policy));
    }

    pub(crate) fn set_filter(&mut self, filter: Arc<Filter>) {
        self.filter = Some(filter);
    }

    /// Gives frames in place of entries from now on, if it need not look at each.
    pub(crate) fn join(&mut self) {
        self.joined = self.filter.is_none() && self.pace.is_none();
    }

    /// When the newest frame that it gave was published; not known if that is from the store.
    pub(crate) fn newest_at(&self) -> Option<Instant> {
        self.attached.newest_at
    }

    /// Why it ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        match self.phase {
            Phase::Ended(reason) => reason,
            _ => None,
        }
    }

    pub(crate) fn topics(&self) -> &Topics {
        &self.member.topics
    }

    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The place up to which everything was handed over. There is none while a gap is to be reported, or made good for by
    /// a snapshot: who resumed from there would miss it.
    pub(crate) fn place(&self) -> Option<Cursor> {
        let owed = self.placeless || self.gap.is_some() || matches!(self.phase, Phase::Snapshot(_));
        (!owed).then_some(self.cursor)
    }

    /// From where to resume: while there is no place, from where the client was, to be told again.
    pub(crate) fn resume_from(&self) -> Option<Cursor> {
        match (&self.gap, &self.phase) {
            (Some(gap), _) => gap.0.after,
            (None, Phase::Snapshot(taking)) => taking.1,
            (None, _) => (!self.placeless).then_some(self.cursor),
        }
    }

    /// Whether there is nothing to hand over at this moment; then the cursor is at the end of the log.
    pub(crate) fn is_level(&mut self) -> bool {
        self.is_live() && self.shared.window.settle(&self.attached, &mut self.cursor) == Standing::Level
    }

    fn snapshot(&self, snapshots: &Snapshots, owed_from: Option<Cursor>) -> Phase {
        Phase::Snapshot(Box::new((snapshots.take(Arc::clone(&self.shared), self.topics().clone()), owed_from)))
    }

    /// The next step; `None` at the end.
    #[inline]
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Step, SubscriptionError>>> {
        if self.terms.is_some() {
            if let Some(step) = self.look_at_terms(cx) {
                return Poll::Ready(Some(Ok(step)));
            }
        }
        // Whatever could be news changes the version, and then wakes who waits: so there is none, and it will be woken.
        if self.waits == Some(self.shared.window.version()) && self.is_live() && self.is_woken_by(cx.waker()) {
            return Poll::Pending;
        }
        // Others have their turn while much is left out.
        for _ in 0..MOST_ROUNDS {
            if !self.is_live() {
                // What it knew of the window, it knew of another place.
                self.waits = None;
                if self.member.is_to_go_at_once() {
                    self.end_as_told();
                }
                match self.poll_held(cx) {
                    Poll::Ready(held) => {
                        #[cfg(feature = "tracing")]
                        let held = held.inspect_err(|error| self.trace_failure(error));
                        if let Some(step) = held.transpose() {
                            return Poll::Ready(Some(step));
                        }
                    }
                    Poll::Pending if self.shared.window.doze(&self.attached, cx.waker()) => return self.pending(),
                    Poll::Pending => continue,
                }
                if matches!(self.phase, Phase::Ended(_)) {
                    return Poll::Ready(None);
                }
            }
            // Whoever rests does not lag.
            let rested = if self.pace.is_some() { self.poll_rest(cx) } else { Poll::Ready(None) };
            let Poll::Ready(limit) = rested else { return self.pending() };
            if self.meter.is_some() && self.lags() {
                self.phase = Phase::Ended(Some(EndReason::Lagged));
                return Poll::Ready(None);
            }
            let batch = Batch { room: BATCH, up_to: limit.unwrap_or(u64::MAX), joined: self.joined };
            let window = &self.shared.window;
            let taken = window.next(&mut self.attached, &mut self.cursor, batch, cx.waker(), &mut self.pending);
            if let (Some(pace), None, Standing::Behind) = (&mut self.pace, limit, taken.standing) {
                pace.found(taken.head);
            }
            self.waits = taken.waits;
            if taken.waits.is_some() && !self.is_woken_by(cx.waker()) {
                self.waker = Some(cx.waker().clone());
            }
            if let Some(stretch) = taken.stretch {
                self.count(&stretch);
                return Poll::Ready(Some(Ok(Step::Stretch(stretch))));
            }
            match taken.standing {
                Standing::Behind => {}
                Standing::Level => return self.pending(),
                Standing::Off => self.phase = Phase::Off(Box::new(ReadFrom::After(self.cursor))),
                Standing::Finished => self.phase = Phase::Ended(Some(EndReason::Finished)),
                Standing::Closed => self.phase = Phase::Ended(Some(EndReason::Closed)),
                Standing::Told => self.end_as_told(),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether it is on the window, with nothing else to do or to hand over.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Window)
            && self.doubt.is_none()
            && self.gap.is_none()
            && self.pending.is_empty()
            && self.held.is_none()
    }

    /// Reads from the store if need be, and gives what is there; nothing if the window is to be looked at, or at the end.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Step>, SubscriptionError>> {
        if let Err(error) = ready!(self.poll_read(cx)) {
            // Nothing follows a failure.
            self.clear();
            return Poll::Ready(Err(error));
        }
        if let Some((gap, resumes_after)) = self.gap.take().map(|gap| *gap) {
            self.shared.counters.gap(gap.positions());
            self.apply_policy(gap, resumes_after);
            return Poll::Ready(Ok(Some(Step::Gap(gap))));
        }
        if let Phase::Snapshot(taking) = &mut self.phase {
            let snapshot = ready!(taking.0.as_mut().poll(cx));
            self.phase = Phase::Ended(None);
            let snapshot = snapshot.map_err(SubscriptionError::snapshot)?;
            self.cursor = snapshot.cursor;
            // The snapshot may be older than the report, if another asked for it first.
            self.told = self.told.min(snapshot.cursor.position());
            self.phase = Phase::Window;
            self.restart_meter();
            return Poll::Ready(Ok(Some(Step::Snapshot(snapshot))));
        }
        if let Some(stretch) = self.held.as_mut().and_then(|held| held.stretches.pop_front()) {
            self.cursor = self.cursor.run().at(stretch.last);
            self.attached.newest_at = None;
            self.attached.handed.add(stretch.events, stretch.frame.len());
            self.count(&stretch);
            return Poll::Ready(Ok(Some(Step::Stretch(stretch))));
        }
        if let Some(entry) = self.next_within(usize::MAX) {
            return Poll::Ready(Ok(Some(Step::Entry(entry))));
        }
        if let Some(held) = self.held.take() {
            self.cursor = held.through;
            // A page's worth of memory is not kept for a subscription that is live again.
            self.pending = VecDeque::new();
        }
        Poll::Ready(Ok(None))
    }

    fn is_woken_by(&self, waker: &Waker) -> bool {
        self.waker.as_ref().is_some_and(|kept| kept.will_wake(waker))
    }

    /// What becomes of the subscription once a gap was reported.
    fn apply_policy(&mut self, gap: Gap, resumes_after: Cursor) {
        self.phase = match self.on_gap.as_deref() {
            None | Some(GapPolicy::Report) => {
                self.cursor = resumes_after;
                return self.restart_meter();
            }
            Some(GapPolicy::Snapshot(snapshots)) => self.snapshot(snapshots, gap.after),
            Some(GapPolicy::End) => {
                // What is held of one topic may lie before what another has lost: whoever came back from there would be
                // told of that again, and again.
                let told = gap.reason == GapReason::Evicted && gap.through.position() > resumes_after.position();
                self.cursor = if told { gap.through } else { resumes_after };
                Phase::Ended(Some(EndReason::Gap))
            }
        };
        self.pending.clear();
        self.held = None;
    }

    /// Drops what was read and what was to be reported.
    fn clear(&mut self) {
        self.pending.clear();
        self.held = None;
        self.gap = None;
        self.told = 0;
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
                if !entry.is_ephemeral() {
                    self.attached.handed.add(1, entry.frame().len());
                }
                return Some(entry);
            }
            self.shared.counters.filtered(u64::from(!entry.is_ephemeral()));
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.leave();
        self.shared.window.detach(&self.attached);
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("topics", self.topics())
            .field("cursor", &self.cursor)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}
