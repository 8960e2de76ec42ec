//! Faults of what takes the place of what.

use crate::{
    fault::Fault::{self, *},
    faulty::Faulty,
    mix::yield_some,
    model::{Log, Outcomes},
};
use tidings::replay::{Kind, Page, Read, ReadFrom, Record};

/// Whether a record takes the place of another.
pub(crate) fn takes_the_place(newer: &Record, older: &Record) -> bool {
    newer.topic() == older.topic() && newer.replaces().is_some() && newer.replaces() == older.replaces()
}

impl Log {
    /// What is gone, and was not replaced.
    pub(crate) fn evicted_since(&self, before: &Self) -> Vec<(u64, Record)> {
        let left = before.records.iter().filter(|(position, _)| !self.records.contains_key(position));
        let evicted = left.filter(|(position, _)| !self.replaced.contains_key(position));
        evicted.map(|(position, record)| (*position, record.clone())).collect()
    }
}

impl Faulty {
    /// What is evicted before a record is stored, with a fault of this kind.
    pub(crate) fn make_room(&self, log: &mut Log, newer: &Record) {
        let positions = log.positions(newer.topic());
        let is_full = self.model.keep.is_some_and(|keep| positions.len() >= keep);
        let is_state = |position: &&u64| log.records[*position].kind() == Kind::Latest;
        let evicted = match self.fault {
            EvictsBeforeItReplaces if newer.replaces().is_some() => positions.first(),
            TheNewestStateIsEvicted if newer.kind() == Kind::Event => positions.iter().rfind(is_state),
            _ => None,
        };
        if let Some(evicted) = evicted.filter(|_| is_full) {
            log.remove(*evicted);
        }
    }

    /// What a store with a fault of this kind makes of a log that has stored a record and replaced what it must. The batch
    /// found the log as `start`, the record as `before`.
    pub(crate) fn spoil_replacing(&self, log: &mut Log, newer: &Record, start: &Log, before: &Log) {
        for (position, older) in &before.records {
            if !log.replaced.contains_key(position) {
                if takes_also(self.fault, newer, older) {
                    log.records.remove(position);
                }
            } else if self.spares(*position, newer, start, before) {
                log.records.extend(log.replaced.remove_entry(position));
            }
        }
        let (topic, newest) = (newer.topic(), log.newest);
        let older = before.records.iter().find(|(_, older)| takes_the_place(newer, older)).map(|(older, _)| *older);
        // The key was seen before, but what had it is gone.
        let is_stale = older.is_none() && log.replaced.values().any(|older| takes_the_place(newer, older));
        let evicts = self.model.keep.is_some();
        match (self.fault, older) {
            (TheOlderStays | TheNewerGoesToo, Some(_)) => drop(log.records.remove(&newest)),
            (RemovalsAreNotStored, _) if newer.kind() == Kind::Removal => drop(log.records.remove(&newest)),
            (KeysOutliveForget, _) if is_stale && !evicts => drop(log.records.remove(&newest)),
            (KeysOutliveEviction, _) if is_stale && evicts => drop(log.records.remove(&newest)),
            (ReplacesInPlace, Some(older)) => {
                let newer = log.records.remove(&newest);
                log.records.extend(newer.map(|newer| (older, newer)));
            }
            (ReplacingRaisesTheFloor, Some(older)) => raise(log, newer, older),
            (FloorCountsTheReplaced, _) => {
                let mut all = log.clone();
                all.records.extend(log.replaced.clone());
                let positions = all.positions(topic);
                let first = positions.len().saturating_sub(self.model.keep.unwrap_or(usize::MAX));
                if let Some(below) = positions[..first].last() {
                    raise(log, newer, *below);
                }
            }
            (EvictedStateRaisesNoFloor | StateIsNotEvicted, _) => {
                let evicted = log.evicted_since(before);
                let (state, events): (Vec<_>, Vec<_>) =
                    evicted.into_iter().partition(|(_, record)| record.kind() == Kind::Latest);
                if !state.is_empty() {
                    log.floors.clone_from(&before.floors);
                    for (position, event) in events {
                        raise(log, &event, position);
                    }
                    log.records.extend(state.into_iter().filter(|_| self.fault == StateIsNotEvicted));
                }
            }
            _ => {}
        }
    }

    /// Whether what should be replaced is not.
    fn spares(&self, position: u64, newer: &Record, start: &Log, before: &Log) -> bool {
        let older = before.records[&position].kind();
        match self.fault {
            NothingIsReplaced | TheOlderStays => true,
            RemovalsReplaceNothing => newer.kind() == Kind::Removal,
            RemovalsStay => older == Kind::Removal,
            ReplacesOnlyItsKind => older != newer.kind(),
            ReplacesOnlyAcrossBatches => position > start.newest,
            ReplacesOnlyInItsBatch => position <= start.newest,
            ReplacesOnlyTheNewest => before.positions(newer.topic()).last() != Some(&position),
            EmptyKeyReplacesNothing => newer.key() == Some(""),
            KeysAreLostAtOpen => before.runs.last().is_some_and(|(_, begin)| position <= *begin),
            _ => false,
        }
    }

    /// Replaces in two steps, or by what was known before.
    pub(crate) async fn replace_slowly(&self, records: &[Record]) -> Outcomes {
        let known = {
            let mut log = self.model.log();
            let accepted = records.iter().filter(|record| !log.finished.contains_key(record.topic()));
            let known: Vec<u64> =
                accepted.filter_map(|newer| log.newest_of(newer.topic(), newer.replaces()?)).collect();
            if self.fault == TheOlderGoesFirst {
                log.records.retain(|position, _| !known.contains(position));
            }
            known
        };
        if self.fault != TheNewerComesFirst {
            yield_some().await;
        }
        let outcomes = {
            let mut log = self.model.log();
            let before = log.records.clone();
            let outcomes = self.append_all(&mut log, records);
            let replaced = before.into_iter().filter(|(position, _)| log.replaced.contains_key(position));
            let stays = |position: &u64| known.contains(position) == (self.fault == TheNewerComesFirst);
            let stay: Vec<_> = replaced.filter(|(position, _)| stays(position)).collect();
            log.records.extend(stay);
            outcomes
        };
        if self.fault == TheNewerComesFirst {
            yield_some().await;
            self.model.log().records.retain(|position, _| !known.contains(position));
        }
        outcomes
    }

    /// A page of a store that leaves out what was replaced when it has counted it.
    pub(crate) fn read_replaced(&self, read: &Read) -> Option<Page> {
        let counts = matches!(
            (self.fault, read.from),
            (LastCountsTheReplaced, ReadFrom::Last(_))
                | (PageCountsTheReplaced, ReadFrom::After(_) | ReadFrom::Earliest)
        );
        let log = counts.then(|| self.model.log().clone())?;
        let mut all = log.clone();
        all.records.extend(log.replaced);
        let mut page = self.model.page(&all, read);
        page.entries.retain(|entry| log.records.contains_key(&entry.cursor().position()));
        Some(page)
    }

    /// What is left of the records of a page after a while.
    pub(crate) async fn fetch(&self, mut page: Page, read: &Read) -> Page {
        yield_some().await;
        let log = self.model.log();
        page.entries.retain(|entry| log.records.contains_key(&entry.cursor().position()));
        page.floor = self.model.page(&log, read).floor;
        page
    }
}

/// Whether a record goes that should not.
fn takes_also(fault: Fault, newer: &Record, older: &Record) -> bool {
    let same_topic = newer.topic() == older.topic();
    let same_key = same_topic && newer.key() == older.key() && newer.key().is_some();
    match fault {
        EventsReplace => same_key && newer.kind() == Kind::Event && older.kind() != Kind::Event,
        EventsAreReplaced => same_key && newer.kind() != Kind::Event && older.kind() == Kind::Event,
        EndsReplace => same_key && newer.kind() == Kind::Finish,
        NoKeyIsAKey => same_topic && [newer, older].iter().all(|it| it.kind() == Kind::Latest && it.key().is_none()),
        _ => {
            let keys = newer.replaces().zip(older.replaces());
            keys.is_some_and(|(new, old)| confuses(fault, same_topic, [(newer, new), (older, old)]))
        }
    }
}

/// Whether two keys are taken for one.
fn confuses(fault: Fault, same_topic: bool, [(newer, new), (older, old)]: [(&Record, &str); 2]) -> bool {
    let topics = [newer, older].map(|record| record.topic().as_key());
    let same = |form: fn(&str) -> String| same_topic && form(new) == form(old);
    match fault {
        ReplacesEveryKey => same_topic,
        ReplacesInAllTopics => new == old,
        ReplacesInTopicsByPrefix => new == old && topics[1].starts_with(topics[0]),
        ReplacesInTopicsByName => new == old && newer.topic().name() == older.topic().name(),
        KeysFoldCase => same(str::to_lowercase),
        KeysAreNormalized => same(|key| key.replace("a\u{308}", "ä")),
        KeysAreTrimmed => same(|key| key.trim().into()),
        KeysEndAtNul => same(|key| key.split('\0').take(1).collect()),
        KeysAreCut => same(|key| key.chars().take(255).collect()),
        KeysAreNumbers => same_topic && new.parse::<f64>().is_ok_and(|new| old.parse() == Ok(new)),
        KeysArePatterns => {
            let matches = |(head, tail)| old.starts_with(head) && old.ends_with::<&str>(tail);
            same_topic && new.split_once('%').is_some_and(matches)
        }
        KeysArePastedToTopics => [topics[0], new].concat() == [topics[1], old].concat(),
        KeysAreJoinedToTopics => [topics[0], new].join("\u{1f}") == [topics[1], old].join("\u{1f}"),
        _ => false,
    }
}

fn raise(log: &mut Log, of: &Record, position: u64) {
    let floor = log.floors.entry(of.topic().clone()).or_default();
    *floor = position.max(*floor);
}
