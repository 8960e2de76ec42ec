//! [`EndReason`]: why the server ended a stream; and how it ends those that it picks.

use super::{
    Hub, Shared,
    control::Control,
    member::{Member, Subscriber},
    window::Goes,
};
use crate::Topic;
use std::{fmt, sync::Arc};

/// Why the server ended a stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum EndReason {
    /// All its topics are finished.
    Finished,
    /// It fell further behind than its [`LagBudget`](crate::LagBudget). It can come back and go on.
    Lagged,
    /// It was told of a gap, and its [`GapPolicy`](crate::GapPolicy) is to end then.
    Gap,
    /// The hub was closed, or is gone.
    Closed,
    /// The hub was [drained](crate::Hub::drain). It can come back to another server, or to this one after a restart.
    Drained,
    /// It lived as long as [it may](crate::Subscription::max_lifetime), or its permission
    /// [expired](crate::Subscription::expires_in). It can come back, and is authorised anew.
    Expired,
    /// A newer subscription took its place under a [`Limit`](crate::Limit).
    Replaced,
    /// Its client did not send a heartbeat (`HubBuilder::client_heartbeats`) for as long as it may be silent.
    Silent,
    /// The application ended it, and says why.
    Application(EndWord),
}

/// A word of the application's own for why it ends a stream: made by [`EndReason::application`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndWord(&'static str);

/// How long a word of the application's may be, and of what it is made.
const MOST_LETTERS: usize = 32;

const fn is_letter(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

/// What other nodes gave as words of their own, kept for good: an application has a few.
static HEARD: std::sync::Mutex<Vec<&'static str>> = std::sync::Mutex::new(Vec::new());

/// More than that are not an application's words.
const MOST_HEARD: usize = 256;

impl EndReason {
    /// The reason of a word that another node gave. One that is no application's word, or one too many, is `ended`.
    pub(crate) fn from_word(word: &str) -> Self {
        let own = [
            Self::Finished,
            Self::Lagged,
            Self::Gap,
            Self::Closed,
            Self::Drained,
            Self::Expired,
            Self::Replaced,
            Self::Silent,
        ];
        if let Some(own) = own.into_iter().find(|reason| reason.as_str() == word) {
            return own;
        }
        let other = Self::Application(EndWord("ended"));
        if word.is_empty() || word.len() > MOST_LETTERS || !word.bytes().all(is_letter) {
            return other;
        }
        let mut heard = HEARD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = heard.iter().find(|known| **known == word) {
            return Self::Application(EndWord(known));
        }
        if heard.len() == MOST_HEARD {
            return other;
        }
        let kept: &'static str = String::from(word).leak();
        heard.push(kept);
        Self::Application(EndWord(kept))
    }

    /// A reason of the application's own, such as `logged-out`: a word of up to 32 lower-case letters, digits and hyphens.
    ///
    /// # Panics
    ///
    /// When the literal is no such word; in a `const` that is an error of the compiler.
    ///
    /// ```
    /// use tidings::EndReason;
    ///
    /// const LOGGED_OUT: EndReason = EndReason::application("logged-out");
    /// assert_eq!(LOGGED_OUT.as_str(), "logged-out");
    /// ```
    #[must_use]
    pub const fn application(word: &'static str) -> Self {
        let bytes = word.as_bytes();
        assert!(!bytes.is_empty() && bytes.len() <= MOST_LETTERS, "this literal is no reason: it is empty or too long");
        let mut at = 0;
        while at < bytes.len() {
            assert!(
                is_letter(bytes[at]),
                "this literal is no reason: it has other characters than a to z, 0 to 9 and hyphens"
            );
            at += 1;
        }
        Self::Application(EndWord(word))
    }

    /// The word that goes over the wire: the name in lower case, or the application's own.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Lagged => "lagged",
            Self::Gap => "gap",
            Self::Closed => "closed",
            Self::Drained => "drained",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Silent => "silent",
            Self::Application(EndWord(word)) => word,
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for EndWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

/// What a subscription is told that is to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) reason: EndReason,
    /// Or else once it has what was published until then.
    pub(crate) at_once: bool,
}

impl Hub {
    /// Ends, at once, every subscription that the application picks, by its labels or otherwise: those of a user who
    /// logged out. Returns how many were told.
    ///
    /// Nothing more is handed to their connections but the end, as with [`Subscriber::end`](crate::Subscriber::end). The
    /// function is called for each subscription, outside of any lock.
    ///
    /// It sees those who are served. Revoke what lets the user in first; and where authorising takes time, look again
    /// whether it is still so as the last thing, because a request that is on its way is not seen.
    ///
    /// It picks among those of this hub. Where several nodes share a log, [`end_labelled`](Self::end_labelled) reaches all.
    ///
    /// ```
    /// use tidings::{EndReason, Hub};
    ///
    /// const MOVED: EndReason = EndReason::application("moved");
    ///
    /// fn close_rooms(hub: &Hub, closed: &[&str]) -> usize {
    ///     hub.end_where(|subscriber| subscriber.label("room").is_some_and(|room| closed.contains(&room)), MOVED)
    /// }
    /// ```
    pub fn end_where(&self, picks: impl FnMut(&Subscriber) -> bool, reason: EndReason) -> usize {
        self.handle.shared.end_where(picks, reason)
    }

    /// Ends, at once, every subscription that has a [label](crate::Subscription::label): those of a user who logged out.
    /// Returns how many were told in this hub.
    ///
    /// As [`end_where`](Self::end_where), and over a [log that nodes share](crate::replay::ReplayStore::feed) on all of them. If
    /// a node cannot be reached, nothing says so, but that the message could not be sent is among the
    /// [`StoreErrors`](crate::StoreErrors): where it has to be certain, let permissions
    /// [expire](crate::Subscription::expires_in) too.
    ///
    /// ```
    /// use tidings::{EndReason, Hub};
    ///
    /// const LOGGED_OUT: EndReason = EndReason::application("logged-out");
    ///
    /// fn log_out(hub: &Hub, user: &str) -> usize {
    ///     hub.end_labelled("user", user, LOGGED_OUT)
    /// }
    /// ```
    pub fn end_labelled(&self, name: impl AsRef<str>, value: impl AsRef<str>, reason: EndReason) -> usize {
        let (shared, name, value) = (&self.handle.shared, name.as_ref(), value.as_ref());
        let here = shared.end_where(|subscriber| subscriber.label(name) == Some(value), reason);
        shared.tell_others(&Control::EndLabelled { name: name.into(), value: value.into(), reason });
        here
    }

    /// Ends, at once, every subscription that follows a topic, also if it follows others. Returns how many were told in this
    /// hub.
    ///
    /// As [`end_labelled`](Self::end_labelled), on all nodes. To end a topic for good, [`finish`](Self::finish) it.
    pub fn end_topic(&self, topic: impl Into<Topic>, reason: EndReason) -> usize {
        let (shared, topic) = (&self.handle.shared, topic.into());
        let here = shared.end_topic(&topic, reason);
        shared.tell_others(&Control::EndTopic { topic, reason });
        here
    }
}

impl Shared {
    /// Tells subscriptions to go. Says to how many that is news.
    pub(super) fn tell<'a>(&self, members: impl IntoIterator<Item = &'a Arc<Member>>, end: End) -> usize {
        let told: Vec<_> = members.into_iter().filter(|member| member.tell(end)).collect();
        if !told.is_empty() {
            let goes = if end.at_once { Goes::AtOnce } else { Goes::WithAll };
            if end.at_once {
                self.registry.forget(told.iter().copied());
            }
            self.window.tell(told.iter().map(|member| &***member), goes);
        }
        told.len()
    }
}
