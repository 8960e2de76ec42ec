//! The feed of a node: what all nodes append, as it is notified, with the holes read from the log.
//!
//! One half listens to the channel and puts what comes into the inbox; the other takes it out, looks whether each message
//! follows the one before, and reads what does not come.
//!
//! Invariant: what is given is the log, each position once and in order, from the place that was asked for; what cannot be
//! given is skipped, and said to be.

use super::{
    error::CallError,
    inbox::{Inbox, Incoming},
    message::{Item, Message},
    node::{Node, jitter},
    script::{Ask, Malformed},
};
use crate::replay::{Cursor, Feed, FeedItem, Run};
use futures_core::Stream;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

/// How many items wait for the hub.
const AHEAD: usize = 256;

/// How many records, and bytes, are read at a time where there is a hole.
const FILL: (usize, usize) = (1000, 4 * 1024 * 1024);

/// How long a notification may take that was sent before another answer.
const GRACE: Duration = Duration::from_millis(100);

/// How long to wait before the channel is listened to anew, at first; doubled each time, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// How long to wait for where the log is.
const LOOK: Duration = Duration::from_secs(1);

/// How many runs are remembered that were left: what still comes of them is of the past.
const LEFT_RUNS: usize = 64;

/// Follows the log from a place, in a task that ends with the feed.
pub(super) fn follow(node: Arc<Node>, after: Cursor, runtime: &Handle) -> Feed {
    let (out, items) = mpsc::channel(AHEAD);
    let mut task = JoinSet::new();
    task.spawn_on(
        async move {
            let inbox = Inbox::default();
            // Until the channel is there, and what came before it was read.
            let is_lost = true;
            let follower = Follower { node: &node, last: after, left: Vec::new(), out, is_lost, suspect: None };
            // Neither ends before the other is dropped.
            tokio::select! {
                () = listen(&node, &inbox) => {}
                () = follower.run(&inbox) => {}
            }
        },
        runtime,
    );
    Feed::new(Items { items, _task: task })
}

struct Items {
    items: mpsc::Receiver<FeedItem>,
    _task: JoinSet<()>,
}

impl Stream for Items {
    type Item = FeedItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FeedItem>> {
        self.items.poll_recv(cx)
    }
}

/// Listens to the channel, again and again.
async fn listen(node: &Node, inbox: &Inbox) {
    let mut pause = BACKOFF.0;
    loop {
        if let Ok(mut listening) = node.links.listen().await {
            let subscribed = timeout(Duration::from_secs(2), listening.subscribe(&node.keys.channel)).await;
            if matches!(subscribed, Ok(Ok(()))) {
                pause = BACKOFF.0;
                inbox.put(Incoming::Up);
                let (mut sink, stream) = listening.split();
                let mut stream = pin!(stream);
                let alive = async {
                    // One that is only half open says nothing, and looks like one where nothing happens.
                    loop {
                        sleep(node.settings.check_interval).await;
                        let answer = timeout(Duration::from_secs(2), sink.ping::<redis::Value>()).await;
                        if !matches!(answer, Ok(Ok(_))) {
                            return;
                        }
                    }
                };
                let take = async {
                    while let Some(message) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
                        if let Ok(bytes) = message.get_payload() {
                            inbox.put(Incoming::Message(bytes));
                        }
                    }
                };
                tokio::select! {
                    () = take => {}
                    () = alive => {}
                }
            }
        }
        inbox.put(Incoming::Down);
        sleep(jitter(pause)).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// The hub no longer takes anything.
struct Gone;

struct Follower<'a> {
    node: &'a Node,
    /// Up to where everything was given.
    last: Cursor,
    left: Vec<Run>,
    out: mpsc::Sender<FeedItem>,
    /// Whether the channel was cut, and what was missed is not read yet.
    is_lost: bool,
    /// Where the log was found to be, and by when the channel should have said so.
    suspect: Option<(Cursor, Instant)>,
}

impl Follower<'_> {
    async fn run(mut self, inbox: &Inbox) {
        let mut check = interval(self.node.settings.check_interval);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_up = false;
        loop {
            let suspected = self.suspect.map(|(_, when)| when);
            let late = async {
                match suspected {
                    Some(when) => sleep_until(when).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                // What came is taken before it is looked for what did not.
                biased;
                incoming = inbox.next() => match incoming {
                    Incoming::Message(bytes) => self.hear(&bytes).await,
                    Incoming::Overflow => self.catch_up().await,
                    Incoming::Up => {
                        is_up = true;
                        self.catch_up().await
                    }
                    Incoming::Down => {
                        is_up = false;
                        self.lose().await
                    }
                },
                () = late => {
                    self.suspect = None;
                    self.catch_up().await
                }
                _ = check.tick() => self.look(is_up).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn give(&self, item: FeedItem) -> Result<(), Gone> {
        self.out.send(item).await.map_err(|_| Gone)
    }

    async fn lose(&mut self) -> Result<(), Gone> {
        if self.is_lost {
            return Ok(());
        }
        self.is_lost = true;
        self.give(FeedItem::Lost).await
    }

    /// Looks where the log is, in case a notification was lost.
    async fn look(&mut self, is_up: bool) -> Result<(), Gone> {
        if self.is_lost && is_up {
            return self.catch_up().await;
        }
        let ask = Ask::default();
        let asked = self.node.ask(self.node.links.a_read(), &self.node.scripts.head, &ask, Duration::MAX);
        // A server that does not answer has cut the channel as well, which is not to wait behind this; or is asked again.
        let Ok(Ok((head, _))) = timeout(LOOK, asked).await else { return Ok(()) };
        let is_behind = head.run() != self.last.run() || head.position() > self.last.position();
        if is_behind && self.suspect.is_none() {
            self.suspect = Some((head, Instant::now() + GRACE));
        }
        Ok(())
    }

    async fn hear(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        match Message::parse(bytes) {
            Some(Message::Notices(notices)) => {
                for notice in notices {
                    self.give(FeedItem::Notice(notice)).await?;
                }
                Ok(())
            }
            Some(Message::Run(head)) => self.enter(head).await.map(drop),
            Some(Message::Batch { after, items }) => self.hear_batch(after, items).await,
            // A node of another version sent it. If it was given a place, that is a hole.
            None => Ok(()),
        }
    }

    async fn hear_batch(&mut self, after: Cursor, items: Vec<Item>) -> Result<(), Gone> {
        if !self.enter(after).await? {
            return Ok(());
        }
        if after.position() > self.last.position() {
            self.catch_up().await?;
        }
        if after.position() > self.last.position() || after.run() != self.last.run() {
            // It could not be read: what came is of no use without what is before it.
            return Ok(());
        }
        for (position, item) in (after.position() + 1..).zip(items) {
            if position > self.last.position() {
                self.give_at(position, item).await?;
            }
        }
        self.node.see_in_feed(self.last);
        self.settle();
        Ok(())
    }

    async fn give_at(&mut self, position: u64, item: Item) -> Result<(), Gone> {
        self.last = self.last.run().at(position);
        self.give(match item {
            Item::Record(record) => FeedItem::Record(self.last, record),
            Item::Gone(topic) => FeedItem::Forgotten(topic, self.last),
        })
        .await
    }

    /// Goes into the run of a place, if it is a new one. Says whether the place is not of the past.
    async fn enter(&mut self, place: Cursor) -> Result<bool, Gone> {
        if place.run() == self.last.run() {
            return Ok(true);
        }
        if self.left.contains(&place.run()) {
            return Ok(false);
        }
        self.skip_to(place).await?;
        Ok(true)
    }

    async fn skip_to(&mut self, place: Cursor) -> Result<(), Gone> {
        if place.run() != self.last.run() {
            if self.left.len() == LEFT_RUNS {
                self.left.remove(0);
            }
            self.left.push(self.last.run());
        }
        self.last = place;
        self.settle();
        self.give(FeedItem::Skip(place)).await
    }

    /// There is nothing more to suspect.
    fn settle(&mut self) {
        let last = self.last;
        self.suspect = self.suspect.filter(|(head, _)| head.run() != last.run() || head.position() > last.position());
    }

    /// Reads what did not come, and says how much that was.
    async fn catch_up(&mut self) -> Result<(), Gone> {
        let mut missed = 0;
        loop {
            let Ok(filled) = self.fill().await else {
                // It is tried again, at the latest when the log is looked at next.
                return self.lose().await;
            };
            if filled.is_skip {
                self.skip_to(filled.head).await?;
                break;
            }
            for (position, item) in filled.items {
                missed += 1;
                self.give_at(position, item).await?;
            }
            self.last = self.last.run().at(filled.through);
            if filled.through >= filled.head.position() {
                break;
            }
        }
        self.settle();
        if missed > 0 || self.is_lost {
            self.is_lost = false;
            self.give(FeedItem::Caught { missed }).await?;
        }
        Ok(())
    }

    async fn fill(&self) -> Result<Filled, CallError> {
        let (run, after) = (self.last.run(), self.last.position());
        let ask = Ask::default().number_text(run.epoch).number_text(run.number.into()).number(after);
        let ask = ask.number(FILL.0).number(FILL.1);
        let (head, mut answer) =
            self.node.ask(self.node.links.a_read(), &self.node.scripts.fill, &ask, Duration::MAX).await?;
        let mut filled = || {
            let is_skip = answer.text()? == "1";
            let mut filled = Filled { head, is_skip, through: answer.number()?, items: Vec::new() };
            while !answer.is_empty() {
                let kind = answer.bytes()?.first().copied().ok_or(Malformed)?;
                let position = answer.number()?;
                filled.items.push((position, Item::parse(kind, &answer.bytes()?).ok_or(Malformed)?));
            }
            Ok(filled)
        };
        filled().map_err(|error: Malformed| CallError::new(error, false))
    }
}

struct Filled {
    head: Cursor,
    /// Whether what lies before the head is not told one by one.
    is_skip: bool,
    through: u64,
    items: Vec<(u64, Item)>,
}
