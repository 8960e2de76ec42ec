//! Stores of a log that several nodes share: one log, and a feed for each node.

use super::{
    Keep,
    follow::joined,
    judge::{difference, positions},
    race::batches,
    rule::{Positions, Rule, Verdict, Violation, ensure},
    trial::{append, forget, head, in_time, read_page, topic},
};
use crate::{
    Event, Topic,
    replay::{Cursor, Feed, FeedItem, Notice, Read, ReadFrom, Record, Refused, ReplayStore},
};
use bytes::Bytes;
use futures_core::Stream as _;
use std::{collections::BTreeMap, future::poll_fn, pin::pin, sync::Arc};
use tokio::task::{JoinSet, yield_now};

/// Two nodes of a new log.
struct Nodes<S> {
    stores: [Arc<S>; 2],
    start: Cursor,
}

impl<S: ReplayStore> Nodes<S> {
    async fn new(new_nodes: &impl AsyncFn(Keep) -> [S; 2]) -> Verdict<Self> {
        let stores = in_time("opening two nodes", new_nodes(Keep::ALL)).await?.map(Arc::new);
        let (start, other) = (head(&*stores[0]).await?, head(&*stores[1]).await?);
        ensure(start == other, Rule::OneRun, format_args!("the head {start} on both"), other)?;
        Ok(Self { stores, start })
    }

    /// What follows a place, as a node's feed gives it.
    fn listen(&self, node: usize, after: Cursor) -> Verdict<Listener> {
        let feed = self.stores[node].feed(after);
        let feed = feed.ok_or_else(|| Violation::new(Rule::Feed, "a feed", "none"))?;
        Ok(Listener { feed, last: after, missed: 0 })
    }

    async fn append(&self, node: usize, record: Record) -> Verdict<Result<Cursor, Refused>> {
        let mut outcomes = append(&*self.stores[node], [record].into()).await?;
        outcomes.pop().ok_or_else(|| Violation::new(Rule::Outcomes, "1 outcome", 0))
    }

    async fn stored(&self, node: usize, record: Record) -> Verdict<Cursor> {
        let outcome = self.append(node, record).await?;
        outcome.map_err(|refused| Violation::new(Rule::Answers, "a cursor", format_args!("Err({refused:?})")))
    }
}

/// One feed, and how far it has come.
struct Listener {
    feed: Feed,
    last: Cursor,
    missed: u64,
}

impl Listener {
    /// The next item that is news, checked against what came before it.
    async fn next(&mut self) -> Verdict<FeedItem> {
        loop {
            let mut feed = pin!(&mut self.feed);
            let doing = "waiting for the feed";
            let item = in_time(doing, poll_fn(|cx| feed.as_mut().poll_next(cx))).await;
            let item = item.map_err(|violation| violation.under(|_| Rule::FeedComplete))?;
            match item.ok_or_else(|| Violation::new(Rule::Feed, "a feed that goes on", "its end"))? {
                FeedItem::Lost => {}
                FeedItem::Caught { missed } => self.missed += missed,
                FeedItem::Record(cursor, record) => {
                    let (last, run) = (self.last.position(), self.last.run());
                    let expected = format_args!("a position above {last} in {run:?}").to_string();
                    ensure(cursor.run() == run && cursor.position() > last, Rule::FeedOrder, expected, cursor)?;
                    self.last = cursor;
                    return Ok(FeedItem::Record(cursor, record));
                }
                other => return Ok(other),
            }
        }
    }

    /// All records up to one.
    async fn up_to(&mut self, position: u64) -> Verdict<BTreeMap<u64, Record>> {
        let mut records = BTreeMap::new();
        while self.last.position() < position {
            match self.next().await? {
                FeedItem::Record(cursor, record) => drop(records.insert(cursor.position(), record)),
                other => return Err(Violation::new(Rule::FeedComplete, "records only", format_args!("{other:?}"))),
            }
        }
        Ok(records)
    }
}

fn event(topic: &Topic, text: &str) -> Record {
    Record::new(topic, Event::new().data(text))
}

pub(super) async fn order<S: ReplayStore>(new_nodes: &impl AsyncFn(Keep) -> [S; 2]) -> Verdict {
    let nodes = Nodes::new(new_nodes).await?;
    let (a, b) = (topic("a"), topic("b"));
    let listeners = [nodes.listen(0, nodes.start)?, nodes.listen(1, nodes.start)?];
    let mut writing = JoinSet::new();
    for (writer, batches) in batches([&a, &b], 15).into_iter().enumerate() {
        let store = Arc::clone(&nodes.stores[writer % 2]);
        writing.spawn(async move {
            let mut stored = Vec::new();
            for batch in batches {
                let batch: Arc<[Record]> = batch.into();
                let outcomes = append(&*store, Arc::clone(&batch)).await?;
                let positions: Vec<u64> = outcomes.iter().flatten().map(|cursor| cursor.position()).collect();
                ensure(positions.len() == batch.len(), Rule::Answers, "cursors", format_args!("{outcomes:?}"))?;
                stored.extend(positions.into_iter().zip(batch.iter().cloned()));
                yield_now().await;
            }
            Ok(stored)
        });
    }
    let stored: Vec<(u64, Record)> = joined(writing).await?.concat();
    let count = stored.len();
    let stored: BTreeMap<u64, Record> = stored.into_iter().collect();
    ensure(stored.len() == count, Rule::PositionsRise, format_args!("{count} positions"), stored.len())?;
    let Some(newest) = stored.last_key_value().map(|(position, _)| *position) else { return Ok(()) };
    for listener in listeners {
        judge(listener, &stored, newest).await?;
    }
    // From the middle as well, now that all is there.
    let middle = stored.keys().nth(count / 2).copied().unwrap_or(newest);
    judge(nodes.listen(1, nodes.start.run().at(middle))?, &stored, newest).await
}

/// Whether a feed gives all that was stored after where it began.
async fn judge(mut listener: Listener, stored: &BTreeMap<u64, Record>, newest: u64) -> Verdict {
    let begun = listener.last.position();
    let expected: Vec<u64> = stored.keys().copied().filter(|position| *position > begun).collect();
    let given = listener.up_to(newest).await?;
    let found: Vec<u64> = given.keys().copied().collect();
    ensure(found == expected, Rule::FeedComplete, Positions(&expected), Positions(&found))?;
    for (position, record) in &given {
        let what = stored.get(position).and_then(|stored| difference(stored, record));
        let found = format_args!("another {}", what.unwrap_or_default()).to_string();
        ensure(what.is_none(), Rule::FeedRecords, format_args!("the record {position} as it was given"), found)?;
    }
    Ok(())
}

pub(super) async fn view<S: ReplayStore>(new_nodes: &impl AsyncFn(Keep) -> [S; 2]) -> Verdict {
    let nodes = Nodes::new(new_nodes).await?;
    let done = topic("done");
    for round in 0..20 {
        let (writer, reader) = (round % 2, 1 - round % 2);
        let a = topic(&format!("round {round}"));
        let record = || event(&a, "once").with_idempotency_key("k");
        match nodes.append(writer, record()).await? {
            // It remembers none.
            Err(Refused::Other(_)) => {}
            first => {
                let again = nodes.append(reader, record()).await?;
                let known = matches!((&first, &again), (Ok(first), Err(Refused::Duplicate(at))) if first == at);
                let found = format_args!("{first:?} on one node and {again:?} on the other").to_string();
                ensure(known, Rule::SharedView, "a repeat that is known", found)?;
            }
        }
        let cursor = nodes.stored(writer, event(&a, "seen")).await?;
        let newest = head(&*nodes.stores[reader]).await?;
        let is_past = newest.run() == cursor.run() && newest.position() >= cursor.position();
        ensure(is_past, Rule::SharedView, format_args!("the head {cursor} on the other node"), newest)?;
        let page = read_page(&*nodes.stores[reader], Read::new(&a, ReadFrom::After(cursor.before()))).await?;
        let found = positions(&page);
        let expected = [cursor.position()];
        ensure(found == expected, Rule::SharedView, Positions(&expected), Positions(&found))?;
    }
    nodes.stored(0, Record::finish(&done, None)).await?;
    let late = nodes.append(1, event(&done, "late")).await?;
    ensure(late == Err(Refused::Finished), Rule::SharedView, "Err(Finished)", format_args!("{late:?}"))
}

pub(super) async fn forgetting<S: ReplayStore>(new_nodes: &impl AsyncFn(Keep) -> [S; 2]) -> Verdict {
    let nodes = Nodes::new(new_nodes).await?;
    let mut listeners = [nodes.listen(0, nodes.start)?, nodes.listen(1, nodes.start)?];
    let (a, b) = (topic("a"), topic("b"));
    nodes.stored(0, event(&a, "before")).await?;
    let end = nodes.stored(1, Record::finish(&a, None)).await?;
    // A feed that comes to them later may skip them: they are no longer held.
    for listener in &mut listeners {
        let before = listener.up_to(end.position()).await?;
        ensure(before.len() == 2, Rule::FeedComplete, "2 records", before.len())?;
    }
    forget(&*nodes.stores[1], a.clone()).await?;
    nodes.stored(0, event(&a, "after")).await?;
    let last = nodes.stored(1, event(&b, "last")).await?;
    for listener in &mut listeners {
        let mut items = Vec::new();
        while listener.last != last {
            items.push(match listener.next().await? {
                FeedItem::Record(_, record) => record.data().map(std::borrow::Cow::into_owned).unwrap_or_default(),
                FeedItem::Forgotten(topic, _) => format!("{} is forgotten", topic.name()),
                other => format!("{other:?}"),
            });
        }
        let expected = ["a is forgotten", "after", "last"];
        ensure(items == expected, Rule::FeedForgets, format_args!("{expected:?}"), format_args!("{items:?}"))?;
    }
    Ok(())
}

pub(super) async fn notices<S: ReplayStore>(new_nodes: &impl AsyncFn(Keep) -> [S; 2]) -> Verdict {
    let nodes = Nodes::new(new_nodes).await?;
    let mut listeners = [nodes.listen(0, nodes.start)?, nodes.listen(1, nodes.start)?];
    let a = topic("a");
    // Once this is there, both feeds are.
    let first = nodes.stored(0, event(&a, "first")).await?;
    for listener in &mut listeners {
        listener.up_to(first.position()).await?;
    }
    let label = |n: usize| event(&a, "typing").with_label("n", n.to_string()).with_key("k");
    for node in [0, 1, 0] {
        let said = vec![
            Notice::Ephemeral(label(node)),
            Notice::Control(Bytes::from_static(b"\0\xff\n")),
            Notice::Control(Bytes::new()),
        ];
        let sent = in_time("sending notices", nodes.stores[node].notify(said)).await?;
        sent.map_err(|error| Violation::new(Rule::Answers, "notices to be sent", error))?;
        for listener in &mut listeners {
            let heard = listener.next().await.map_err(unheard)?;
            let (same, found) = match &heard {
                FeedItem::Notice(Notice::Ephemeral(record)) => (difference(&label(node), record), String::new()),
                other => (Some("item"), format!("{other:?}")),
            };
            // The two were not made at the same moment.
            let same = same.filter(|what| *what != "time");
            let found = format_args!("another {} {found}", same.unwrap_or_default()).to_string();
            ensure(same.is_none(), Rule::FeedNotices, "the ephemeral record", found)?;
            for said in [&b"\0\xff\n"[..], b""] {
                let heard = listener.next().await.map_err(unheard)?;
                let same = matches!(&heard, FeedItem::Notice(Notice::Control(control)) if *control == said);
                ensure(same, Rule::FeedNotices, format_args!("{said:?}"), format_args!("{heard:?}"))?;
            }
        }
    }
    let page = read_page(&*nodes.stores[0], Read::new(&a, ReadFrom::Earliest)).await?;
    let (expected, found) = ([first.position()], positions(&page));
    ensure(found == expected, Rule::FeedNotices, "notices that are not in the log", Positions(&found))
}

/// A feed that is silent does not give the notice.
fn unheard(violation: Violation) -> Violation {
    violation.under(|rule| if rule == Rule::FeedComplete { Rule::FeedNotices } else { rule })
}
