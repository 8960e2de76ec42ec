//! Whether a page is what it must be, by the [`Book`].

use super::{
    book::{Book, Gone},
    rule::{Positions, Rule, Verdict, Violation, ensure},
};
use crate::replay::{Cursor, Kind, Page, Read, ReadFrom, Record};
use std::{collections::BTreeSet, time::Duration};

impl Book {
    /// Checks a page, and takes in what it says was evicted.
    pub(super) fn judge(&mut self, read: &Read, page: &Page) -> Verdict {
        self.check_run(page.through)?;
        match read.from {
            ReadFrom::After(cursor) if self.is_foreign(cursor) => return self.judge_foreign(cursor, page),
            ReadFrom::After(cursor) => {
                ensure(!page.foreign, Rule::NotForeign, format_args!("{cursor} is not foreign"), "foreign")?;
            }
            _ => ensure(!page.foreign, Rule::NotForeign, "a page, as there is no cursor to be foreign", "foreign")?,
        }
        self.judge_entries(read, page)?;
        judge_limits(read, page)?;
        self.judge_range(read, page)?;
        self.judge_floor(read, page)?;
        self.judge_finished(read, page)
    }

    fn judge_foreign(&self, cursor: Cursor, page: &Page) -> Verdict {
        let newest = self.newest();
        let expected = format_args!("{cursor} is foreign, the newest being {}", self.run.at(newest)).to_string();
        ensure(page.foreign, Rule::Foreign, expected, "not foreign")?;
        ensure(page.entries.is_empty(), Rule::ForeignPage, "no records", Positions(&positions(page)))?;
        let through = page.through.position();
        ensure(through == newest, Rule::ForeignPage, format_args!("`through` at {newest}"), through)
    }

    fn judge_entries(&self, read: &Read, page: &Page) -> Verdict {
        let mut last = 0;
        for entry in &page.entries {
            self.check_run(entry.cursor())?;
            let (position, record) = (entry.position(), entry.record());
            let topic = record.topic();
            let asked = &read.topics;
            let found = || format!("{topic:?} at {position}");
            ensure(asked.contains(topic), Rule::OnlyAsked, format_args!("only {asked:?}"), found())?;
            ensure(position > last, Rule::Ordered, format_args!("a position above {last}"), found())?;
            last = position;
            let Some(given) = self.held.get(&position) else { return Err(self.unknown(position, record)) };
            if let Some(difference) = difference(given, record) {
                let other = self.held.values().any(|other| other.body() == record.body());
                let rule = if difference == "body" && other && !given.body().is_empty() {
                    Rule::Acknowledged
                } else {
                    Rule::Record
                };
                let expected = format!("the {difference} of what was appended at {position}: {}", show(given));
                return Err(Violation::new(rule, expected, show(record)));
            }
        }
        Ok(())
    }

    fn unknown(&self, position: u64, record: &Record) -> Violation {
        let (rule, expected) = match self.gone.get(&position) {
            Some((_, Gone::Forgotten)) => (Rule::ForgetRemoves, "nothing of a topic that was forgotten"),
            Some((_, Gone::Evicted)) => (Rule::EvictsOldest, "nothing that an earlier page said was gone"),
            None if self.replaced.contains(&position) => {
                (Rule::Replaces, "nothing that a newer record of its key took the place of")
            }
            None if self.refused.iter().any(|refused| refused.body() == record.body()) => {
                (Rule::NoTrace, "nothing of a record that was refused")
            }
            None => (Rule::Acknowledged, "only what was acknowledged, where it was"),
        };
        Violation::new(rule, expected, format_args!("at {position}: {}", show(record)))
    }

    fn judge_range(&mut self, read: &Read, page: &Page) -> Verdict {
        let held = self.positions(&read.topics);
        let (rule, after) = match read.from {
            ReadFrom::After(cursor) => (Rule::After, cursor.position()),
            ReadFrom::Earliest => (Rule::Earliest, 0),
            ReadFrom::Last(n) => (Rule::Last, before_last(&held, n).unwrap_or(self.newest())),
        };
        let through = page.through.position();
        let there = positions(page);
        let first = there.first().copied().unwrap_or(u64::MAX);
        ensure(first > after, rule, format_args!("nothing at or before {after}"), Positions(&there))?;
        let end = there.last().copied().unwrap_or(0).max(after);
        let at_least = |end| format!("`through` at {end} or later");
        if !matches!(read.from, ReadFrom::Last(_)) || !there.is_empty() {
            ensure(through >= end, Rule::ThroughForward, at_least(end), through)?;
        }
        let newest = self.newest();
        ensure(through <= newest, Rule::ThroughNewest, format_args!("`through` at most at {newest}"), through)?;

        let is_there: BTreeSet<u64> = there.iter().copied().collect();
        let expected: Vec<u64> = held.into_iter().filter(|position| *position > after).collect();
        let mut missing: Vec<u64> = expected.iter().copied().filter(|position| !is_there.contains(position)).collect();
        if !self.keeps_all {
            missing = self.judge_evicted(page, missing)?;
        }
        let cut = is_cut(read, page);
        if let Some(left_out) = missing.first().filter(|position| **position <= through) {
            let rule = match () {
                // What was held before the log was opened was not evicted, but lost.
                () if !self.keeps_all && *left_out > page.floor.max(self.begun()) => Rule::FloorCovers,
                () if cut && *left_out > end => Rule::ThroughCut,
                () if *left_out > first || there.is_empty() && rule != Rule::Last => Rule::Complete,
                () => rule,
            };
            let found = format_args!("{}, `through` at {through}, floor {}", Positions(&there), page.floor).to_string();
            let expected = format_args!("{} between {after} and {through}", Positions(&expected)).to_string();
            return Err(Violation::new(rule, expected, found));
        }
        let found = || format!("{}, `through` at {through}", Positions(&there));
        if missing.is_empty() && !cut {
            ensure(through == newest, Rule::ThroughNewest, format_args!("`through` at {newest}"), found())?;
        }
        ensure(missing.is_empty() || cut, Rule::NotCutShort, Positions(&expected), found())
    }

    /// Of what a page lacks, takes out what was evicted.
    fn judge_evicted(&mut self, page: &Page, missing: Vec<u64>) -> Verdict<Vec<u64>> {
        let limit = page.floor.min(page.through.position());
        let (evicted, rest): (Vec<_>, Vec<_>) = missing.into_iter().partition(|position| *position <= limit);
        for position in evicted {
            let Some(evicted) = self.held.get(&position) else { continue };
            let older = page.entries.iter().find(|entry| {
                let older = entry.record();
                // State may outlast events.
                let outlasts = older.kind() == Kind::Latest && evicted.kind() != Kind::Latest;
                entry.position() < position && older.topic() == evicted.topic() && !outlasts
            });
            if let Some(older) = older {
                let expected = format_args!("{position} is held, because an older one of its topic is").to_string();
                return Err(Violation::new(Rule::EvictsOldest, expected, older.position()));
            }
            self.evict(position);
        }
        Ok(rest)
    }

    fn judge_floor(&self, read: &Read, page: &Page) -> Verdict {
        let floor = page.floor;
        // Of a store that evicts it is known only while every record is there.
        let is_whole = self.keeps_all || page.entries.len() == self.held.len();
        if is_whole && self.gone.is_empty() {
            let rule = if self.replaced.is_empty() { Rule::FloorZero } else { Rule::ReplacingRaisesNoFloor };
            ensure(floor == 0, rule, "a floor of 0", floor)?;
        }
        let newest = self.newest();
        ensure(floor <= newest, Rule::FloorInside, format_args!("a floor of at most {newest}"), floor)?;
        let lost = self.lost(&read.topics);
        ensure(floor >= lost, Rule::FloorCovers, format_args!("a floor of at least {lost}"), floor)
    }

    fn judge_finished(&self, read: &Read, page: &Page) -> Verdict {
        let through = page.through.position();
        for topic in &read.topics {
            let listed = page.finished.iter().filter(|finished| *finished == topic).count();
            let end = self.finished.get(topic).copied();
            let due = end.is_some_and(|end| end <= through);
            let rule = match end {
                Some(end) if listed == 0 && !self.held.contains_key(&end) => Rule::FinishKept,
                None if self.reopened.contains(topic) => Rule::ForgetRemoves,
                _ => Rule::FinishListed,
            };
            let ended = end.map_or("did not end".to_owned(), |end| format!("ended at {end}"));
            let expected = format!("{topic:?}, which {ended}, listed {}x by a page through {through}", u8::from(due));
            ensure(listed == usize::from(due), rule, expected, format_args!("listed {listed}x"))?;
        }
        let stranger = page.finished.iter().find(|topic| !read.topics.contains(topic));
        let expected = format_args!("only topics of {:?} listed", read.topics).to_string();
        ensure(stranger.is_none(), Rule::FinishListed, expected, format_args!("{stranger:?}"))
    }
}

fn judge_limits(read: &Read, page: &Page) -> Verdict {
    let count = page.entries.len();
    ensure(count <= read.max_events, Rule::MaxEvents, format_args!("at most {} records", read.max_events), count)?;
    let bodies: Vec<usize> = page.entries.iter().map(|entry| entry.record().body().len()).collect();
    let mut total = 0;
    let end = bodies.iter().position(|body| {
        total += body;
        total >= read.max_bytes
    });
    let most = end.map_or(count, |end| end + 1);
    let expected = format_args!("at most {most} records, for {} bytes", read.max_bytes).to_string();
    ensure(count <= most, Rule::MaxBytes, expected, format_args!("bodies of {bodies:?}"))
}

/// Whether a page may end before the last record: it has reached one of its bounds. A store may count the bytes of whole
/// frames.
fn is_cut(read: &Read, page: &Page) -> bool {
    let bytes: usize = page.entries.iter().map(|entry| entry.frame().len()).sum();
    page.entries.len() >= read.max_events || bytes >= read.max_bytes
}

/// The place before the last `n` positions; none if `n` is 0.
fn before_last(positions: &[u64], n: usize) -> Option<u64> {
    let last = &positions[positions.len().saturating_sub(n)..];
    last.first().map(|first| first - 1)
}

pub(super) fn positions(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.position()).collect()
}

/// What of a record is not as it was given.
pub(super) fn difference(given: &Record, read: &Record) -> Option<&'static str> {
    let precise = |a: &Record, b: &Record| {
        let apart = a.time().duration_since(b.time()).or_else(|_| b.time().duration_since(a.time()));
        apart.is_ok_and(|apart| apart < Duration::from_millis(1))
    };
    match () {
        () if given.topic() != read.topic() => Some("topic"),
        () if given.kind() != read.kind() => Some("kind"),
        () if given.body() != read.body() => Some("body"),
        () if !precise(given, read) => Some("time"),
        () if given.key() != read.key() => Some("key"),
        () if !given.labels().eq(read.labels()) => Some("labels"),
        () => None,
    }
}

/// A record of the suite, for a message; it has nothing to hide.
fn show(record: &Record) -> String {
    let mut body = String::from_utf8_lossy(record.body()).into_owned();
    if let Some((end, _)) = body.char_indices().nth(80) {
        body.truncate(end);
        body.push('…');
    }
    let labels: Vec<_> = record.labels().collect();
    let (topic, kind, time, key) = (record.topic(), record.kind(), record.time(), record.key());
    format!("{topic:?}, {kind:?}, {body:?}, {time:?}, key {key:?}, labels {labels:?}")
}
