//! Faults that only show when calls come at the same time.

use crate::{
    fault::Fault::*,
    faulty::Faulty,
    model::{Log, Outcomes},
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tidings::{
    Topic,
    replay::{Kind, Page, Read, ReadFrom, Record, Refused},
};
use tokio::{sync::Semaphore, task::yield_now};

pub(crate) struct Mix {
    /// The highest number that was given, where that is not the newest position.
    given: AtomicU64,
    /// How many appends are under way.
    appends: AtomicU64,
    turn: Semaphore,
    buffer: Mutex<Arc<[Record]>>,
    /// The log as it was.
    copy: Mutex<Log>,
}

impl Mix {
    pub(crate) fn new(log: &Log) -> Self {
        Self {
            given: AtomicU64::new(log.newest),
            appends: AtomicU64::new(0),
            turn: Semaphore::new(1),
            buffer: Mutex::new([].into()),
            copy: Mutex::new(log.clone()),
        }
    }

    pub(crate) fn given(&self) -> u64 {
        self.given.load(Relaxed)
    }
}

pub(crate) async fn yield_some() {
    for _ in 0..7 {
        yield_now().await;
    }
}

impl Faulty {
    /// An append, with a fault of this kind.
    pub(crate) async fn append_mixed(&self, records: &Arc<[Record]>) -> Option<Outcomes> {
        let others = self.mix.appends.fetch_add(1, Relaxed);
        let outcomes = match self.fault {
            AnOldCopyIsRead | AnOldCopyJudgesCursors | WhatWasReadIsReadAgain => {
                if others == 0 {
                    *self.mix.copy.lock().unwrap() = self.model.log().clone();
                }
                let outcomes = self.append_all(&mut self.model.log(), records);
                yield_some().await;
                Some(outcomes)
            }
            // Slow enough that who follows has everything between two appends.
            ThroughOfAnEmptyPageIsOfALaterView => {
                yield_some().await;
                None
            }
            RefusesWhileAnotherAppends => {
                yield_now().await;
                (others > 0).then(|| records.iter().map(|_| Err(Refused::Other("busy".into()))).collect())
            }
            NumberIsGivenBeforeTheCommit => Some(self.append_late(records).await),
            HeadIsTheLastNumberGiven => {
                let _turn = self.mix.turn.acquire().await.unwrap();
                self.mix.given.fetch_add(records.len() as u64, Relaxed);
                yield_some().await;
                let outcomes = self.append_all(&mut self.model.log(), records);
                // Without the numbers of what was refused.
                self.mix.given.store(self.model.log().newest, Relaxed);
                Some(outcomes)
            }
            NumbersAreTakenTwice => {
                let newest = self.model.log().newest;
                yield_now().await;
                Some(self.append_from(newest + 1, records))
            }
            CursorsAreAskedAfterwards => {
                let outcomes = self.append_all(&mut self.model.log(), records);
                yield_now().await;
                let first = self.model.log().newest + 1 - outcomes.iter().flatten().count() as u64;
                let mut positions = first..;
                let cursor = |outcome: Result<_, _>| outcome.map(|_| self.model.run.at(positions.next().unwrap()));
                Some(outcomes.into_iter().map(cursor).collect())
            }
            BatchesShareABuffer => {
                *self.mix.buffer.lock().unwrap() = Arc::clone(records);
                yield_some().await;
                let buffer = self.mix.buffer.lock().unwrap().clone();
                (buffer.len() == records.len()).then(|| self.append_all(&mut self.model.log(), &buffer))
            }
            BatchesMix => {
                let mut outcomes = Outcomes::new();
                for record in &**records {
                    outcomes.push(self.model.append_one(&mut self.model.log(), record));
                    yield_now().await;
                }
                Some(outcomes)
            }
            EndsAreStoredByOldKnowledge | EventsAreStoredByOldKnowledge if records.len() == 1 => {
                Some(self.append_by_old_knowledge(records).await)
            }
            RepeatsAreStoredByOldKnowledge if records.len() == 1 && records[0].idempotency_key() == Some("k") => {
                Some(self.repeat_by_old_knowledge(records).await)
            }
            TheNewerComesFirst | TheOlderGoesFirst if records.iter().all(|record| record.replaces().is_some()) => {
                Some(self.replace_slowly(records).await)
            }
            ReplacesByOldKnowledge if records.len() == 1 => Some(self.replace_slowly(records).await),
            _ => None,
        };
        self.mix.appends.fetch_sub(1, Relaxed);
        outcomes
    }

    /// Gives numbers, and stores under them later: every second batch sooner than the one before.
    async fn append_late(&self, records: &[Record]) -> Outcomes {
        let first = self.mix.given.fetch_add(records.len() as u64, Relaxed) + 1;
        if records.len() % 2 == 0 {
            yield_some().await;
        }
        self.append_from(first, records)
    }

    fn append_from(&self, first: u64, records: &[Record]) -> Outcomes {
        let mut log = self.model.log();
        let store = |(position, record): (u64, &Record)| {
            if let Some(first) = log.first_of(record) {
                return Err(Refused::Duplicate(self.model.run.at(first)));
            }
            if log.finished.contains_key(record.topic()) {
                return Err(Refused::Finished);
            }
            self.model.insert(&mut log, position, record);
            Ok(self.model.run.at(position))
        };
        (first..).zip(records).map(store).collect()
    }

    /// Asks first whether the topic is finished, and stores later.
    async fn append_by_old_knowledge(&self, records: &[Record]) -> Outcomes {
        let before = self.model.log().finished.clone();
        yield_some().await;
        let mut log = self.model.log();
        let store = |record: &Record| {
            if let Some(first) = log.first_of(record) {
                return Err(Refused::Duplicate(self.model.run.at(first)));
            }
            let is_old = (record.kind() == Kind::Finish) == (self.fault == EndsAreStoredByOldKnowledge);
            let finished = if is_old { &before } else { &log.finished };
            if finished.contains_key(record.topic()) {
                return Err(Refused::Finished);
            }
            Ok(self.append_unchecked(&mut log, record))
        };
        records.iter().map(store).collect()
    }

    /// Every third read while others append, with a fault of this kind.
    pub(crate) fn read_mixed(&self, read: &Read, count: u64) -> Option<Page> {
        if self.mix.appends.load(Relaxed) == 0 || count % 3 != 0 {
            return None;
        }
        let mut copy = self.mix.copy.lock().unwrap().clone();
        let mut read = read.clone();
        match (self.fault, &mut read.from) {
            (AnOldCopyJudgesCursors, _) => {}
            (WhatWasReadIsReadAgain, ReadFrom::After(cursor)) => {
                copy = self.model.log().clone();
                *cursor = cursor.run().at(cursor.position() - 1);
            }
            (AnOldCopyIsRead, ReadFrom::After(cursor)) => {
                *cursor = cursor.run().at(cursor.position().min(copy.newest));
            }
            _ => return None,
        }
        Some(self.model.page(&copy, &read))
    }

    /// What `forget` does before it does what it must.
    pub(crate) async fn forget_slowly(&self, topic: &Topic) {
        let before = self.model.log().clone();
        match self.fault {
            ForgetTakesTheFloorBefore => yield_some().await,
            ForgetGoesOneByOne => {
                for position in before.positions(topic) {
                    self.model.log().remove(position);
                    yield_now().await;
                }
            }
            ForgetIsTriedTwice => {
                self.model.log().forget(topic);
                yield_some().await;
                *self.model.log() = before;
                yield_some().await;
            }
            ForgetHidesTheOthers => {
                self.model.log().records.clear();
                yield_some().await;
                self.model.log().records = before.records;
            }
            ForgetRaisesTheFloorLater => {
                self.model.log().records.retain(|_, record| record.topic() != topic);
                yield_some().await;
                self.model.log().records = before.records;
            }
            _ => {}
        }
    }
}
