//! Appending, reading, evicting, forgetting, finishing and replacing at the same time.

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
/// How often a key is replaced with a page read since the time before.
const REPLACED: usize = 100;

/// Batches for several writers; each has a record of every topic, so that no reader is without news.
pub(super) fn batches(topics: [&Topic; 2], count: usize) -> Vec<Vec<Vec<Record>>> {
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
    Read { max_events: ALL.0, max_bytes: ALL.1, ..Read::new(topics, from) }
}

/// Reads some topics in two tasks, again and again, while something is done, which is told that there were pages.
async fn while_read<S, J>(
    store: &Arc<S>,
    topics: &Topics,
    start: Cursor,
    judge: J,
    doing: impl AsyncFnOnce(mpsc::Receiver<()>) -> Verdict,
) -> Verdict
where
    S: ReplayStore,
    J: FnMut(&Page) -> Verdict + Clone + Send + 'static,
{
    let done = Arc::new(AtomicBool::new(false));
    let (pages, mut news) = mpsc::channel(1);
    let mut reading = JoinSet::new();
    for from in [ReadFrom::Earliest, ReadFrom::After(start)] {
        let (store, done, pages) = (Arc::clone(store), Arc::clone(&done), pages.clone());
        let (read, mut judge) = (read(topics, from), judge.clone());
        reading.spawn(async move {
            loop {
                let last = done.load(Ordering::Acquire);
                judge(&read_page(&*store, read.clone()).await?)?;
                if last {
                    return Ok(());
                }
                // It is enough to know that someone reads.
                let _ = pages.try_send(());
                yield_now().await;
            }
        });
    }
    drop(pages);
    news.recv().await;
    let did = doing(news).await;
    done.store(true, Ordering::Release);
    joined(reading).await?;
    did
}

/// Whether a page has a topic as it was before it was forgotten, or as it is after.
pub(super) async fn forgetting<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (kept, gone) = (topic("kept"), topic("gone"));
    let both = topics([&kept, &gone]);
    let (store, start) = (Arc::clone(&log.store), log.book.run.at(0));
    for _ in 0..ROUNDS {
        log.append_to(&[&gone, &kept, &gone, &gone, &kept, &gone, &gone]).await?;
        let mut watch = Watch {
            gone: gone.clone(),
            before: log.book.positions(&(&gone).into()),
            others: log.book.positions(&(&kept).into()),
            is_gone: false,
        };
        while_read(&store, &both, start, move |page| watch.judge(page), async |_| log.forget(&gone).await).await?;
    }
    log.read_around(&both).await
}

/// One reader's view of a topic that is forgotten.
#[derive(Clone)]
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

/// Whether each page has one record of a key, however often it is replaced meanwhile.
pub(super) async fn replacing<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    let both = topics([&a, &b]);
    log.append_to(&[&a, &b]).await?;
    let others = [log.event(&a).with_key("k"), log.latest(&a, "l"), log.latest(&b, "k")];
    log.append(others).await?;
    let mut view = View { topic: a.clone(), key: "k", others: log.book.positions(&both), newest: 0 };
    let first = log.latest(&a, "k");
    log.append([first]).await?;
    let (store, start) = (Arc::clone(&log.store), log.book.run.at(0));
    let replace = async |mut pages: mpsc::Receiver<()>| {
        let mut seen = 0;
        while seen < REPLACED && !pages.is_closed() {
            let batch = match seen % 3 {
                0 => vec![log.latest(&a, "k")],
                1 => vec![log.removal(&a, "k")],
                _ => vec![log.latest(&a, "k"), log.latest(&a, "k")],
            };
            log.append(batch).await?;
            yield_now().await;
            seen += usize::from(pages.try_recv().is_ok());
        }
        Ok(())
    };
    while_read(&store, &both, start, move |page| view.judge(page), replace).await?;
    log.read(&both, ReadFrom::Earliest).await.map(drop)
}

/// One reader's view of a key that is replaced again and again.
#[derive(Clone)]
struct View {
    topic: Topic,
    key: &'static str,
    others: Vec<u64>,
    newest: u64,
}

impl View {
    fn judge(&mut self, page: &Page) -> Verdict {
        self.judge_page(page)
            .map_err(|violation| violation.when(format_args!("reading while {:?} is replaced", self.key)))
    }

    fn judge_page(&mut self, page: &Page) -> Verdict {
        let is_of_key = |record: &Record| *record.topic() == self.topic && record.replaces() == Some(self.key);
        let (of_key, rest): (Vec<_>, Vec<_>) = page.entries.iter().partition(|entry| is_of_key(entry.record()));
        let of_key: Vec<u64> = of_key.into_iter().map(|entry| entry.position()).collect();
        let rest: Vec<u64> = rest.into_iter().map(|entry| entry.position()).collect();
        let (others, found) = (Positions(&self.others), Positions(&of_key));
        ensure(rest == self.others, Rule::ReplacesOnly, format_args!("also {others}"), Positions(&rest))?;
        ensure(of_key.len() == 1, Rule::ReplacesAtOnce, "one record of the key", &found)?;
        let expected = format_args!("none older than {}, which was read", self.newest).to_string();
        ensure(of_key[0] >= self.newest, Rule::Replaces, expected, &found)?;
        self.newest = of_key[0];
        Ok(())
    }
}

/// Whether of a key that several tasks replace one record is left: the newest.
pub(super) async fn replacing_from_several_tasks<S: ReplayStore>(log: Trial<S>) -> Verdict {
    for round in 0..ROUNDS {
        let a = topic(&format!("round {round}"));
        let mut tasks = JoinSet::new();
        for n in 0..5 {
            let (store, a) = (Arc::clone(&log.store), a.clone());
            tasks.spawn(async move {
                for _ in 0..(round + n) % 3 {
                    yield_now().await;
                }
                let mut newest = 0;
                for m in 0..3 {
                    let record = Record::latest(&a, "k", Event::new().data(format!("no. {n}.{m}")));
                    let outcomes = append(&*store, [record].into()).await?;
                    newest = outcomes.into_iter().flatten().map(Cursor::position).max().unwrap_or(newest);
                }
                Ok(newest)
            });
        }
        let newest = joined(tasks).await?.into_iter().max().unwrap_or(0);
        let there = positions(&read_page(&*log.store, read(&(&a).into(), ReadFrom::Earliest)).await?);
        let rule = if there.contains(&newest) { Rule::Replaces } else { Rule::ReplacesOnly };
        ensure(there == [newest], rule, format_args!("only {newest}"), Positions(&there))
            .map_err(|violation| violation.when("replacing a key from several tasks"))?;
    }
    Ok(())
}
