//! What a subscription is told when it cannot have everything, [`Gap`]; what becomes of it then, [`GapPolicy`]; and how a
//! resume came out, [`Resume`].

use super::snapshot::Snapshots;
use crate::replay::Cursor;
use std::fmt;

/// Why a subscription may have missed events.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum GapReason {
    /// Some of the events after the client's id are no longer held. What is still held follows.
    Evicted,
    /// The client's id is of another log, or of a part of this log that was lost. What comes from now on follows.
    Foreign,
    /// What the client sent is no id of a hub. What comes from now on follows.
    Malformed,
}

impl GapReason {
    /// The word that goes over the wire: `evicted`, `foreign` or `malformed`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Events that a subscription may have missed: data, not a failure. What is still held follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// Where the subscription was; `None` if what the client sent says nothing.
    pub after: Option<Cursor>,
    /// The newest event that may be missing. An application that brings the client up to date from its own state after
    /// this was reported has made good for the gap.
    pub through: Cursor,
}

impl Gap {
    /// How many positions it spans, where that is known.
    pub(crate) fn positions(&self) -> u64 {
        let after = self.after.filter(|after| after.run() == self.through.run());
        after.map_or(0, |after| self.through.position().saturating_sub(after.position()))
    }

    /// The data of the gap event: `{"reason":"evicted","after":"17.0.z","through":"90.0.z"}`, where `after` may be `null`.
    pub(crate) fn to_json(self) -> String {
        // No reason and no cursor has a character that JSON escapes.
        let after = self.after.map_or("null".to_owned(), |cursor| format!("\"{cursor}\""));
        format!(r#"{{"reason":"{}","after":{after},"through":"{}"}}"#, self.reason, self.through)
    }
}

/// What becomes of a subscription after a gap was reported to it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum GapPolicy {
    /// It goes on with what is still held. The default.
    #[default]
    Report,
    /// It gets a snapshot of the application's state, and goes on with what came after that was taken.
    Snapshot(Snapshots),
    /// It ends, with an id from which the client can come back without being told of the same gap again.
    End,
}

/// How a subscription began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Resume {
    /// The client sent no id.
    Fresh,
    /// The client gets exactly what followed its id.
    Resumed,
    /// The client is told of a gap.
    Gap(GapReason),
}

impl Resume {
    /// The outcome as a word: `fresh`, `resumed`, or that of the [`GapReason`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Resumed => "resumed",
            Self::Gap(reason) => reason.as_str(),
        }
    }
}
