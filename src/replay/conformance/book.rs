//! [`Book`]: what a store has acknowledged, and so what it must have.

use super::rule::{Rule, Verdict, Violation, ensure};
use crate::{
    Topic, Topics,
    replay::{Cursor, Kind, Record, Refused, Run},
};
use std::collections::{BTreeMap, BTreeSet};

/// Kept while one task talks to the store, so that it is known at every moment what a page must be.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) run: Run,
    /// The runs before, and how far their cursors are good.
    pub(super) older: Vec<(Run, u64)>,
    /// Whether nothing is evicted.
    pub(super) keeps_all: bool,
    /// What was acknowledged and, as far as is known, is held.
    pub(super) held: BTreeMap<u64, Record>,
    pub(super) gone: BTreeMap<u64, (Topic, Gone)>,
    /// What a newer record of its key took the place of. That is no loss, so none of it is among what is gone.
    pub(super) replaced: BTreeSet<u64>,
    pub(super) finished: BTreeMap<Topic, u64>,
    /// Topics that were finished and then forgotten.
    pub(super) reopened: BTreeSet<Topic>,
    pub(super) refused: Vec<Record>,
    /// The idempotency keys of what was stored.
    pub(super) keys: BTreeMap<(Topic, String), u64>,
    /// The highest position that an append returned, and the highest head. Numbers may be skipped, so the second can be
    /// higher.
    pub(super) acknowledged: u64,
    pub(super) head: u64,
}

/// Why something is no longer held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gone {
    Evicted,
    Forgotten,
}

impl Book {
    pub(super) fn new(run: Run, keeps_all: bool) -> Self {
        Self {
            run,
            older: Vec::new(),
            keeps_all,
            held: BTreeMap::new(),
            gone: BTreeMap::new(),
            replaced: BTreeSet::new(),
            finished: BTreeMap::new(),
            reopened: BTreeSet::new(),
            refused: Vec::new(),
            keys: BTreeMap::new(),
            acknowledged: 0,
            head: 0,
        }
    }

    pub(super) fn newest(&self) -> u64 {
        self.acknowledged.max(self.head)
    }

    /// The positions that must be held of some topics.
    pub(super) fn positions(&self, topics: &Topics) -> Vec<u64> {
        self.held.iter().filter(|(_, record)| topics.contains(record.topic())).map(|(position, _)| *position).collect()
    }

    /// The highest position of some topics that is gone.
    pub(super) fn lost(&self, topics: &Topics) -> u64 {
        self.gone.iter().rev().find(|(_, (topic, _))| topics.contains(topic)).map_or(0, |(position, _)| *position)
    }

    pub(super) fn is_foreign(&self, cursor: Cursor) -> bool {
        let good = if cursor.run() == self.run {
            Some(self.newest())
        } else {
            self.older.iter().find(|(run, _)| *run == cursor.run()).map(|(_, good)| *good)
        };
        good.is_none_or(|good| cursor.position() > good)
    }

    /// Whether a batch has a record that must be refused: one behind the end of its topic, which can be in the batch too.
    pub(super) fn has_refusal(&self, batch: &[Record]) -> bool {
        let mut ended: BTreeSet<&Topic> = self.finished.keys().collect();
        batch.iter().any(|record| {
            let behind = ended.contains(record.topic());
            if record.kind() == Kind::Finish {
                ended.insert(record.topic());
            }
            behind
        })
    }

    pub(super) fn enter_head(&mut self, head: Cursor) -> Verdict {
        self.check_run(head)?;
        let least = self.acknowledged;
        ensure(head.position() >= least, Rule::Head, format_args!("a head of {least}"), head.position())?;
        self.head = self.head.max(head.position());
        Ok(())
    }

    pub(super) fn check_run(&self, cursor: Cursor) -> Verdict {
        ensure(cursor.run() == self.run, Rule::PresentRun, format_args!("a cursor of {:?}", self.run), cursor)
    }

    /// Takes in what an append answered.
    pub(super) fn enter(&mut self, batch: &[Record], outcomes: &[Result<Cursor, Refused>]) -> Verdict {
        let (asked, answered) = (batch.len(), outcomes.len());
        ensure(asked == answered, Rule::Outcomes, format_args!("{asked} outcomes"), answered)?;
        let has_refusal = self.has_refusal(batch);
        for (record, outcome) in batch.iter().zip(outcomes) {
            if self.enter_repeat(record, outcome)? {
                continue;
            }
            match (outcome, self.finished.get(record.topic())) {
                (Ok(cursor), None) => self.enter_record(record, *cursor)?,
                (Err(Refused::Finished), Some(_)) => self.refused.push(record.clone()),
                (outcome, Some(end)) => {
                    let rule = if self.held.contains_key(end) { Rule::FinishRefuses } else { Rule::FinishKept };
                    let expected = format_args!("Err(Finished) for a record of {:?}", record.topic()).to_string();
                    return Err(Violation::new(rule, expected, format_args!("{outcome:?}")));
                }
                (Err(refused), None) => {
                    let rule = match () {
                        () if self.reopened.contains(record.topic()) => Rule::ForgetRemoves,
                        () if has_refusal => Rule::RefusedAlone,
                        () => Rule::Answers,
                    };
                    let expected = format_args!("a cursor for a record of {:?}", record.topic()).to_string();
                    return Err(Violation::new(rule, expected, format_args!("Err({refused:?})")));
                }
            }
        }
        Ok(())
    }

    /// Takes in the answer to a record by its idempotency key; says whether that is all there is to say.
    fn enter_repeat(&mut self, record: &Record, outcome: &Result<Cursor, Refused>) -> Verdict<bool> {
        let key = record.idempotency_key().map(|key| (record.topic().clone(), key.to_owned()));
        let first = key.as_ref().and_then(|key| self.keys.get(key)).copied();
        let violation = |rule, expected: String| {
            let found = format_args!("{outcome:?} for the key {:?} of {:?}", record.idempotency_key(), record.topic());
            Err(Violation::new(rule, expected, found))
        };
        match (first, outcome) {
            (Some(first), Err(Refused::Duplicate(cursor))) if *cursor == self.run.at(first) => {}
            (Some(first), _) => {
                let is_there = self.held.contains_key(&first) && !self.finished.contains_key(record.topic());
                let rule = if is_there { Rule::RepeatIsKnown } else { Rule::RepeatOutlives };
                return violation(rule, format!("Err(Duplicate({}))", self.run.at(first)));
            }
            (None, Err(Refused::Duplicate(_))) => return violation(Rule::RepeatOnly, "no repeat".into()),
            // The store remembers none.
            (None, Err(Refused::Other(_))) if key.is_some() && self.keys.is_empty() => {}
            (None, Ok(cursor)) => {
                self.keys.extend(key.map(|key| (key, cursor.position())));
                return Ok(false);
            }
            (None, Err(_)) => return Ok(false),
        }
        self.refused.push(record.clone());
        Ok(true)
    }

    fn enter_record(&mut self, record: &Record, cursor: Cursor) -> Verdict {
        self.check_run(cursor)?;
        let position = cursor.position();
        let (acknowledged, head) = (self.acknowledged, self.head);
        ensure(
            position > acknowledged,
            Rule::PositionsRise,
            format_args!("a position above {acknowledged}"),
            position,
        )?;
        ensure(position > head, Rule::Head, format_args!("a position above the head, which was {head}"), position)?;
        self.acknowledged = position;
        self.replace(record);
        self.held.insert(position, record.clone());
        if record.kind() == Kind::Finish {
            self.finished.insert(record.topic().clone(), position);
        }
        Ok(())
    }

    /// Takes out what a record takes the place of.
    fn replace(&mut self, newer: &Record) {
        let same = |older: &Record| older.topic() == newer.topic() && older.replaces() == newer.replaces();
        let older = self.held.iter().find(|(_, older)| newer.replaces().is_some() && same(older));
        if let Some(older) = older.map(|(position, _)| *position) {
            self.held.remove(&older);
            self.replaced.insert(older);
        }
    }

    /// Where the present run began.
    pub(super) fn begun(&self) -> u64 {
        self.older.last().map_or(0, |(_, good)| *good)
    }

    /// Takes in that the log was opened anew.
    pub(super) fn begin_run(&mut self, head: Cursor) {
        self.older.push((self.run, head.position()));
        self.run = head.run();
        self.head = head.position();
    }

    /// Takes in that a topic was forgotten.
    pub(super) fn forget(&mut self, topic: &Topic) {
        for position in self.positions(&topic.into()) {
            self.held.remove(&position);
            self.gone.insert(position, (topic.clone(), Gone::Forgotten));
        }
        for (_, why) in self.gone.values_mut().filter(|(gone, _)| gone == topic) {
            *why = Gone::Forgotten;
        }
        if self.finished.remove(topic).is_some() {
            self.reopened.insert(topic.clone());
        }
    }

    /// Takes in that a record was evicted.
    pub(super) fn evict(&mut self, position: u64) {
        if let Some(record) = self.held.remove(&position) {
            self.gone.insert(position, (record.topic().clone(), Gone::Evicted));
        }
    }
}
