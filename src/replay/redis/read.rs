//! Reading for many at once: who asks for the same topics while others wait is answered by one call.
//!
//! A node has no more than so many calls under way. Who comes meanwhile waits, and those who wait for the same topics are one
//! group: the log is read from where the one is that has waited longest, and who is further on is given its part, as far as
//! it goes. So any number of clients that come back at once are a few sweeps over what they missed, not a read for each of
//! them, and none of them waits for the others to have all of it.
//!
//! Invariant: a call is sent after all whom it answers have asked, so that nobody reads the past; and a page is what a read of
//! its own would have been.

use super::{
    error::CallError,
    message::decode,
    node::Node,
    script::{Ask, Malformed},
};
use crate::{
    Topics,
    replay::{Cursor, Entry, Page, Read, ReadError, ReadFrom, Run},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};

/// How many calls may be under way: enough to keep the server busy, and few enough that others are not long behind them.
const CALLS: usize = 16;

/// How many pages are read for a group at a time.
const PAGES: usize = 4;

pub(super) struct Request {
    pub(super) read: Read,
    pub(super) reply: oneshot::Sender<Result<Page, ReadError>>,
    pub(super) since: Instant,
}

/// Those who can be answered together.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Group {
    topics: Topics,
    from: From,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum From {
    After(Run),
    Earliest,
    Last(usize),
}

#[derive(Default)]
struct Waiting {
    groups: HashMap<Group, Vec<Request>>,
    order: VecDeque<Group>,
}

impl Waiting {
    fn add(&mut self, request: Request) {
        let from = match request.read.from {
            ReadFrom::After(cursor) => From::After(cursor.run()),
            ReadFrom::Earliest => From::Earliest,
            ReadFrom::Last(n) => From::Last(n),
        };
        let group = Group { topics: request.read.topics.clone(), from };
        let there = self.groups.entry(group).or_insert_with_key(|group| {
            self.order.push_back(group.clone());
            Vec::new()
        });
        there.push(request);
    }

    fn next(&mut self) -> Option<Vec<Request>> {
        let group = self.order.pop_front()?;
        self.groups.remove(&group)
    }
}

/// Answers those who read, until there can be no more of them.
pub(super) async fn serve(node: Arc<Node>, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut waiting = Waiting::default();
    let mut calls: JoinSet<Result<Vec<Request>, Away>> = JoinSet::new();
    let mut is_away = false;
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => waiting.add(request),
                None => return,
            },
            Some(answered) = calls.join_next() => match answered {
                Ok(Ok(rest)) => {
                    is_away = false;
                    for request in rest {
                        waiting.add(request);
                    }
                }
                Ok(Err(Away)) => is_away = true,
                // One that panicked has dropped its requests, which is an answer.
                Err(_) => {}
            },
        }
        while let Ok(request) = requests.try_recv() {
            waiting.add(request);
        }
        while calls.len() < CALLS {
            let Some(group) = waiting.next() else { break };
            calls.spawn(answer(Arc::clone(&node), group, is_away));
        }
    }
}

fn position(request: &Request) -> u64 {
    match request.read.from {
        ReadFrom::After(cursor) => cursor.position(),
        _ => 0,
    }
}

/// A group was told that the server does not answer.
struct Away;

/// Answers a group, but for those who need a call of their own, because it did not reach them.
async fn answer(node: Arc<Node>, mut group: Vec<Request>, is_away: bool) -> Result<Vec<Request>, Away> {
    group.retain(|request| !request.reply.is_closed());
    if is_away {
        // Each is tried for the time that it may be, and not only once those before it have been.
        let longest = node.settings.deadline;
        let (late, in_time): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|request| request.since.elapsed() > longest);
        group = in_time;
        for late in late {
            let _ = late.reply.send(Err(ReadError::new("the server does not answer, and many wait for it")));
        }
        if group.is_empty() {
            return Err(Away);
        }
    }
    let Some(first) = group.iter().min_by_key(|request| request.since) else { return Ok(Vec::new()) };
    let mut read = first.read.clone();
    if group.iter().any(|other| position(other) != position(first)) {
        // With more than one page, so that those who are further on are reached as well.
        let most = |bound: fn(&Read) -> usize| group.iter().map(|request| bound(&request.read)).max().unwrap_or(1);
        read.max_events = most(|read| read.max_events).saturating_mul(PAGES);
        read.max_bytes = most(|read| read.max_bytes).saturating_mul(PAGES);
    } else {
        read.max_events = group.iter().map(|request| request.read.max_events).max().unwrap_or(1);
        read.max_bytes = group.iter().map(|request| request.read.max_bytes).max().unwrap_or(1);
    }
    let found = match node.read(&read).await {
        Ok(found) => found,
        Err(error) => {
            for request in group {
                let _ = request.reply.send(Err(ReadError::new(error.clone())));
            }
            return Err(Away);
        }
    };
    let mut rest = Vec::new();
    for request in group {
        match found.page(&request.read) {
            Some(page) => drop(request.reply.send(Ok(page))),
            None => rest.push(request),
        }
    }
    Ok(rest)
}

/// What one call brought.
struct Found {
    head: Cursor,
    /// From where it was read.
    after: u64,
    /// How far cursors of the run that was asked for are good.
    good: Option<u64>,
    through: u64,
    floor: u64,
    ended: Vec<(crate::Topic, u64)>,
    entries: Vec<Arc<Entry>>,
}

impl Found {
    /// The page of one who asked; `None` if not all of it was brought.
    fn page(&self, read: &Read) -> Option<Page> {
        let run = self.head.run();
        let mut after = 0;
        if let ReadFrom::After(cursor) = read.from {
            after = cursor.position();
            if self.good.is_none_or(|good| after > good) {
                return Some(Page::foreign(self.head));
            }
            if after < self.after {
                return None;
            }
        }
        let (max_events, max_bytes) = (read.max_events.max(1), read.max_bytes.max(1));
        let begin = self.entries.partition_point(|entry| entry.position() <= after);
        let mut page = Page::new(run.at(self.through));
        let (mut bytes, mut is_cut) = (0, false);
        for entry in &self.entries[begin..] {
            if page.entries.len() >= max_events || bytes >= max_bytes {
                is_cut = true;
                break;
            }
            bytes += entry.record().body().len();
            page.entries.push(Arc::clone(entry));
        }
        let is_full = page.entries.len() >= max_events || bytes >= max_bytes;
        if is_cut {
            page.through = page.entries.last()?.cursor();
        } else if self.through < self.head.position() && !is_full {
            return None;
        }
        page.floor = self.floor;
        let through = page.through.position();
        page.finished = self.ended.iter().filter(|(_, end)| *end <= through).map(|(topic, _)| topic.clone()).collect();
        Some(page)
    }
}

impl Node {
    async fn read(&self, read: &Read) -> Result<Found, CallError> {
        let (from, run, position) = match read.from {
            ReadFrom::After(cursor) => ("A", Some(cursor.run()), cursor.position()),
            ReadFrom::Earliest => ("E", None, 0),
            ReadFrom::Last(n) => ("L", None, n as u64),
        };
        let (epoch, number) = run.map_or((0, 0), |run| (run.epoch, run.number));
        let mut ask = Ask::default().arg(from).number_text(epoch).number_text(number.into()).number(position);
        ask = ask.number(read.max_events.max(1)).number(read.max_bytes.max(1));
        for topic in &read.topics {
            ask = self.keys.of_topic(topic).into_iter().fold(ask, Ask::key).arg(topic.as_key());
        }
        let (head, mut answer) = self.ask_again(self.links.a_read(), &self.scripts.read, &ask).await?;
        let mut found = || {
            let good: i64 = answer.number()?;
            let mut found = Found {
                head,
                after: position,
                good: u64::try_from(good).ok(),
                through: answer.number()?,
                floor: answer.number()?,
                ended: Vec::new(),
                entries: Vec::with_capacity(answer.len() / 2),
            };
            for _ in 0..answer.number::<usize>()? {
                let topic = read.topics.iter().nth(answer.number()?).ok_or(Malformed)?;
                found.ended.push((topic.clone(), answer.number()?));
            }
            while !answer.is_empty() {
                let cursor = head.run().at(answer.number()?);
                let record = decode(&answer.bytes()?).ok_or(Malformed)?;
                found.entries.push(Arc::new(Entry::new(cursor, record)));
            }
            Ok(found)
        };
        found().map_err(|error: Malformed| CallError { is_passing: false, ..CallError::new(error, false) })
    }
}
