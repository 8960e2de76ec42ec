//! [`Rule`]: what the suite checks. [`Violation`]: what it found.

use std::{
    error::Error,
    fmt::{self, Display},
};

macro_rules! rules {
    ($($name:ident: $text:literal,)*) => {
        /// One rule of the contract of [`ReplayStore`](crate::replay::ReplayStore).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        pub enum Rule {
            $(#[doc = $text] $name,)*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name, as the variant is written.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The rule in one sentence.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

rules! {
    Answers: "A call that can be answered is answered: without an error, and without a refusal that has no reason.",
    InTime: "Every call is answered within ten seconds.",
    NewLog: "A new log is empty, and its newest position is 0.",
    NewEpoch: "Every new log draws an epoch of its own.",

    Outcomes: "An append has one outcome for each record of its batch, in order; an empty batch has none.",
    PresentRun: "Every cursor that the store gives is of its present run.",
    PositionsRise: "Every position is higher than all that were given before, over all topics, in the order of the batch.",
    BatchTogether: "No record of another batch comes between the records of a batch.",
    Head: "The head is the newest position: no lower than any that was given, and lower than all that will be.",
    RefusedAlone: "A refused record does not fail the others of its batch.",
    NoTrace: "What was refused leaves no trace.",
    Acknowledged: "A record is read under the cursor that its append returned, and nothing else is.",
    Record: "Topic, kind, body, time, key and labels are read as they were given.",
    TryAppend: "What `try_append` answers holds as if `append` had; if it has no answer, nothing was stored.",

    OnlyAsked: "A page has records of the asked topics only, whatever the cursor.",
    Ordered: "The records of a page are in the order of their positions, and none is there twice.",
    After: "A read after a cursor begins with the first record behind it.",
    Earliest: "A read of the earliest begins with the oldest record that is held.",
    Last: "A read of the last n begins with the n-th record from the end, over all asked topics together.",
    Complete: "A page leaves out nothing that is held between where it began and `through`.",
    MaxEvents: "A page has no more than `max_events` records.",
    MaxBytes: "A page ends with the record whose body reaches `max_bytes`.",
    NotCutShort: "A page ends before the last record only where `max_events` or `max_bytes` ends it.",
    ThroughForward: "`through` is neither behind the cursor nor behind the last record of the page.",
    ThroughCut: "`through` of a page that was cut is before the first record that did not fit.",
    ThroughNewest: "`through` of a page that has everything is the newest position, and never past it.",
    Foreign: "A cursor of another epoch, of a run that never began, or ahead of the log, is foreign.",
    NotForeign: "A cursor that the log gave is not foreign, and neither is position 0 of its run.",
    ForeignPage: "The page for a foreign cursor is empty, and its `through` is the newest position.",
    DroppedRead: "A read whose future is dropped leaves the store as it was.",

    FinishRefuses: "A record for a finished topic is refused with `Refused::Finished`, and a topic has one end.",
    FinishListed: "An asked topic is listed as finished if and only if it ended at or before `through`, and once.",
    FinishKept: "That a topic is finished is kept as long as the topic, even if its records are gone.",

    FloorZero: "The floor is 0 while nothing was removed.",
    FloorCovers: "The floor is no lower than the highest position of an asked topic that was removed.",
    FloorInside: "The floor is not past the newest position.",
    Evicts: "A store that was configured to keep little evicts.",
    EvictsOldest: "What is held of a topic is its newest records, and what was removed does not come back.",
    ForgetRemoves: "A forgotten topic has no records and is not finished, and can be appended to again.",
    ForgetOnly: "Forgetting a topic touches no other, and forgetting an unknown one does nothing.",

    Replaces: "A `Latest` or `Removal` takes the place of what its topic has under its key, however old, which is then gone.",
    ReplacesOnly: "Nothing else goes with what is replaced: no other key, topic or kind, nor the newer record.",
    ReplacingRaisesNoFloor: "What a newer record of its key took the place of raises no floor.",

    RepeatIsKnown: "A record whose idempotency key its topic has had is refused with `Refused::Duplicate` and the place of the first.",
    RepeatOnly: "Nothing else is a repeat: no other key, or topic's, or that of a refused record, nor a record without a key.",
    RepeatOutlives: "A key is remembered when its record is evicted or replaced, and when its topic is finished.",
    RepeatAtOnce: "Of records with the same key that come at the same time, one is stored.",

    NothingLower: "Once a position has been readable, nothing lower becomes readable.",
    OneView: "Records, floor, `through` and finished topics of a page are of one moment.",
    ReplacesAtOnce: "A page has the older or the newer record of a key, never both and never neither.",

    SameEpoch: "A log that is opened again has the epoch that it was created with.",
    NewRun: "Every opening of a log begins a run that has a number of its own.",
    ReopenKeeps: "A log that is opened again has its records, under the positions they had, and goes on behind them.",
    ReopenFinished: "A topic that was finished is finished after the log was opened again.",
    ReopenFloors: "What was removed is below the floor after the log was opened again.",
    ReopenReplaces: "A log that is opened again has the newest of each key only, and the next takes its place.",
    ReopenRepeats: "The idempotency keys of a log that is opened again are remembered.",
    OlderRun: "A cursor of an older run is good up to the lowest position at which a later run began.",
    OneRun: "Nodes of one log have the same epoch and run: opening it by one more begins none.",
    SharedView: "What one node has acknowledged, every other reads, and knows of when it appends.",
    Feed: "A store that nodes share has a feed, which does not end.",
    FeedOrder: "A feed gives records in the order of their positions, and each once.",
    FeedComplete: "A feed gives what any node appended after the place that it was asked for, and leaves nothing out.",
    FeedRecords: "A feed gives records as they were appended, and under the cursors that their appends returned.",
    FeedForgets: "A feed says that a topic was forgotten where that was: between what came before and what comes after.",
    FeedNotices: "A notice reaches the feeds of all nodes, that of its sender included, in order and as it was given, once.",

    OlderRunPast: "A cursor of an older run is foreign past the lowest position at which a later run began.",
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The rule that a store broke, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation {
    rule: Rule,
    when: String,
    expected: String,
    found: String,
}

/// What a check comes to.
pub(super) type Verdict<T = ()> = Result<T, Violation>;

/// A violation unless the condition holds.
pub(super) fn ensure(holds: bool, rule: Rule, expected: impl Display, found: impl Display) -> Verdict {
    if holds { Ok(()) } else { Err(Violation::new(rule, expected, found)) }
}

impl Violation {
    pub(super) fn new(rule: Rule, expected: impl Display, found: impl Display) -> Self {
        Self { rule, when: String::new(), expected: expected.to_string(), found: found.to_string() }
    }

    /// Says what was being done, around what was said before.
    pub(super) fn when(mut self, when: impl Display) -> Self {
        let inner = std::mem::take(&mut self.when);
        self.when = if inner.is_empty() { when.to_string() } else { format!("{when}: {inner}") };
        self
    }

    /// The same under another rule: what a broken record means depends on what was being tried.
    pub(super) fn under(mut self, rule: impl FnOnce(Rule) -> Rule) -> Self {
        self.rule = rule(self.rule);
        self
    }

    /// The rule that was broken.
    #[must_use]
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// What the suite was doing.
    #[must_use]
    pub fn doing(&self) -> &str {
        &self.when
    }

    /// What the rule asks for here.
    #[must_use]
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// What the store did.
    #[must_use]
    pub fn found(&self) -> &str {
        &self.found
    }
}

impl Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, when, expected, found } = self;
        write!(f, "the store breaks the rule {rule}: {}", rule.text())?;
        write!(f, "\n    doing: {when}\n expected: {expected}\n    found: {found}")
    }
}

// A test that returns the violation prints this form.
impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Error for Violation {}

/// Some positions, for a message.
pub(super) struct Positions<'a>(pub(super) &'a [u64]);

impl Display for Positions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 20;
        match self.0 {
            [] => f.write_str("none"),
            few if few.len() <= MOST => write!(f, "{few:?}"),
            many => write!(f, "{:?} and {} more", &many[..MOST], many.len() - MOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_positions_the_first_are_told_and_how_many_more_there_are() {
        let all: Vec<u64> = (1..=21).collect();
        assert_eq!(Positions(&[]).to_string(), "none");
        assert_eq!(Positions(&all[..3]).to_string(), "[1, 2, 3]");
        assert!(Positions(&all[..20]).to_string().ends_with(" 19, 20]"));
        assert!(Positions(&all).to_string().ends_with(" 19, 20] and 1 more"));
    }
}
