//! Appending, reading, evicting, forgetting and finishing at the same time.

use super::{
    follow::{Reader, joined, race},
    judge::positions,
    rule::{Positions, Rule, Verdict, Violation, ensure},
    trial::{ALL, Trial, append, forget, head, read_page, topic, topics},
};
use crate::{
    Event, Topic, Topics,
    replay::{Cursor, Kind, Page, Read, ReadFrom, Record, ReplayStore},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, yield_now},
};

const WRITERS: usize = 4;
const ROUNDS: usize = 10;

/// Batches for several writers; each has a record of every topic, so that no reader is without news.
fn batches(topics: [&Topic; 2], count: usize) -> Vec<Vec<Vec<Record>>> {
    let record = |writer, batch, n: usize| {
        Record::new(topics[n % 2], Event::new().data(format!("writer {writer}, batch {batch}, no. {n}")))
    };
    let batch = |writer, batch| (0..2 + (writer + batch) % 3).map(|n| record(writer, batch, n)).collect();
    (0..WRITERS).map(|writer| (0..count).map(|n| batch(writer, n)).collect()).collect()
}

/// Of a store that keeps everything.
pub(super) async fn appending<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    log.append_to(&[&a, &b]).await?;
    let start = log.head().await?;
    let reader = |topics, max_events| Reader { topics, from: start, max_events };
    let readers = vec![
        reader(topics([&a, &b]), ALL.0),
        reader(topics([&a, &b]), 1),
        reader(topics([&a]), 3),
        reader(topics([&b]), ALL.0),
    ];
    let (stored, seen) = race(&log.store, start, batches([&a, &b], 15), readers).await?;
    seen.iter().try_for_each(|seen| seen.judge(&stored, true))
}

/// Whether every head, while others append, is a place to begin.
pub(super) async fn heads<S: ReplayStore>(log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    let done = Arc::new(AtomicBool::new(false));
    let mut writing = JoinSet::new();
    let look = |store: Arc<S>, done: Arc<AtomicBool>, topics: Topics| async move {
        while !done.load(Ordering::Acquire) {
            let head = head(&*store).await?;
            let page = read_page(&*store, read(&topics, ReadFrom::After(head))).await?;
            ensure(!page.foreign, Rule::Head, format_args!("a head that is readable, as {head}"), "it is foreign")?;
            yield_now().await;
        }
        Ok(())
    };
    let mut looking = JoinSet::new();
    looking.spawn(look(Arc::clone(&log.store), Arc::clone(&done), topics([&a, &b])));
    for batches in batches([&a, &b], 10) {
        let store = Arc::clone(&log.store);
        writing.spawn(async move {
            for batch in batches {
                append(&*store, batch.into()).await?;
                yield_now().await;
            }
            Ok(())
        });
    }
    joined(writing).await?;
    done.store(true, Ordering::Release);
    joined(looking).await.map(drop)
}

/// Of a store that keeps a few events of each topic.
pub(super) async fn evicting<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    let start = log.head().await?;
    let reader = |topics, max_events| Reader { topics, from: start, max_events };
    let readers = vec![reader(topics([&a, &b]), ALL.0), reader(topics([&a]), 1), reader(topics([&a, &b]), 2)];
    let (stored, seen) = race(&log.store, start, batches([&a, &b], 20), readers).await?;
    seen.iter().try_for_each(|seen| seen.judge(&stored, false))
}

fn read(topics: &Topics, from: ReadFrom) -> Read {
    Read { topics: topics.clone(), from, max_events: ALL.0, max_bytes: ALL.1 }
}

/// Whether a page has a topic as it was before it was forgotten, or as it is after.
pub(super) async fn forgetting<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (kept, gone) = (topic("kept"), topic("gone"));
    let both = topics([&kept, &gone]);
    for _ in 0..ROUNDS {
        log.append_to(&[&gone, &kept, &gone, &gone, &kept, &gone, &gone]).await?;
        let done = Arc::new(AtomicBool::new(false));
        let (began, mut beginnings) = mpsc::channel(1);
        let mut reading = JoinSet::new();
        for from in [ReadFrom::Earliest, log.after(0)] {
            let (store, done, began, read) =
                (Arc::clone(&log.store), Arc::clone(&done), began.clone(), read(&both, from));
            let mut watch = Watch {
                gone: gone.clone(),
                before: log.book.positions(&(&gone).into()),
                others: log.book.positions(&(&kept).into()),
                is_gone: false,
            };
            reading.spawn(async move {
                loop {
                    let last = done.load(Ordering::Acquire);
                    watch.judge(&read_page(&*store, read.clone()).await?)?;
                    if last {
                        return Ok(());
                    }
                    // It is enough to know that someone reads.
                    let _ = began.try_send(());
                    yield_now().await;
                }
            });
        }
        drop(began);
        beginnings.recv().await;
        let forgotten = log.forget(&gone).await;
        done.store(true, Ordering::Release);
        joined(reading).await?;
        forgotten?;
    }
    log.read_around(&both).await
}

/// One reader's view of a topic that is forgotten.
struct Watch {
    gone: Topic,
    before: Vec<u64>,
    others: Vec<u64>,
    is_gone: bool,
}

impl Watch {
    fn judge(&mut self, page: &Page) -> Verdict {
        self.judge_page(page)
            .map_err(|violation| violation.when(format_args!("reading while {:?} is forgotten", self.gone)))
    }

    fn judge_page(&mut self, page: &Page) -> Verdict {
        let (of_gone, rest): (Vec<_>, Vec<_>) =
            page.entries.iter().partition(|entry| *entry.record().topic() == self.gone);
        let of_gone: Vec<u64> = of_gone.into_iter().map(|entry| entry.position()).collect();
        let rest: Vec<u64> = rest.into_iter().map(|entry| entry.position()).collect();
        let others = Positions(&self.others);
        ensure(rest == self.others, Rule::ForgetOnly, format_args!("of the other topic {others}"), Positions(&rest))?;
        self.is_gone |= of_gone.is_empty();
        let (before, found) = (Positions(&self.before), Positions(&of_gone));
        if !self.is_gone {
            return ensure(of_gone == self.before, Rule::OneView, format_args!("all of {before}, or nothing"), found);
        }
        ensure(of_gone.is_empty(), Rule::ForgetRemoves, "nothing of a topic that was gone", found)?;
        let last = self.before.last().copied().unwrap_or(0);
        let expected = format_args!("a floor of at least {last} where {before} is gone").to_string();
        ensure(page.floor >= last, Rule::OneView, expected, page.floor)
    }
}

/// Whether what is appended to a topic while it is forgotten is either held or below the floor.
pub(super) async fn forgetting_what_is_appended<S: ReplayStore>(log: Trial<S>) -> Verdict {
    let a = topic("a");
    let mut given = Vec::new();
    for round in 0..ROUNDS {
        let mut tasks = JoinSet::new();
        for n in 0..3 {
            let (store, a) = (Arc::clone(&log.store), a.clone());
            tasks.spawn(async move {
                for _ in 0..(round + n) % 3 {
                    yield_now().await;
                }
                if n == 0 {
                    forget(&*store, a).await?;
                    return Ok(Vec::new());
                }
                let record = |m| Record::new(&a, Event::new().data(format!("round {round}, no. {n}.{m}")));
                let batch: Vec<_> = (0..2).map(record).collect();
                let outcomes = append(&*store, batch.into()).await?;
                Ok(outcomes.into_iter().flatten().map(Cursor::position).collect())
            });
        }
        given.extend(joined(tasks).await?.concat());
        let page = read_page(&*log.store, read(&(&a).into(), ReadFrom::Earliest)).await?;
        let there = positions(&page);
        let missing = given.iter().find(|position| **position > page.floor && !there.contains(position));
        let expected = format_args!("{} held or below the floor", missing.unwrap_or(&0)).to_string();
        let found = format_args!("{}, floor {}", Positions(&there), page.floor).to_string();
        ensure(missing.is_none(), Rule::FloorCovers, expected, found)
            .map_err(|violation| violation.when("appending to a topic while it is forgotten"))?;
    }
    Ok(())
}

/// Whether a topic that several tasks finish has one end, and nothing behind it.
pub(super) async fn finishing<S: ReplayStore>(log: Trial<S>) -> Verdict {
    for round in 0..ROUNDS {
        let a = topic(&format!("round {round}"));
        let mut tasks = JoinSet::new();
        for n in 0..5 {
            let (store, a) = (Arc::clone(&log.store), a.clone());
            tasks.spawn(async move {
                for _ in 0..(round + n) % 3 {
                    yield_now().await;
                }
                let event = Event::new().data(format!("no. {n}"));
                let record = if n < 2 { Record::finish(&a, Some(event)) } else { Record::new(&a, event) };
                let kind = record.kind();
                append(&*store, [record].into()).await.map(|outcomes| (kind, outcomes))
            });
        }
        let outcomes = joined(tasks).await?;
        let given = |of: Kind| {
            let of_kind = outcomes.iter().filter(move |(kind, _)| *kind == of);
            of_kind.flat_map(|(_, outcomes)| outcomes).flatten().map(|cursor| cursor.position()).collect::<Vec<_>>()
        };
        let doing = |violation: Violation| violation.when("finishing a topic from several tasks");
        let ends = given(Kind::Finish);
        ensure(ends.len() == 1, Rule::FinishRefuses, "one end", Positions(&ends)).map_err(doing)?;
        let late: Vec<u64> = given(Kind::Event).into_iter().filter(|at| *at > ends[0]).collect();
        let expected = format_args!("nothing behind the end at {}", ends[0]).to_string();
        ensure(late.is_empty(), Rule::FinishRefuses, expected, Positions(&late)).map_err(doing)?;
    }
    Ok(())
}
