//! Faults of idempotency keys.

use crate::{
    fault::Fault::*,
    faulty::Faulty,
    mix::yield_some,
    model::{Log, Outcomes},
};
use tidings::replay::{Cursor, Record, Refused};

impl Faulty {
    /// Forgets keys that are to be remembered.
    pub(crate) fn spoil_keys(&self, log: &mut Log, start: &Log) {
        let Log { keys, records, .. } = log;
        match self.fault {
            RepeatsAreStored => keys.clear(),
            RepeatsInABatchAreStored => keys.clone_from(&start.keys),
            EmptyIdempotencyKeyIsNone => keys.retain(|(_, key), _| !key.is_empty()),
            IdempotencyKeysGoWithTheirRecords => keys.retain(|_, first| records.contains_key(first)),
            _ => {}
        }
    }

    /// Answers otherwise than it is to be answered.
    pub(crate) fn spoil_repeat(&self, log: &mut Log, record: &Record, outcome: &mut Result<Cursor, Refused>) {
        let (run, newest) = (self.model.run, log.newest);
        let known = |same: &dyn Fn(&str, &str) -> bool, any_topic: bool| {
            let own = record.idempotency_key().unwrap_or_default();
            let other = |position: &u64| outcome.as_ref().is_ok_and(|cursor| cursor.position() > *position);
            let mut keys = log
                .keys
                .iter()
                .filter(|((topic, key), at)| (any_topic || topic == record.topic()) && same(key, own) && other(at));
            keys.next().map(|(_, first)| Refused::Duplicate(run.at(*first)))
        };
        let has_key = record.idempotency_key().is_some();
        let wrong = match (self.fault, &*outcome) {
            (RepeatsAreAtTheNewest, Err(Refused::Duplicate(_))) => Some(Refused::Duplicate(run.at(newest))),
            (RepeatsAreRefusedOtherwise, Err(Refused::Duplicate(_))) => Some(Refused::Other("again".into())),
            (RepeatsAreOfTheirKind, Err(Refused::Duplicate(first))) => {
                let first = &log.records.get(&first.position());
                first.is_some_and(|first| first.kind() != record.kind()).then(|| Refused::Other("another".into()))
            }
            (RepeatsOfFinishedTopicsAreFinished, Err(Refused::Duplicate(_))) => {
                log.finished.contains_key(record.topic()).then_some(Refused::Finished)
            }
            (RepeatsInAnyTopic, Ok(_)) if has_key => known(&|a, b| a == b, true),
            (IdempotencyKeysFoldCase, Ok(_)) if has_key => known(&str::eq_ignore_ascii_case, false),
            (IdempotencyKeysAreCut, Ok(_)) if has_key => known(&|a, b| a.len() > 255 && a.starts_with(b), false),
            (NoIdempotencyKeyIsOne, Ok(_)) if !has_key => known(&|a, b| a == b, false),
            (RefusedAreRemembered, Err(Refused::Finished)) => {
                let key = record.idempotency_key().map(|key| (record.topic().clone(), key.to_owned()));
                log.keys.extend(key.map(|key| (key, newest)));
                None
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            *outcome = Err(wrong);
        }
    }

    /// Asks first whether it is a repeat, and stores later.
    pub(crate) async fn repeat_by_old_knowledge(&self, records: &[Record]) -> Outcomes {
        let before = self.model.log().clone();
        yield_some().await;
        let mut log = self.model.log();
        let store = |record: &Record| match before.first_of(record) {
            Some(first) => Err(Refused::Duplicate(self.model.run.at(first))),
            None if log.finished.contains_key(record.topic()) => Err(Refused::Finished),
            None => Ok(self.append_unchecked(&mut log, record)),
        };
        records.iter().map(store).collect()
    }
}
