//! [`EndReason`]: why a stream ended.

use std::fmt;

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
}

impl EndReason {
    /// The word that goes over the wire: `finished`, `lagged`, `gap` or `closed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Lagged => "lagged",
            Self::Gap => "gap",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
