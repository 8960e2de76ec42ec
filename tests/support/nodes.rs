//! A log in memory that several hubs share as nodes, and whose feeds can be cut.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tidings::{
    Event, Hub, Subscription, Topic,
    replay::{AppendError, Cursor, Feed, FeedItem, Notice, Page, Read, ReadError, Record, Refused, ReplayStore, Ring},
    test_util::next_event,
};

/// The log, as a server would have it.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<State>>);

struct State {
    ring: Arc<Ring>,
    head: Cursor,
    /// What a feed gives, each with its place.
    history: Vec<(Cursor, FeedItem)>,
    nodes: Vec<Channel>,
    /// The next append is stored, and its answer is lost.
    loses_answer: bool,
    /// How often one was asked for.
    feeds: usize,
    /// What happens when a node asks where the log is, and whenever it reads.
    before_head: Option<Hook>,
    during_reads: Option<Topic>,
}

type Hook = Box<dyn FnOnce(&Log) + Send>;

/// What one node's feed is to give next.
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
struct Channel {
    at: usize,
    notices: Vec<Notice>,
    cut: bool,
    was_cut: bool,
    missed: u64,
    panics: bool,
    ends: bool,
    notify_panics: bool,
    /// How much more is given before it comes to a halt.
    only: Option<usize>,
    wakers: Vec<Waker>,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self::over(Ring::new())
    }

    pub(crate) fn over(ring: Ring) -> Self {
        let ring = Arc::new(ring);
        let head = ready(ring.head()).unwrap();
        let state = State {
            ring,
            head,
            history: Vec::new(),
            nodes: Vec::new(),
            loses_answer: false,
            feeds: 0,
            before_head: None,
            during_reads: None,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The store of one more node.
    pub(crate) fn node(&self) -> Node {
        let mut state = self.lock();
        let channel = Channel {
            at: 0,
            notices: Vec::new(),
            cut: false,
            was_cut: true,
            missed: 0,
            panics: false,
            ends: false,
            notify_panics: false,
            only: None,
            wakers: Vec::new(),
        };
        state.nodes.push(channel);
        Node { log: self.clone(), number: state.nodes.len() - 1 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        let wakers: Vec<_> = state.nodes.iter_mut().flat_map(|node| node.wakers.drain(..)).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    /// From now on a node hears nothing.
    pub(crate) fn cut(&self, node: usize) {
        self.change(|state| state.nodes[node].cut = true);
    }

    pub(crate) fn heal(&self, node: usize) {
        self.change(|state| state.nodes[node].cut = false);
    }

    /// A node hears so much more of the log, and then nothing until it is let go.
    pub(crate) fn halt_after(&self, node: usize, items: usize) {
        self.change(|state| state.nodes[node].only = Some(items));
    }

    pub(crate) fn let_go(&self, node: usize) {
        self.change(|state| state.nodes[node].only = None);
    }

    /// Does something when a node next asks where the log is, before it is answered.
    pub(crate) fn before_head(&self, hook: impl FnOnce(&Log) + Send + 'static) {
        self.lock().before_head = Some(Box::new(hook));
    }

    /// Another node forgets a topic while one reads, and all have heard of that before they have their page.
    pub(crate) fn forget_during_reads(&self, topic: Option<Topic>) {
        self.lock().during_reads = topic;
    }

    pub(crate) fn break_notify(&self, node: usize, breaks: bool) {
        self.lock().nodes[node].notify_panics = breaks;
    }

    /// What another node appends.
    pub(crate) fn append(&self, records: &Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        self.change(|state| {
            let outcomes = state.ring.try_append(records).unwrap()?;
            for (record, outcome) in records.iter().zip(&outcomes) {
                if let Ok(cursor) = outcome {
                    state.head = *cursor;
                    state.history.push((*cursor, FeedItem::Record(*cursor, record.clone())));
                }
            }
            if std::mem::take(&mut state.loses_answer) {
                return Err(AppendError::unknown("the answer was lost"));
            }
            Ok(outcomes)
        })
    }

    /// What another node forgets.
    pub(crate) fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.change(|state| {
            ready(state.ring.forget(topic.clone()))?;
            // The ring has no place for it: the next record's would do as well, so it stands behind the newest.
            state.history.push((state.head, FeedItem::Forgotten(topic, state.head)));
            Ok(())
        })
    }

    /// A node will never be told one by one what it has not heard yet.
    pub(crate) fn skip(&self, node: usize) {
        self.change(|state| {
            let head = state.head;
            state.nodes[node].at = state.history.len();
            state.history.push((head, FeedItem::Skip(head)));
        });
    }

    /// The log was lost, and another took its place.
    pub(crate) fn replace(&self) {
        self.change(|state| {
            state.ring = Arc::new(Ring::new());
            state.head = ready(state.ring.head()).unwrap();
            state.history.push((state.head, FeedItem::Skip(state.head)));
        });
    }

    pub(crate) fn lose_the_next_answer(&self) {
        self.change(|state| state.loses_answer = true);
    }

    pub(crate) fn break_feed(&self, node: usize, by_a_panic: bool) {
        self.change(|state| {
            let node = &mut state.nodes[node];
            *(if by_a_panic { &mut node.panics } else { &mut node.ends }) = true;
        });
    }

    /// How often a feed was asked for.
    pub(crate) fn feeds(&self) -> usize {
        self.lock().feeds
    }

    /// How many nodes have not let go of the log.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// The ring never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("it waits"),
    }
}

pub(crate) struct Node {
    log: Log,
    number: usize,
}

impl ReplayStore for Node {
    async fn head(&self) -> Result<Cursor, ReadError> {
        let hook = self.log.lock().before_head.take();
        if let Some(hook) = hook {
            hook(&self.log);
        }
        Ok(self.log.lock().head)
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        // So that batches of several nodes mix.
        tokio::task::yield_now().await;
        self.log.append(&records)
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        tokio::task::yield_now().await;
        let ring = Arc::clone(&self.log.lock().ring);
        let page = ring.read(read).await;
        let forgets = self.log.lock().during_reads.clone();
        if let Some(topic) = forgets {
            self.log.forget(topic)?;
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        page
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.log.forget(topic)
    }

    fn feed(&self, after: Cursor) -> Option<Feed> {
        self.log.change(|state| {
            state.feeds += 1;
            let is_behind =
                |(place, _): &(Cursor, FeedItem)| place.run() == after.run() && place.position() <= after.position();
            // It says when it is there.
            state.nodes[self.number].was_cut = true;
            state.nodes[self.number].at = state.history.iter().rposition(is_behind).map_or(0, |last| last + 1);
        });
        Some(Feed::new(Items { log: self.log.clone(), node: self.number, ready: Vec::new() }))
    }

    async fn notify(&self, notices: Vec<Notice>) -> Result<(), ReadError> {
        self.log.change(|state| {
            assert!(!state.nodes[self.number].notify_panics, "as the test wants it");
            if state.nodes[self.number].cut {
                return Err(ReadError::new("cut off"));
            }
            for node in &mut state.nodes {
                if !node.cut {
                    node.notices.extend(notices.iter().cloned());
                }
            }
            Ok(())
        })
    }
}

struct Items {
    log: Log,
    node: usize,
    ready: Vec<FeedItem>,
}

impl futures_util::Stream for Items {
    type Item = FeedItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FeedItem>> {
        if let Some(item) = self.ready.pop() {
            return Poll::Ready(Some(item));
        }
        let log = self.log.clone();
        let mut state = log.lock();
        let State { history, nodes, .. } = &mut *state;
        let node = &mut nodes[self.node];
        assert!(!std::mem::take(&mut node.panics), "as the test wants it");
        if std::mem::take(&mut node.ends) {
            return Poll::Ready(None);
        }
        if node.cut {
            if !std::mem::replace(&mut node.was_cut, true) {
                return Poll::Ready(Some(FeedItem::Lost));
            }
        } else if node.only == Some(0) {
            // The rest comes later.
        } else if let Some((_, item)) = history.get(node.at) {
            node.at += 1;
            node.only = node.only.map(|only| only - 1);
            node.missed += u64::from(node.was_cut);
            return Poll::Ready(Some(item.clone()));
        } else if std::mem::take(&mut node.was_cut) {
            return Poll::Ready(Some(FeedItem::Caught { missed: std::mem::take(&mut node.missed) }));
        } else if !node.notices.is_empty() {
            self.ready = node.notices.drain(..).rev().map(FeedItem::Notice).collect();
            return Poll::Ready(self.ready.pop());
        }
        node.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

/// A hub of one more node.
pub(crate) async fn open(log: &Log) -> Hub {
    Hub::builder().open(log.node()).await.unwrap()
}

pub(crate) fn text(n: impl std::fmt::Display) -> Event {
    Event::new().data(n.to_string())
}

pub(crate) async fn next_text(subscription: &mut Subscription) -> String {
    next_event(subscription).await.record().data().unwrap().into_owned()
}

/// Time stands still while anything can go on.
pub(crate) async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}
