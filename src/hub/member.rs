//! [`Member`]: one subscription as others see it, and [`Subscriber`], which is that for the application.
//!
//! It knows who it is, whether it was told to go, and how it left. Its place in the log is the follower's alone.

use super::{
    Shared,
    end::{End, EndReason},
};
use crate::{Lost, Peer, Topic, Topics, replay::Cursor, sync::Mutex};
use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;

/// Shared by the subscription, the window, and whoever has a [`Subscriber`] of it.
pub(crate) struct Member {
    /// Its place among those who wait, and its number among all that ever did.
    pub(crate) waiter: usize,
    pub(crate) number: u64,
    pub(crate) topics: Topics,
    /// Most have none.
    details: OnceLock<Box<Details>>,
    /// Since when others see it, in milliseconds since 1970; 0 before that.
    since: AtomicU64,
    state: Mutex<State>,
    /// Whether it is to go without handing over anything more: looked at between two entries.
    at_once: AtomicBool,
}

/// What the application, and the server's connection, say about it.
#[derive(Debug)]
pub(crate) struct Details {
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
    pub(crate) keys: Vec<Box<str>>,
    pub(crate) peer: Option<Peer>,
}

impl Details {
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.keys.is_empty() && self.peer.is_none()
    }
}

#[derive(Default)]
struct State {
    end: Option<End>,
    /// Once it has left, or somebody waits for that.
    leaving: Option<Box<Leaving>>,
}

#[derive(Default)]
struct Leaving {
    left: Option<(LeaveReason, Option<Cursor>)>,
    waiting: Arc<Notify>,
}

impl State {
    fn left(&self) -> Option<(LeaveReason, Option<Cursor>)> {
        self.leaving.as_ref()?.left
    }
}

impl Member {
    pub(crate) fn new(waiter: usize, number: u64, topics: Topics) -> Self {
        let (details, since) = (OnceLock::new(), AtomicU64::new(0));
        Self { waiter, number, topics, details, since, state: Mutex::default(), at_once: AtomicBool::new(false) }
    }

    /// Others see it from now on. Only once.
    pub(crate) fn introduce(&self, details: Details) {
        if !details.is_empty() {
            let _ = self.details.set(Box::new(details));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Release);
    }

    pub(crate) fn details(&self) -> Option<&Details> {
        self.details.get().map(|details| &**details)
    }

    /// Takes in that it is to go. What was said first holds, unless this is more urgent. Says whether it is news.
    pub(crate) fn tell(&self, end: End) -> bool {
        let mut state = self.state.lock();
        let news = state.left().is_none() && state.end.is_none_or(|earlier| end.at_once && !earlier.at_once);
        if news {
            state.end = Some(end);
            self.at_once.store(end.at_once, Ordering::Release);
        }
        news
    }

    /// Why it is to go, if it was told.
    pub(crate) fn told(&self) -> Option<End> {
        self.state.lock().end
    }

    /// Whether it is to go at once.
    pub(crate) fn is_to_go_at_once(&self) -> bool {
        self.at_once.load(Ordering::Acquire)
    }

    /// Takes in how it left.
    pub(crate) fn leave(&self, reason: LeaveReason, last: Option<Cursor>) {
        let mut state = self.state.lock();
        let leaving = state.leaving.get_or_insert_default();
        leaving.left.get_or_insert((reason, last));
        let waiting = Arc::clone(&leaving.waiting);
        drop(state);
        waiting.notify_waiters();
    }

    async fn left(&self) -> (LeaveReason, Option<Cursor>) {
        loop {
            let waiting = Arc::clone(&self.state.lock().leaving.get_or_insert_default().waiting);
            // It hears what happens from here on, also before it is first polled.
            let waiting = waiting.notified();
            if let Some(left) = self.state.lock().left() {
                return left;
            }
            waiting.await;
        }
    }
}

/// How a subscription left.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum LeaveReason {
    /// Its client closed the connection or lost it, or the application dropped the subscription.
    Disconnected,
    /// Its connection was lost in a way that the server knows more of. Known only if the request carried a [`Peer`].
    Lost(Lost),
    /// The server ended it.
    Ended(EndReason),
    /// It failed: the store could not be read, there was no snapshot, or it was turned away and never there.
    Failed,
}

impl LeaveReason {
    /// The reason as a word: `disconnected`, `stalled`, `vanished`, `cut`, `failed`, or that of the [`EndReason`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Lost(Lost::Stalled) => "stalled",
            Self::Lost(Lost::Vanished) => "vanished",
            Self::Lost(Lost::Cut) => "cut",
            Self::Ended(reason) => reason.as_str(),
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for LeaveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One subscription, for those who look after it: who it is, how it left, and a way to end it.
///
/// From [`Subscription::subscriber`](crate::Subscription::subscriber), or from [`Presence`](crate::Presence). Holding it
/// keeps nothing open.
#[derive(Clone)]
pub struct Subscriber {
    pub(super) member: Arc<Member>,
    pub(super) shared: Weak<Shared>,
}

impl Subscriber {
    pub(super) fn new(member: Arc<Member>, shared: &Arc<Shared>) -> Self {
        Self { member, shared: Arc::downgrade(shared) }
    }

    /// A number that no other subscription of the hub has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.member.number
    }

    /// The topics that it follows.
    #[must_use]
    pub fn topics(&self) -> &Topics {
        &self.member.topics
    }

    /// Whether it follows a topic.
    #[must_use]
    pub fn follows(&self, topic: &Topic) -> bool {
        self.member.topics.contains(topic)
    }

    /// The value of its first [label](crate::Subscription::label) with this name.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels().find_map(|(label, value)| (label == name).then_some(value))
    }

    /// Its labels, in the order they were given. There are none before it is served, or read for the first time.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let details = self.member.details().into_iter();
        details.flat_map(|details| &details.labels).map(|(name, value)| (&**name, &**value))
    }

    /// Since when it is there; `None` before it is served, or read for the first time.
    #[must_use]
    pub fn since(&self) -> Option<SystemTime> {
        let since = self.member.since.load(Ordering::Acquire);
        (since > 0).then(|| UNIX_EPOCH + Duration::from_millis(since))
    }

    /// Ends it at once: nothing more is handed to its connection but the end, which says the reason where [ends are
    /// announced](crate::HubBuilder::announce_ends). Its client's last id is good, so an `EventSource` comes back and is
    /// authorised anew. Returns whether it was still there, and not yet told to go at once.
    ///
    /// What the HTTP library and the kernel have of it already, some hundred kilobytes for a client that does not read, is
    /// still sent. Such a client hears of its end when it reads on; until then it is there for others to see, unless its
    /// connection is cut by the write deadline of whoever serves it.
    #[expect(clippy::must_use_candidate, reason = "that it is gone already is mostly of no interest")]
    pub fn end(&self, reason: EndReason) -> bool {
        let told = self.shared.upgrade().map(|shared| shared.tell([&self.member], End { reason, at_once: true }));
        told.is_some_and(|told| told > 0)
    }

    /// Waits until it has left, and says how, and the last id that was handed to its connection. At once if it has. Its
    /// client may have received less than that, and then goes on from there: this is no acknowledgement.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn left(&self) -> (LeaveReason, Option<Cursor>) {
        self.member.left().await
    }
}

impl PartialEq for Subscriber {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.member, &other.member)
    }
}

impl Eq for Subscriber {}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values of labels stay out: they tell who somebody is.
        let labels: Vec<_> = self.labels().map(|(name, _)| name).collect();
        f.debug_struct("Subscriber")
            .field("id", &self.id())
            .field("topics", self.topics())
            .field("labels", &labels)
            .finish_non_exhaustive()
    }
}
