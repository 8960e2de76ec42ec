//! [`PublishError`]: why an event was not published, and whether it may have been. [`SubscriptionError`]: why a
//! subscription failed.

use super::registry::Denied;
use crate::{
    Topic,
    replay::{ReadError, Refused},
};
use std::{error::Error, fmt, sync::Arc};

/// Why an event was not published.
///
/// Unless [`is_unknown`](Self::is_unknown), the event was not stored, nobody received it, and publishing it again cannot
/// repeat it.
#[derive(Debug, Clone)]
pub struct PublishError(PublishErrorKind);

#[derive(Debug, Clone)]
pub(crate) enum PublishErrorKind {
    Refused(Refused),
    TooLarge {
        size: usize,
        limit: usize,
    },
    Store(Arc<dyn Error + Send + Sync>),
    Unknown(Arc<dyn Error + Send + Sync>),
    /// The task that was to append it is gone, with its runtime.
    Lost,
    Busy,
    NoRuntime,
    Closed,
    UnknownTopic(Topic),
    NotEphemeral,
}

impl PublishError {
    /// The topic is finished.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.0, PublishErrorKind::Refused(Refused::Finished))
    }

    /// The event is larger than the hub or its store takes.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self.0, PublishErrorKind::TooLarge { .. } | PublishErrorKind::Refused(Refused::TooLarge))
    }

    /// The store may have taken the event, and if it has, subscribers will receive it: publishing it again may repeat it.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self.0, PublishErrorKind::Unknown(_) | PublishErrorKind::Lost)
    }

    /// The topic was not created, in a hub where [that is needed](crate::HubBuilder::explicit_topics).
    #[must_use]
    pub fn is_unknown_topic(&self) -> bool {
        matches!(self.0, PublishErrorKind::UnknownTopic(_))
    }

    /// The hub was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.0, PublishErrorKind::Closed)
    }

    /// [`publish_now`](crate::Hub::publish_now) would have had to wait: use [`publish`](crate::Hub::publish).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.0, PublishErrorKind::Busy)
    }
}

impl From<PublishErrorKind> for PublishError {
    fn from(kind: PublishErrorKind) -> Self {
        Self(kind)
    }
}

impl From<Refused> for PublishError {
    fn from(refused: Refused) -> Self {
        Self(PublishErrorKind::Refused(refused))
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PublishErrorKind::Refused(refused) => write!(f, "the event was refused: {refused}"),
            PublishErrorKind::TooLarge { size, limit } => {
                write!(f, "the event has {size} bytes, more than the {limit} allowed by max_event_bytes")
            }
            PublishErrorKind::Store(_) => f.write_str("the store did not take the event"),
            PublishErrorKind::Unknown(_) => f.write_str("the store may or may not have taken the event"),
            PublishErrorKind::Lost => f.write_str(
                "the task that appends is gone, with its runtime or by a panic: the store may or may not have taken the event",
            ),
            PublishErrorKind::Busy => {
                f.write_str("the store cannot take the event without waiting: publish it with `publish`")
            }
            PublishErrorKind::Closed => f.write_str("the hub was closed"),
            PublishErrorKind::UnknownTopic(topic) => {
                write!(f, "the topic {topic} does not exist: create it with `Hub::create` or `Hub::producer`")
            }
            PublishErrorKind::NotEphemeral => {
                f.write_str("only a plain event can be ephemeral: publish what has to be kept with `publish_record`")
            }
            PublishErrorKind::NoRuntime => f.write_str("publishing to this store needs a tokio runtime"),
        }
    }
}

impl Error for PublishError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            PublishErrorKind::Store(source) | PublishErrorKind::Unknown(source) => Some(&**source),
            _ => None,
        }
    }
}

/// Why a subscription failed. The last id that was handed over is still good: a client can come back and go on.
#[derive(Debug)]
pub struct SubscriptionError(SubscriptionErrorKind);

#[derive(Debug)]
enum SubscriptionErrorKind {
    Read(ReadError),
    Snapshot(Arc<dyn Error + Send + Sync>),
    UnknownTopic(Topic),
    Denied(Denied),
    #[cfg(feature = "client-heartbeats")]
    Session(std::io::Error),
}

impl SubscriptionError {
    pub(crate) fn unknown_topic(topic: Topic) -> Self {
        Self(SubscriptionErrorKind::UnknownTopic(topic))
    }

    pub(crate) fn snapshot(source: Arc<dyn Error + Send + Sync>) -> Self {
        Self(SubscriptionErrorKind::Snapshot(source))
    }

    /// The store could not be read.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(self.0, SubscriptionErrorKind::Read(_))
    }

    /// One of the topics does not exist, in a hub where [they are created](crate::HubBuilder::explicit_topics).
    #[must_use]
    pub fn is_unknown_topic(&self) -> bool {
        matches!(self.0, SubscriptionErrorKind::UnknownTopic(_))
    }

    /// There are as many subscriptions as there may be, in all or under a [`Limit`](crate::Limit). It had better come back
    /// later.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        matches!(self.0, SubscriptionErrorKind::Denied(Denied::OverLimit))
    }

    /// The hub is being [drained](crate::Hub::drain), and lets nobody in. It had better come back later.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        matches!(self.0, SubscriptionErrorKind::Denied(Denied::Draining))
    }

    /// It is to come back later, and nothing is wrong with it.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self.0, SubscriptionErrorKind::Denied(_))
    }

    /// The application's snapshot failed, or took too long.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        matches!(self.0, SubscriptionErrorKind::Snapshot(_))
    }
}

impl From<Denied> for SubscriptionError {
    fn from(denied: Denied) -> Self {
        Self(SubscriptionErrorKind::Denied(denied))
    }
}

#[cfg(feature = "client-heartbeats")]
impl SubscriptionError {
    pub(crate) fn session(source: std::io::Error) -> Self {
        Self(SubscriptionErrorKind::Session(source))
    }
}

impl From<ReadError> for SubscriptionError {
    fn from(error: ReadError) -> Self {
        Self(SubscriptionErrorKind::Read(error))
    }
}

impl fmt::Display for SubscriptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            SubscriptionErrorKind::Read(_) => f.write_str("the store could not be read"),
            SubscriptionErrorKind::Snapshot(_) => f.write_str("there is no snapshot to go on from"),
            SubscriptionErrorKind::UnknownTopic(topic) => write!(f, "the topic {topic} does not exist"),
            SubscriptionErrorKind::Denied(Denied::OverLimit) => {
                f.write_str("there are as many subscriptions as there may be: come back later")
            }
            #[cfg(feature = "client-heartbeats")]
            SubscriptionErrorKind::Session(_) => f.write_str("there is no randomness for the token of a session"),
            SubscriptionErrorKind::Denied(Denied::Draining) => f.write_str("the hub is being drained: come back later"),
        }
    }
}

impl Error for SubscriptionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            SubscriptionErrorKind::Read(error) => error.source(),
            SubscriptionErrorKind::Snapshot(source) => Some(&**source),
            #[cfg(feature = "client-heartbeats")]
            SubscriptionErrorKind::Session(error) => Some(error),
            SubscriptionErrorKind::UnknownTopic(_) | SubscriptionErrorKind::Denied(_) => None,
        }
    }
}
