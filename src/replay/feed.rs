//! [`Feed`]: what all nodes appended to a log that they share, as it comes. [`Notice`]: what they tell each other beside it.

use super::{Cursor, Record};
use crate::Topic;
use bytes::Bytes;
use futures_core::Stream;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// What any node appended, in order: from [`ReplayStore::feed`](super::ReplayStore::feed).
#[must_use = "a feed does nothing unless it is polled"]
pub struct Feed(Pin<Box<dyn Stream<Item = FeedItem> + Send>>);

impl Feed {
    /// A feed that yields these items.
    pub fn new(items: impl Stream<Item = FeedItem> + Send + 'static) -> Self {
        Self(Box::pin(items))
    }
}

impl Stream for Feed {
    type Item = FeedItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FeedItem>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

/// One thing that a [`Feed`] says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FeedItem {
    /// The next record of the log. What was appended between the one before and this is no longer held, because newer
    /// records of its key took its place.
    Record(Cursor, Record),
    /// A topic was [forgotten](super::ReplayStore::forget) here: after what was appended before, and before what comes after.
    /// The place is its own, or the newest at that time.
    Forgotten(Topic, Cursor),
    /// What lies before this place, the newest, is not told one by one: it is no longer held, or too much, or a new run
    /// began. The feed goes on from here, and whoever is not there yet reads the log.
    Skip(Cursor),
    /// What a node has to say to all of them.
    Notice(Notice),
    /// The feed was cut off. What is appended from now on comes later.
    Lost,
    /// The feed is whole again, or never stopped but has found a hole: so many records were read from the log that it did
    /// not bring by itself. They came before this. Also said at first, once the feed is there.
    Caught {
        /// How many.
        missed: u64,
    },
}

/// What a node has to say to all nodes, and what is not kept.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// An event for those who are there ([`Hub::publish_ephemeral`](crate::Hub::publish_ephemeral)).
    Ephemeral(Record),
    /// What hubs tell each other, such as that a user's streams are to end. A store passes it on as it is.
    Control(Bytes),
}
