//! [`Faulty`]: the model with one [`Fault`].

use crate::{
    fault::Fault::{self, *},
    mix::{Mix, yield_some},
    model::{Disk, Log, Model, Outcomes},
    replace::takes_the_place,
    spoil,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tidings::{
    Event, Topic,
    replay::{AppendError, Cursor, Kind, Page, Read, ReadError, Record, Refused, ReplayStore, Run, conformance::Keep},
};
use tokio::{sync::Semaphore, task::yield_now};

pub(crate) struct Faulty {
    pub(crate) model: Model,
    pub(crate) fault: Fault,
    pub(crate) mix: Mix,
    reads: AtomicU64,
    readers: Semaphore,
    evicted: Mutex<BTreeMap<u64, Record>>,
    ended: Mutex<BTreeSet<Topic>>,
}

impl Faulty {
    pub(crate) fn open(disk: Disk, mut keep: Keep, fault: Fault) -> Self {
        let is_new = disk.lock().unwrap().runs.is_empty();
        before_open(&mut disk.lock().unwrap(), fault);
        if fault == NothingIsEvicted {
            keep.events_per_topic = None;
        }
        let mut model = Model::open(disk, keep);
        let run = after_open(&mut model.log(), fault, is_new);
        model.run = run;
        let mix = Mix::new(&model.log());
        Self {
            model,
            fault,
            mix,
            reads: AtomicU64::new(0),
            readers: Semaphore::new(1),
            evicted: Mutex::default(),
            ended: Mutex::default(),
        }
    }

    pub(crate) fn append_all(&self, log: &mut Log, records: &[Record]) -> Outcomes {
        let start = log.clone();
        let mut outcomes = Outcomes::new();
        for (n, record) in records.iter().enumerate() {
            let topic = record.topic();
            let end = log.finished.get(topic).copied();
            if self.fault == RefusedEndsTheBatch && outcomes.iter().any(Result::is_err) {
                outcomes.push(Err(Refused::Other("the batch has ended".into())));
                continue;
            }
            if self.fault == NumbersStartAnewAfterForget {
                log.newest = log.records.last_key_value().map_or(0, |(position, _)| *position);
            }
            if self.fault == TheSecondNewestIsEvicted {
                let positions = log.positions(topic);
                if positions.len() > 1 && Some(positions.len()) == self.model.keep {
                    log.remove(positions[positions.len() - 1]);
                }
            }
            let before = log.clone();
            self.make_room(log, record);
            self.spoil_keys(log, &start);
            let mut outcome = self.model.append_one(log, &spoil::record(self.fault, record));
            self.spoil_repeat(log, record, &mut outcome);
            match (self.fault, end) {
                (ForgetLeavesTheRefusal, _) if self.ended.lock().unwrap().contains(topic) => {
                    outcome = Err(Refused::Finished);
                }
                (RefusesForNoReason, _) if n == 1 => outcome = Err(Refused::Other("why not".into())),
                (RefusedIsStored, Some(_)) => drop(self.append_unchecked(log, record)),
                (RefusedEndMovesTheEnd, Some(_)) if record.kind() == Kind::Finish => {
                    log.finished.insert(topic.clone(), log.newest);
                }
                (FinishedAccepts, Some(_)) => outcome = Ok(self.append_unchecked(log, record)),
                (FinishedAcceptsInItsBatch, Some(_)) if !start.finished.contains_key(topic) => {
                    outcome = Ok(self.append_unchecked(log, record));
                }
                (FinishedIsRefusedOtherwise, Some(_)) => outcome = Err(Refused::TooLarge),
                (FinishedIsEvicted, _) => {
                    let Log { records, finished, .. } = &mut *log;
                    finished.retain(|_, end| records.contains_key(end));
                }
                (OneNumberForABatch, _) => outcome = outcomes.first().cloned().unwrap_or(outcome),
                (NumbersOfEachTopic, _) => outcome = Ok(self.model.run.at(log.positions(topic).len() as u64)),
                (AppendsInAnotherRun, _) => {
                    let run = Run { number: self.model.run.number + 1, ..self.model.run };
                    outcome = outcome.map(|cursor| run.at(cursor.position()));
                }
                (EvictionRaisesNoFloor, _) => log.floors.clone_from(&before.floors),
                (EvictionRaisesTheFloorTooLittle, _) if log.floors != before.floors => {
                    log.floors.values_mut().for_each(|floor| *floor -= 1);
                }
                (EvictedComesBack | ForgetBringsBackTheEvicted, _) => {
                    self.evicted.lock().unwrap().extend(log.evicted_since(&before));
                }
                (RefusedReplaces, Some(_)) => log.records.retain(|_, older| !takes_the_place(record, older)),
                _ => {}
            }
            if outcome.is_ok() {
                self.spoil_replacing(log, record, &start, &before);
            }
            outcomes.push(outcome);
        }
        outcomes
    }

    pub(crate) fn append_unchecked(&self, log: &mut Log, record: &Record) -> Cursor {
        let position = log.newest + 1;
        self.model.insert(log, position, record);
        self.model.run.at(position)
    }
}

fn before_open(log: &mut Log, fault: Fault) {
    let newest = log.newest;
    match fault {
        NewestIsLostAtOpen => {
            log.records.remove(&newest);
            log.newest = newest.saturating_sub(1);
        }
        StateIsLostAtOpen => log.records.retain(|_, record| record.kind() != Kind::Latest),
        ReplacedComesBackAtOpen => {
            let Log { records, replaced, .. } = &mut *log;
            records.append(replaced);
        }
        EndsAreLostAtOpen => log.finished.clear(),
        RepeatsAreLostAtOpen => log.keys.clear(),
        FloorsAreLostAtOpen => log.floors.clear(),
        _ => {}
    }
}

fn after_open(log: &mut Log, fault: Fault, is_new: bool) -> Run {
    let last = log.runs.len() - 1;
    match fault {
        EpochIsFixed => log.epoch = 7,
        EpochIsDrawnAtOpen => log.epoch = Run::new_log().epoch,
        OpeningBeginsNoRun if !is_new => drop(log.runs.pop()),
        RunNumberIsUsedAgain => log.runs[last].0 %= 2,
        NewLogStartsAtOne if is_new => log.newest = 1,
        NewLogHasARecord if is_new => drop(log.records.insert(1, Record::new(Topic::new("a").unwrap(), Event::new()))),
        _ => {}
    }
    Run { epoch: log.epoch, number: log.runs.last().unwrap().0 }
}

impl ReplayStore for Faulty {
    async fn head(&self) -> Result<Cursor, ReadError> {
        let head = self.model.head().await?;
        let log = self.model.log();
        let position = match self.fault {
            HeadIsBehind => log.newest.saturating_sub(1),
            HeadIsAhead if log.newest > 0 => log.newest + 1,
            HeadIsTheNewestHeld => log.records.last_key_value().map_or(0, |(position, _)| *position),
            HeadIsTheLastNumberGiven => self.mix.given(),
            _ => head.position(),
        };
        Ok(head.run().at(position))
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Outcomes, AppendError> {
        yield_now().await;
        let is_refused = |record: &Record| self.model.log().finished.contains_key(record.topic());
        match self.fault {
            AppendNeverEnds => pending().await,
            AppendFails => return Err(AppendError::refused("broken")),
            EmptyBatchFails if records.is_empty() => return Err(AppendError::refused("empty")),
            RefusedFailsTheBatch if records.iter().any(is_refused) => return Err(AppendError::refused("finished")),
            _ => {}
        }
        if let Some(outcomes) = self.append_mixed(&records).await {
            return Ok(outcomes);
        }
        let mut log = self.model.log();
        if matches!(self.fault, NumbersOfABatchFall | OutcomesAreSwapped) {
            let reversed: Vec<_> = records.iter().rev().cloned().collect();
            let mut outcomes = self.append_all(&mut log, &reversed);
            if self.fault == NumbersOfABatchFall {
                outcomes.reverse();
            }
            return Ok(outcomes);
        }
        let mut outcomes = self.append_all(&mut log, &records);
        if self.fault == NoOutcomeForRefused {
            outcomes.retain(Result::is_ok);
        }
        Ok(outcomes)
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let count = self.reads.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            ReadNeverEnds => pending().await,
            ReadFails => return Err(ReadError::new("broken")),
            DroppedReadHoldsTheLock => {
                self.readers.acquire().await.unwrap().forget();
                yield_some().await;
                self.readers.add_permits(1);
            }
            EvictedComesBack if count % 3 == 0 => {
                let mut log = self.model.log().clone();
                log.records.append(&mut self.evicted.lock().unwrap().clone());
                return Ok(self.model.page(&log, &read));
            }
            _ => {}
        }
        yield_now().await;
        if let Some(page) = self.read_mixed(&read, count).or_else(|| self.read_replaced(&read)) {
            return Ok(page);
        }
        let earlier = spoil::page(self.fault, &self.model, &self.model.log(), &read);
        if self.fault == RecordsAreFetchedLater {
            return Ok(self.fetch(earlier, &read).await);
        }
        let is_split = match self.fault {
            FloorIsOfAnEarlierView | ThroughIsOfALaterView => true,
            ThroughOfAnEmptyPageIsOfALaterView => earlier.entries.is_empty() && !earlier.foreign,
            _ => false,
        };
        if !is_split {
            return Ok(earlier);
        }
        yield_some().await;
        let mut later = self.model.page(&self.model.log(), &read);
        if self.fault == FloorIsOfAnEarlierView {
            later.floor = earlier.floor;
            return Ok(later);
        }
        let is_cut = earlier.entries.len() >= read.max_events;
        Ok(if is_cut { earlier } else { with_through(earlier, later.through) })
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        yield_now().await;
        if self.fault == ForgetFails {
            return Err(ReadError::new("broken"));
        }
        let top = self.model.log().positions(&topic).last().copied();
        self.forget_slowly(&topic).await;
        let mut log = self.model.log();
        let before = log.clone();
        if self.fault != ForgetDoesNothing {
            log.forget(&topic);
        }
        match self.fault {
            ForgetRaisesNoFloor => log.floors = before.floors,
            ForgetLeavesRecords => log.records = before.records,
            ForgetLeavesState => {
                let is_state = |record: &Record| *record.topic() == topic && record.kind() == Kind::Latest;
                log.records.extend(before.records.into_iter().filter(|(_, record)| is_state(record)));
            }
            ForgetLeavesTheEnd => log.finished = before.finished,
            ForgetRemovesAll => before.records.values().for_each(|record| log.forget(record.topic())),
            ForgetLeavesTheRefusal => self.ended.lock().unwrap().extend(before.finished.into_keys()),
            ForgetBringsBackTheEvicted => {
                let mut evicted = self.evicted.lock().unwrap().clone();
                evicted.retain(|_, record| *record.topic() == topic);
                log.records.append(&mut evicted);
            }
            ForgetRemovesAllEnds => log.finished.clear(),
            ForgettingAnUnknownTopicRaisesTheFloor if top.is_none() => {
                log.floors.extend(before.records.into_values().map(|record| (record.topic().clone(), 1)));
            }
            ForgetTakesTheFloorBefore => {
                log.floors = before.floors;
                log.floors.extend(top.map(|top| (topic, top)));
            }
            _ => {}
        }
        Ok(())
    }

    fn try_append(&self, records: &Arc<[Record]>) -> Option<Result<Outcomes, AppendError>> {
        let stored = self.model.try_append(records);
        match self.fault {
            TriesStoresAndDeclines => None,
            TriesAndDoesNotStore => {
                let mut log = self.model.log();
                let Log { records: held, newest, .. } = &mut *log;
                held.remove(newest);
                stored
            }
            TriesAndDoesNotReplace => {
                let mut log = self.model.log();
                let Log { records: held, replaced, .. } = &mut *log;
                held.append(replaced);
                stored
            }
            // What the other faults do is done by `append`.
            _ => stored,
        }
    }
}

fn with_through(mut page: Page, through: Cursor) -> Page {
    page.through = through;
    page
}
