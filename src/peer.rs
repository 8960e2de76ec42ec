//! [`Peer`]: what is known about the far end of a connection, beyond what HTTP shows.
//!
//! A body is dropped in the same way whatever became of its connection. Whoever serves the connection knows better, and
//! says so here, before that happens.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

/// How a connection was lost, other than that the client closed it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Lost {
    /// The client took nothing for longer than the write deadline.
    Stalled,
    /// The client no longer acknowledged anything: its machine or its network is gone.
    Vanished,
    /// The server cut the connection.
    Cut,
}

/// The far end of a connection, shared by whoever serves the connection and the responses on it.
///
/// A request carries it among its extensions, so that a subscription can tell why it was dropped. The adapter of feature
/// `net` puts it there; who serves connections in another way can do the same.
#[derive(Clone, Default)]
pub struct Peer(Arc<AtomicU8>);

impl Peer {
    /// A peer of which nothing bad is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how the connection was lost, before it is dropped. What was said first holds.
    pub fn set_lost(&self, lost: Lost) {
        let word = match lost {
            Lost::Stalled => 1,
            Lost::Vanished => 2,
            Lost::Cut => 3,
        };
        // Only the first counts, and nothing else depends on it.
        let _ = self.0.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire);
    }

    /// How the connection was lost, if that was said.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        match self.0.load(Ordering::Acquire) {
            1 => Some(Lost::Stalled),
            2 => Some(Lost::Vanished),
            3 => Some(Lost::Cut),
            _ => None,
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("lost", &self.lost()).finish()
    }
}
