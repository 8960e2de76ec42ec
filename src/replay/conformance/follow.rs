//! [`Reader`]: a task that follows a log as a subscription does, and keeps what it saw until it is known what was
//! acknowledged.

use super::{
    rule::{Positions, Rule, Verdict, Violation, ensure},
    trial::{append, appending, read_page},
};
use crate::{
    Topics,
    replay::{Cursor, Entry, Page, Read, ReadFrom, Record, ReplayStore},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::task::{JoinSet, yield_now};

/// What to follow, and how much of it at a time.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) topics: Topics,
    pub(super) from: Cursor,
    pub(super) max_events: usize,
}

/// What a reader saw.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) reader: Reader,
    pub(super) steps: Vec<Step>,
}

/// One page, without those that had no news.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) after: u64,
    pub(super) page: Page,
}

/// A batch, and the positions that it was given.
#[derive(Debug)]
pub(super) struct Stored {
    batch: Arc<[Record]>,
    positions: Vec<u64>,
}

/// Lets writers append their batches, each one after the other, while readers follow until they have everything. Says
/// what was stored, by position, and what was seen.
pub(super) async fn race<S: ReplayStore>(
    store: &Arc<S>,
    start: Cursor,
    writers: Vec<Vec<Vec<Record>>>,
    readers: Vec<Reader>,
) -> Verdict<(BTreeMap<u64, Record>, Vec<Seen>)> {
    let done = Arc::new(AtomicBool::new(false));
    let most = writers.iter().flatten().map(Vec::len).sum();
    let (mut writing, mut reading) = (JoinSet::new(), JoinSet::new());
    for reader in readers {
        reading.spawn(follow(Arc::clone(store), reader, Arc::clone(&done), most));
    }
    for batches in writers {
        writing.spawn(write(Arc::clone(store), batches));
    }
    let stored = joined(writing).await;
    done.store(true, Ordering::Release);
    let stored = judge_order(start, stored?)?;
    let seen = joined(reading).await?;
    Ok((stored, seen))
}

/// What tasks came to, or the first violation. The others are stopped then.
pub(super) async fn joined<T: 'static>(mut tasks: JoinSet<Verdict<T>>) -> Verdict<Vec<T>> {
    let mut all = Vec::new();
    while let Some(task) = tasks.join_next().await {
        match task {
            Ok(verdict) => all.push(verdict?),
            // A panic of the store's is its author's to see.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return Err(Violation::new(Rule::Answers, "a task to end", "it was cancelled")),
            },
        }
    }
    Ok(all)
}

async fn write<S: ReplayStore>(store: Arc<S>, batches: Vec<Vec<Record>>) -> Verdict<Vec<Stored>> {
    let mut stored = Vec::new();
    for batch in batches {
        let batch: Arc<[Record]> = batch.into();
        let outcomes = append(&*store, Arc::clone(&batch)).await?;
        let positions: Vec<u64> = outcomes.iter().flatten().map(|cursor| cursor.position()).collect();
        let refused = format_args!("{outcomes:?}").to_string();
        let expected = format_args!("{} cursors", batch.len()).to_string();
        let complete = positions.len() == batch.len() && outcomes.len() == batch.len();
        ensure(complete, Rule::Answers, expected, refused).map_err(|violation| violation.when(appending(&batch)))?;
        stored.push(Stored { batch, positions });
        yield_now().await;
    }
    Ok(stored)
}

/// Whether the positions of several writers, each of which waited for every answer, can come from one order.
fn judge_order(start: Cursor, stored: Vec<Vec<Stored>>) -> Verdict<BTreeMap<u64, Record>> {
    let mut all = BTreeMap::new();
    let mut batches = Vec::new();
    for writer in stored {
        let mut last = start.position();
        for Stored { batch, positions } in writer {
            for (position, record) in positions.iter().zip(&*batch) {
                let other = all.insert(*position, record.clone());
                let expected = format_args!("a position above {last} that no other record has").to_string();
                ensure(*position > last && other.is_none(), Rule::PositionsRise, expected, position)?;
                last = *position;
            }
            batches.extend(positions.first().copied().map(|first| (first, positions)));
        }
    }
    for (first, positions) in batches {
        let between: Vec<u64> = all.range(first..=*positions.last().unwrap_or(&first)).map(|(at, _)| *at).collect();
        let found = format_args!("also {}", Positions(&between)).to_string();
        ensure(between == positions, Rule::BatchTogether, format_args!("only {}", Positions(&positions)), found)?;
    }
    Ok(all)
}

async fn follow<S: ReplayStore>(store: Arc<S>, reader: Reader, done: Arc<AtomicBool>, most: usize) -> Verdict<Seen> {
    let mut cursor = reader.from;
    let mut count = 0;
    let mut steps = Vec::new();
    loop {
        // Asked first: a page that is read after the last append is the end if it is empty.
        let last = done.load(Ordering::Acquire);
        let from = ReadFrom::After(cursor);
        let read = Read { max_events: reader.max_events, max_bytes: usize::MAX, ..Read::new(&reader.topics, from) };
        let page = read_page(&*store, read).await?;
        judge_step(cursor, &page).map_err(|violation| {
            let topics: Vec<_> = reader.topics.iter().collect();
            violation.when(format_args!("following {topics:?} after {cursor}, {} at a time", reader.max_events))
        })?;
        count += page.entries.len();
        ensure(count <= most, Rule::Acknowledged, format_args!("at most {most} records"), count)?;
        let (empty, after) = (page.entries.is_empty(), cursor.position());
        cursor = page.through;
        if !empty || cursor.position() > after {
            steps.push(Step { after, page });
        }
        if empty && last {
            return Ok(Seen { reader, steps });
        }
        yield_now().await;
    }
}

/// What can be said of a page while it is not known what was appended.
fn judge_step(cursor: Cursor, page: &Page) -> Verdict {
    ensure(!page.foreign, Rule::NotForeign, format_args!("{cursor} is not foreign"), "foreign")?;
    let mut last = cursor;
    for at in page.entries.iter().map(|entry| entry.cursor()) {
        ensure(at.position() > last.position(), Rule::Ordered, format_args!("a position above {last}"), at)?;
        last = at;
    }
    let through = page.through;
    let forward = through.run() == last.run() && through.position() >= last.position();
    ensure(forward, Rule::ThroughForward, format_args!("`through` at {last} or later"), through)
}

impl Seen {
    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.steps.iter().flat_map(|step| &step.page.entries)
    }

    /// Whether a reader has seen everything that was stored, or was told by the page that passed it.
    pub(super) fn judge(&self, stored: &BTreeMap<u64, Record>, keeps_all: bool) -> Verdict {
        for entry in self.entries() {
            let same = stored.get(&entry.position()).is_some_and(|record| record.body() == entry.record().body());
            ensure(same, Rule::Acknowledged, "only what was acknowledged, where it was", entry.cursor())?;
        }
        for Step { after, page } in &self.steps {
            let there: BTreeSet<u64> = page.entries.iter().map(|entry| entry.position()).collect();
            let through = page.through.position();
            let floor = if keeps_all { 0 } else { page.floor };
            let passed = stored.range(after + 1..=through);
            let mut missing = passed.filter(|(at, record)| {
                self.reader.topics.contains(record.topic()) && !there.contains(at) && **at > floor
            });
            if let Some((missing, _)) = missing.next() {
                // If a later one was readable, then this one was late.
                let late = keeps_all && there.last().is_some_and(|last| last > missing);
                let rule = if late { Rule::NothingLower } else { Rule::OneView };
                let there: Vec<u64> = there.into_iter().collect();
                let found = format!("{}, `through` at {through}, floor {}", Positions(&there), page.floor);
                let expected = format!("{missing}, which was stored, in the page after {after} or under its floor");
                return Err(Violation::new(rule, expected, found).when("following while others append"));
            }
        }
        Ok(())
    }
}
