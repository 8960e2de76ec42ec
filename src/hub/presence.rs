//! [`Presence`]: who follows a topic, and who comes and goes.

use super::{
    Hub, Shared,
    member::{LeaveReason, Member, Subscriber},
};
use crate::{Topic, replay::Cursor, sync::Mutex};
use futures_core::Stream;
use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

/// Changes that wait for a watcher who does not look. More than that, and it is told how many it missed.
const MOST_WAITING: usize = 65_536;

/// Who follows a topic: from [`Hub::presence`]. It is about this node: where several share a log, each knows its own.
///
/// A subscription is there from when it is served, or first read as a stream, until its response is over or dropped,
/// however that happens. One whose client vanished is there until the server notices.
#[derive(Clone)]
pub struct Presence {
    shared: Weak<Shared>,
    topic: Topic,
}

/// Somebody came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresenceChange {
    /// It is there; for those who are there already, when watching begins.
    Joined(Subscriber),
    /// It is gone.
    Left {
        /// Who.
        subscriber: Subscriber,
        /// How.
        reason: LeaveReason,
        /// The last id that was handed to its connection. Its client may have received less, and then goes on from there.
        last: Option<Cursor>,
    },
    /// So many changes came while 65,536 waited to be looked at, and are lost: begin anew with
    /// [`Presence::changes`].
    Missed(u64),
}

impl Hub {
    /// Everyone who is there, whatever they follow. For one topic: [`presence`](Self::presence).
    #[must_use]
    pub fn subscribers(&self) -> Vec<Subscriber> {
        let shared = &self.handle.shared;
        shared.window.members().into_iter().map(|member| Subscriber::new(member, shared)).collect()
    }

    /// Who follows a topic.
    pub fn presence(&self, topic: impl Into<Topic>) -> Presence {
        Presence { shared: Arc::downgrade(&self.handle.shared), topic: topic.into() }
    }
}

impl Presence {
    /// How many subscriptions follow it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.upgrade().map_or(0, |shared| shared.window.count_of(&self.topic))
    }

    /// Those who do.
    #[must_use]
    pub fn subscribers(&self) -> Vec<Subscriber> {
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        shared.window.members_of(&self.topic).into_iter().map(|member| Subscriber::new(member, &shared)).collect()
    }

    /// Who comes and who goes, beginning with those who are there: one [`Left`](PresenceChange::Left) for every
    /// [`Joined`](PresenceChange::Joined), in their order. It does not keep the hub alive, and ends with it.
    pub fn changes(&self) -> PresenceChanges {
        let watching = self.shared.upgrade().map(|shared| {
            let joined = |member: Arc<Member>| PresenceChange::Joined(Subscriber::new(member, &shared));
            let begin = |members: Vec<_>| {
                let changes = members.into_iter().map(joined).collect();
                Arc::new(Watching { queue: Mutex::new(Queue { changes, missed: 0, waker: None, over: false }) })
            };
            shared.registry.watch(&shared.window, &self.topic, begin)
        });
        PresenceChanges { watching, shared: Weak::clone(&self.shared), topic: self.topic.clone() }
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").field("topic", &self.topic).field("count", &self.count()).finish_non_exhaustive()
    }
}

/// What is kept for one who watches.
pub(crate) struct Watching {
    queue: Mutex<Queue>,
}

struct Queue {
    changes: VecDeque<PresenceChange>,
    missed: u64,
    waker: Option<Waker>,
    over: bool,
}

impl Watching {
    /// Adds a change, and gives whom to wake.
    pub(crate) fn push(&self, change: PresenceChange) -> Option<Waker> {
        let mut queue = self.queue.lock();
        if queue.missed > 0 || queue.changes.len() >= MOST_WAITING {
            queue.missed += 1;
        } else {
            queue.changes.push_back(change);
        }
        queue.waker.take()
    }

    /// Nothing comes any more.
    pub(crate) fn end(&self) -> Option<Waker> {
        let mut queue = self.queue.lock();
        queue.over = true;
        queue.waker.take()
    }
}

/// Who comes and who goes, as a stream: from [`Presence::changes`].
///
/// # Cancel safety
///
/// Nothing is lost when a pending `next()` is dropped.
#[must_use = "a stream does nothing unless it is polled"]
pub struct PresenceChanges {
    /// Until it is dropped; none if the hub was gone.
    watching: Option<Arc<Watching>>,
    shared: Weak<Shared>,
    topic: Topic,
}

impl Stream for PresenceChanges {
    type Item = PresenceChange;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PresenceChange>> {
        let Some(watching) = &self.watching else { return Poll::Ready(None) };
        let waker = cx.waker().clone();
        let mut queue = watching.queue.lock();
        if let Some(change) = queue.changes.pop_front() {
            drop(queue);
            return Poll::Ready(Some(change));
        }
        match std::mem::take(&mut queue.missed) {
            0 if queue.over => Poll::Ready(None),
            0 => {
                let old = queue.waker.replace(waker);
                drop(queue);
                // Not under the lock: what a waker drops may be the application's.
                drop(old);
                Poll::Pending
            }
            missed => Poll::Ready(Some(PresenceChange::Missed(missed))),
        }
    }
}

impl Drop for PresenceChanges {
    fn drop(&mut self) {
        // Not seen any more by whoever looks next.
        drop(self.watching.take());
        if let Some(shared) = self.shared.upgrade() {
            shared.registry.unwatch(&self.topic);
        }
    }
}

impl fmt::Debug for PresenceChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceChanges").field("topic", &self.topic).finish_non_exhaustive()
    }
}
