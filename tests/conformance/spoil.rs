//! Faults of single records and pages.

use crate::{
    fault::Fault::{self, *},
    model::{Log, Model},
};
use std::time::{Duration, SystemTime};
use tidings::{
    Topic, Topics,
    replay::{Entry, Kind, Page, Read, ReadFrom, Record, Run},
};

/// What is stored in place of a record.
pub(crate) fn record(fault: Fault, given: &Record) -> Record {
    let body = match fault {
        BodyIsAltered => String::from_utf8_lossy(given.body()).replace('\0', "").into(),
        _ => given.body().clone(),
    };
    let kind = match fault {
        KindIsDropped => Kind::Event,
        KindIsOnlyWhetherItEnds if given.kind() != Kind::Finish => Kind::Event,
        _ => given.kind(),
    };
    let time = match given.time().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) if fault == TimeInThirtyTwoBits => SystemTime::UNIX_EPOCH + in_thirty_two_bits(since),
        Ok(since) if fault == TimeInSeconds => SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()),
        Ok(_) if fault == TimeIsAMillisecondLate => given.time() + Duration::from_millis(1),
        _ => given.time(),
    };
    let mut record = Record::from_stored(given.topic().clone(), kind, &body, time).unwrap();
    if let Some(key) = given.key().filter(|key| fault != KeyIsDropped && (fault != EmptyKeyIsNone || !key.is_empty())) {
        record = record.with_key(key);
    }
    if let Some(key) = given.idempotency_key() {
        record = record.with_idempotency_key(key);
    }
    let mut labels: Vec<_> = given.labels().filter(|_| fault != LabelsAreDropped).collect();
    if fault == LabelsAreSorted {
        labels.sort_unstable();
    }
    labels.into_iter().fold(record, |record, (name, value)| record.with_label(name, value))
}

fn in_thirty_two_bits(time: Duration) -> Duration {
    Duration::new(time.as_secs() & u64::from(u32::MAX), time.subsec_nanos())
}

pub(crate) fn page(fault: Fault, model: &Model, log: &Log, asked: &Read) -> Page {
    let mut read = asked.clone();
    spoil_read(fault, model, log, &mut read);
    let mut page = model.page(log, &read);
    if page.foreign {
        match fault {
            ForeignPageHasRecords => {
                read.from = ReadFrom::Earliest;
                page.entries = model.page(log, &read).entries;
            }
            ForeignPageGoesToTheStart => page.through = model.run.at(0),
            _ => {}
        }
        return page;
    }
    spoil_entries(fault, model, log, asked, &mut page);
    spoil_through(fault, asked, model.run, log.newest, &mut page);
    spoil_floor(fault, log, asked, &mut page);
    spoil_finished(fault, log, asked, &mut page);
    page
}

fn spoil_read(fault: Fault, model: &Model, log: &Log, read: &mut Read) {
    if let ReadFrom::After(cursor) = &mut read.from {
        let (run, position) = (cursor.run(), cursor.position());
        let foreign = model.run.at(u64::MAX);
        *cursor = match fault {
            AfterIsInclusive => run.at(position.saturating_sub(1)),
            AfterSkipsOne if position < log.newest => run.at(position + 1),
            OtherEpochIsGood => Run { epoch: model.run.epoch, ..run }.at(position),
            OtherRunIsGood => Run { number: model.run.number, ..run }.at(position),
            AheadIsGood => run.at(position.min(log.newest)),
            OneAheadIsGood if run == model.run && position == log.newest + 1 => run.at(log.newest),
            OlderRunsAreGoodByOneMore if run != model.run && position > 0 && !log.is_foreign(run.at(position - 1)) => {
                model.run.at(position.min(log.newest))
            }
            TopBitOfAnEpochIsLost if run.epoch ^ model.run.epoch == 1 << 63 => {
                Run { epoch: model.run.epoch, ..run }.at(position)
            }
            TopBitOfARunIsLost if run.number ^ model.run.number == 1 << 31 => {
                Run { number: model.run.number, ..run }.at(position)
            }
            TopBitOfAPositionIsLost => run.at(position & !(1 << 63)),
            StartIsForeign if position == 0 => foreign,
            NewestIsForeign if position == log.newest && position > 0 => foreign,
            RemovedIsForeign if position > 0 && !log.records.contains_key(&position) => foreign,
            ReplacedIsForeign if log.replaced.contains_key(&position) => foreign,
            OlderRunsAreForeign if run != model.run => foreign,
            OlderRunsAreGood if run.epoch == log.epoch && run.number < model.run.number => model.run.at(position),
            OlderRunsAreGoodUpToTheLast if run.number < model.run.number => {
                let begin = log.runs.last().unwrap().1;
                if position <= begin { model.run.at(position) } else { foreign }
            }
            _ => *cursor,
        };
    }
    match (fault, &mut read.from) {
        (LastOfNothingIsForeign, ReadFrom::Last(0)) => read.from = ReadFrom::After(model.run.at(u64::MAX)),
        (LastIsOneMore, ReadFrom::Last(n)) => *n = n.saturating_add(1),
        (LastIsOneLess, ReadFrom::Last(n)) => *n = n.saturating_sub(1),
        (LastOfEachTopic, ReadFrom::Last(n)) => *n = n.saturating_mul(read.topics.len()),
        _ => {}
    }
    let wanted = read.topics.clone();
    let widen = |also: fn(&str, &str) -> bool| {
        let others = log
            .records
            .values()
            .map(Record::topic)
            .filter(|topic| wanted.iter().any(|asked| also(asked.as_key(), topic.as_key())));
        Topics::new(wanted.iter().chain(others).cloned()).unwrap()
    };
    match fault {
        ReadsAllTopics => read.topics = widen(|_, _| true),
        ReadsTopicsByPrefix => read.topics = widen(|asked, other| other.starts_with(asked)),
        ReadsTopicsByName => read.topics = widen(|asked, other| name(other) == name(asked)),
        TopicsFoldCase => read.topics = widen(str::eq_ignore_ascii_case),
        MaxEventsIsIgnored => read.max_events = usize::MAX,
        MaxBytesIsIgnored => read.max_bytes = usize::MAX,
        PageIsShort => read.max_events = read.max_events.min(10),
        _ => {}
    }
}

fn name(key: &str) -> String {
    Topic::from_key(key).unwrap().name().to_owned()
}

fn of_topic(topic: &Topic, given: &Record) -> Record {
    let mut record = Record::from_stored(topic.clone(), given.kind(), given.body(), given.time()).unwrap();
    if let Some(key) = given.key() {
        record = record.with_key(key);
    }
    given.labels().fold(record, |record, (name, value)| record.with_label(name, value))
}

fn spoil_entries(fault: Fault, model: &Model, log: &Log, asked: &Read, page: &mut Page) {
    let count = page.entries.len();
    let is_cut = page.through.position() < log.newest;
    match fault {
        PageIsByTopic => page.entries.sort_by_key(|entry| entry.record().topic().clone()),
        AllAreOfTheFirstTopic => {
            let first = asked.topics.iter().next().unwrap();
            for entry in &mut page.entries {
                *entry = Entry::new(entry.cursor(), of_topic(first, entry.record())).into();
            }
        }
        PageHasOneTwice if count > 1 => page.entries.insert(1, page.entries[0].clone()),
        PageHasAHole if count > 2 => drop(page.entries.remove(1)),
        EarliestSkipsOne if count > 0 && asked.from == ReadFrom::Earliest => drop(page.entries.remove(0)),
        MaxBytesIsOneLate if is_cut && count < asked.max_events => {
            let mut read = asked.clone();
            (read.max_events, read.max_bytes) = (count + 1, usize::MAX);
            *page = model.page(log, &read);
        }
        PageIsEmptyUnderMaxBytes if page.entries.first().is_some_and(|first| first.frame().len() > asked.max_bytes) => {
            page.through = page.entries[0].cursor().run().at(page.entries[0].cursor().position() - 1);
            page.entries.clear();
        }
        KeepsTheRunOfARecord => {
            let run_of = |position| *log.runs.iter().rev().find(|(_, begin)| *begin < position).unwrap();
            for entry in &mut page.entries {
                let (position, record) = (entry.cursor().position(), entry.record().clone());
                let run = Run { number: run_of(position).0, ..model.run };
                *entry = Entry::new(run.at(position), record).into();
            }
        }
        _ => {}
    }
}

fn spoil_through(fault: Fault, asked: &Read, run: Run, newest: u64, page: &mut Page) {
    let begin = if let ReadFrom::After(cursor) = asked.from { cursor.position() } else { 0 };
    let through = page.through.position();
    let (first, last) = (page.entries.first(), page.entries.last());
    let position = match fault {
        ThroughIsStuck if first.is_some() => begin,
        ThroughOfAnEmptyPageIsBehind if first.is_none() => begin.saturating_sub(1),
        ThroughIsTheFirst => first.map_or(through, |first| first.cursor().position()),
        ThroughIsAlwaysNewest => newest,
        ThroughIsTheLastRecord => last.map_or(begin, |last| last.cursor().position()),
        ThroughIsAhead if through == newest => newest + 1,
        ThroughOfAFullPageIsAhead if through == newest && page.entries.len() == asked.max_events => through + 1,
        _ => through,
    };
    let number = if fault == ReadsInAnotherRun { run.number + 1 } else { run.number };
    page.through = Run { number, ..run }.at(position);
}

fn spoil_floor(fault: Fault, log: &Log, asked: &Read, page: &mut Page) {
    let floor = |topic: &Topic| log.floors.get(topic).copied().unwrap_or(0);
    let held = |topic: &&Topic| !log.positions(topic).is_empty();
    page.floor = match fault {
        FloorIsBelowTheOldest => page.entries.first().map_or(0, |first| first.cursor().position() - 1),
        FloorIsOfOneTopic => asked.topics.iter().next().map_or(0, floor),
        FloorIsOfTheHeld => asked.topics.iter().filter(held).map(floor).max().unwrap_or(0),
        FloorIsPastTheNewest if page.floor > 0 => log.newest + 1,
        _ => page.floor,
    };
}

fn spoil_finished(fault: Fault, log: &Log, asked: &Read, page: &mut Page) {
    match fault {
        FinishedIsListedEarly => {
            page.finished = asked.topics.iter().filter(|topic| log.finished.contains_key(topic)).cloned().collect();
        }
        FinishedIsListedOnce => {
            let ends = page.entries.iter().filter(|entry| entry.record().kind() == Kind::Finish);
            page.finished = ends.map(|end| end.record().topic().clone()).collect();
        }
        AllAskedAreListed => page.finished = asked.topics.iter().cloned().collect(),
        FinishedIsListedTwice => page.finished.extend_from_within(..),
        AllFinishedAreListed => {
            let through = page.through.position();
            let ended = log.finished.iter().filter(|(_, end)| **end <= through);
            page.finished = ended.map(|(topic, _)| topic.clone()).collect();
        }
        FinishedIsNotListedOnceEvicted => {
            page.finished.retain(|topic| log.finished.get(topic).is_some_and(|end| log.records.contains_key(end)));
        }
        _ => {}
    }
}
