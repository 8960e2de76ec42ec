//! What a store answers when it could not do what it was asked.

use super::Cursor;
use std::{error::Error, fmt};

type Source = Box<dyn Error + Send + Sync>;

/// Why one record was not stored, while others of its batch may have been.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// Its topic is finished.
    Finished,
    /// It is larger than the store keeps.
    TooLarge,
    /// The log has it already: this is the place of the record of its topic that had the same
    /// [idempotency key](super::Record::with_idempotency_key). Its publisher is told that it was published there.
    Duplicate(Cursor),
    /// Another reason of the store's own, in words for the publisher.
    Other(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("the topic is finished"),
            Self::TooLarge => f.write_str("the event is larger than the store keeps"),
            Self::Duplicate(cursor) => write!(f, "the event was stored before, as {cursor}"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

impl Error for Refused {}

/// Why a store did not append a batch.
///
/// The difference between the two kinds is the whole point: after [`refused`](Self::refused) a publisher may try again,
/// after [`unknown`](Self::unknown) that could store the events twice.
#[derive(Debug)]
pub struct AppendError {
    unknown: bool,
    source: Source,
}

impl AppendError {
    /// Nothing of the batch was stored, and nothing of it ever will be.
    pub fn refused(source: impl Into<Source>) -> Self {
        Self { unknown: false, source: source.into() }
    }

    /// Some or all of the batch may have been stored: a connection broke while the answer was awaited.
    ///
    /// What a read that begins after this answer does not find *must not* be stored later: a store whose server may still
    /// be at work has to see to that before it reads, by its transaction or by a fence. It is about
    /// reads of this store: those of another node's do not know of the append. So over a [feed](super::ReplayStore::feed) a
    /// publisher that goes on at another node has only its [idempotency key](super::Record::with_idempotency_key) to be sure.
    pub fn unknown(source: impl Into<Source>) -> Self {
        Self { unknown: true, source: source.into() }
    }

    /// Whether the outcome is unknown.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.unknown
    }
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.unknown {
            "the store did not say whether it has the events"
        } else {
            "the store did not take the events"
        })
    }
}

impl Error for AppendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Why a store could not be read.
#[derive(Debug)]
pub struct ReadError(Source);

impl ReadError {
    /// A read that failed because of `source`.
    pub fn new(source: impl Into<Source>) -> Self {
        Self(source.into())
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store could not be read")
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
