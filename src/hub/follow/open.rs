//! How a follower begins: fresh, where its client left off, or with a snapshot; and when that is known.

use super::{Follower, Phase, enter::Seen};
use crate::{
    LastEventId, Topic, Topics,
    hub::{
        Shared, Store,
        error::SubscriptionError,
        follow::Start,
        gap::{Gap, GapReason, Resume},
        member::Member,
        snapshot::Snapshots,
        window::Standing,
    },
    replay::{BoxFuture, Cursor, Page, Read, ReadError, ReadFrom},
};
use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

impl Follower {
    pub(in crate::hub) fn new(shared: Arc<Shared>, topics: Topics) -> Self {
        let (attached, head) = shared.window.attach(&topics);
        let unknown = shared.window.not_created(&topics);
        let member = Arc::new(Member::new(attached.waiter(), shared.window.number(&attached), topics));
        let mut follower = Self {
            shared,
            member,
            attached,
            cursor: head,
            pending: VecDeque::new(),
            held: None,
            gap: None,
            told: 0,
            stuck: 0,
            outcome: Resume::Fresh,
            opened: false,
            phase: Phase::Ended(None),
            start: Start::Now,
            joined: false,
            waits: None,
            waker: None,
            on_gap: None,
            filter: None,
            meter: None,
            pace: None,
            doubt: (!unknown.is_empty()).then(|| Box::new(Doubt::Ask(unknown))),
            terms: None,
            intro: None,
            seen: Seen::NotYet,
            #[cfg(feature = "tracing")]
            span: None,
            placeless: false,
        };
        follower.follow_from(head);
        follower
    }

    /// Begins where a client that has no id is to begin.
    pub(crate) fn start(&mut self, start: Start) {
        self.start = start;
        if self.outcome == Resume::Fresh {
            self.clear();
            self.begin(self.shared.window.head());
        }
    }

    /// Begins as `start` says, at the tip or with what is held.
    pub(super) fn begin(&mut self, tip: Cursor) {
        let from = match self.start {
            Start::Now => return self.follow_from(tip),
            Start::Earliest => ReadFrom::Earliest,
            Start::Last(n) => ReadFrom::Last(n),
        };
        self.opened = false;
        self.phase = Phase::Off(Box::new(from));
    }

    /// Whether the client sent an id of this log, old as it may be.
    pub(super) fn has_id(&self) -> bool {
        matches!(self.outcome, Resume::Resumed | Resume::Gap(GapReason::Evicted))
    }

    /// Begins with a snapshot if the client has no id.
    pub(crate) fn snapshot_first(&mut self, snapshots: &Snapshots) {
        if self.outcome == Resume::Fresh {
            self.opened = true;
            self.phase = self.snapshot(snapshots, None);
        }
    }

    /// Begins where the client left off.
    pub(crate) fn resume(&mut self, last: &LastEventId) {
        if last.is_absent() {
            return;
        }
        self.clear();
        if let Some(cursor) = last.as_str().and_then(|text| text.parse().ok()) {
            self.outcome = Resume::Resumed;
            self.follow_from(cursor);
        } else {
            let head = self.shared.window.head();
            self.outcome = Resume::Gap(GapReason::Malformed);
            self.set_gap(Gap { reason: GapReason::Malformed, after: None, through: head }, head);
            self.begin(head);
        }
    }

    pub(super) fn follow_from(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.waits = None;
        let standing = self.shared.window.assess(&self.attached, cursor);
        self.opened = standing != Standing::Off;
        self.phase = match standing {
            // The store also judges cursors of another run, and knows which topics are finished.
            Standing::Off => Phase::Off(Box::new(ReadFrom::After(cursor))),
            // A topic that is finished has no "now": its late reader gets what is held, then the end.
            Standing::Finished if !self.has_id() => Phase::Off(Box::new(ReadFrom::Earliest)),
            _ => Phase::Window,
        };
    }

    /// How the subscription began, once that is known.
    pub(crate) fn outcome(&self) -> Option<Resume> {
        (self.opened && self.doubt.is_none()).then_some(self.outcome)
    }

    /// A gap that is known and not yet handed over.
    pub(crate) fn known_gap(&self) -> Option<Gap> {
        self.gap.as_ref().map(|gap| gap.0)
    }

    /// Whether the client has everything there will ever be: it sent a good id, nothing follows it, and all its topics
    /// are finished.
    pub(crate) fn is_complete(&self) -> bool {
        let mut end = self.held.as_ref().map_or(self.cursor, |held| held.through);
        self.outcome() == Some(Resume::Resumed)
            && self.pending.is_empty()
            && self.held.as_ref().is_none_or(|held| held.stretches.is_empty())
            && self.shared.window.settle(&self.attached, &mut end) == Standing::Finished
    }

    /// Goes on until it is known how the subscription begins: one read of the store, or two if the client's id is foreign
    /// or all topics turn out to be finished.
    pub(crate) fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SubscriptionError>> {
        let read = ready!(self.poll_read(cx));
        #[cfg(feature = "tracing")]
        let read = read.inspect_err(|error| self.trace_failure(error));
        Poll::Ready(read)
    }

    /// The same where no waiting is needed.
    pub(crate) fn open_now(&mut self) -> Result<(), SubscriptionError> {
        if matches!(self.shared.store, Store::Ring(_)) {
            // Over the ring a read does not wait.
            if let Poll::Ready(opened) = self.poll_outcome(&mut Context::from_waker(Waker::noop())) {
                return opened;
            }
        }
        Ok(())
    }

    /// Finds out whether its topics exist.
    pub(super) fn poll_exists(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SubscriptionError>> {
        let unknown = match self.doubt.as_deref_mut() {
            None => return Poll::Ready(Ok(())),
            Some(Doubt::Ask(topics)) => match &self.shared.store {
                Store::Ring(ring) => Ok(topics.drain(..).find(|topic| !ring.has(topic))),
                Store::Other(store) => {
                    // All at once: one after the other, many topics would take longer than one answer may.
                    let ask = |topic: Topic| {
                        let read = Read { max_events: 1, ..Read::new(&topic, ReadFrom::Last(1)) };
                        (topic, self.shared.in_time(Arc::clone(store).read(read)))
                    };
                    let asking = std::mem::take(topics).into_iter().map(ask).collect();
                    self.doubt = Some(Box::new(Doubt::Asking(asking)));
                    return self.poll_exists(cx);
                }
            },
            Some(Doubt::Asking(asking)) => ready!(poll_unknown(asking, cx)),
        };
        self.doubt = None;
        let error = match unknown {
            Ok(None) => return Poll::Ready(Ok(())),
            Ok(Some(topic)) => SubscriptionError::unknown_topic(topic),
            Err(error) => error.into(),
        };
        self.phase = Phase::Ended(None);
        Poll::Ready(Err(error))
    }
}

/// Whether topics exist that were not created here: they do if the log has something of them.
pub(super) enum Doubt {
    Ask(Vec<Topic>),
    Asking(Vec<(Topic, BoxFuture<Result<Page, ReadError>>)>),
}

/// The first that turns out to be unknown.
fn poll_unknown(
    asking: &mut Vec<(Topic, BoxFuture<Result<Page, ReadError>>)>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Topic>, ReadError>> {
    let mut next = 0;
    while let Some((topic, answer)) = asking.get_mut(next) {
        match answer.as_mut().poll(cx) {
            Poll::Pending => next += 1,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(page)) if page.entries.is_empty() && page.finished.is_empty() => {
                return Poll::Ready(Ok(Some(topic.clone())));
            }
            Poll::Ready(Ok(_)) => drop(asking.swap_remove(next)),
        }
    }
    if asking.is_empty() { Poll::Ready(Ok(None)) } else { Poll::Pending }
}
