//! [`Shared`]: a node of a log in memory, with one [`Fault`].

use crate::{
    fault::Fault::{self, *},
    support::nodes::{Log, Node},
};
use futures_util::{StreamExt as _, stream};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tidings::{
    Topic,
    replay::{AppendError, Cursor, Feed, FeedItem, Notice, Page, Read, ReadError, Record, Refused, ReplayStore},
};

pub(crate) struct Shared {
    node: Node,
    fault: Fault,
    /// The newest that this node appended.
    own: Arc<AtomicU64>,
}

pub(crate) fn nodes(fault: Fault) -> [Shared; 2] {
    let log = Log::new();
    let other = if fault == EachNodeHasALog { Log::new() } else { log.clone() };
    [log, other].map(|log| Shared { node: log.node(), fault, own: Arc::default() })
}

impl Shared {
    fn give(fault: Fault, own: u64, held: &mut Option<FeedItem>, item: FeedItem) -> Vec<FeedItem> {
        let position = match &item {
            FeedItem::Record(cursor, _) => cursor.position(),
            _ => 0,
        };
        let is_notice = matches!(item, FeedItem::Notice(_));
        match (fault, item) {
            (FeedGivesOneTwice, item) if position == 3 => vec![item.clone(), item],
            (FeedLeavesOneOut, _) if position == 3 => Vec::new(),
            (FeedIsOfOthersOnly, _) if position > 0 && position <= own => Vec::new(),
            (FeedIsOutOfOrder, item) if position == 3 => {
                *held = Some(item);
                Vec::new()
            }
            (FeedIsOutOfOrder, item) if position == 4 => [item].into_iter().chain(held.take()).collect(),
            (FeedAltersBodies, FeedItem::Record(cursor, record)) => {
                let (topic, kind, time) = (record.topic().clone(), record.kind(), record.time());
                vec![FeedItem::Record(cursor, Record::from_stored(topic, kind, b"data: x\n", time).unwrap())]
            }
            (FeedForgetsLate, item @ FeedItem::Forgotten(..)) => {
                *held = Some(item);
                Vec::new()
            }
            (FeedForgetsLate, item) if held.is_some() => [item].into_iter().chain(held.take()).collect(),
            (NoticesComeTwice, item) if is_notice => vec![item.clone(), item],
            (FeedDoesNotForget, FeedItem::Forgotten(..))
            | (NoticesLoseControl, FeedItem::Notice(Notice::Control(_))) => Vec::new(),
            (_, item) => vec![item],
        }
    }
}

impl ReplayStore for Shared {
    async fn head(&self) -> Result<Cursor, ReadError> {
        let head = self.node.head().await?;
        let own = self.own.load(Relaxed);
        Ok(if self.fault == HeadsAreOfOneNode { head.run().at(own) } else { head })
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let outcomes = self.node.append(records).await?;
        let newest = outcomes.iter().flatten().map(|cursor| cursor.position()).max();
        self.own.fetch_max(newest.unwrap_or(0), Relaxed);
        let spoil = |outcome| match (self.fault, outcome) {
            (EndsAreOfOneNode, Err(Refused::Finished)) | (RepeatsAreOfOneNode, Err(Refused::Duplicate(_))) => {
                Err(Refused::TooLarge)
            }
            (_, outcome) => outcome,
        };
        Ok(outcomes.into_iter().map(spoil).collect())
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let mut page = self.node.read(read).await?;
        if self.fault == ReadsAreOfOneNode {
            page.entries.retain(|entry| entry.cursor().position() <= self.own.load(Relaxed));
        }
        Ok(page)
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.node.forget(topic).await
    }

    fn feed(&self, after: Cursor) -> Option<Feed> {
        let (fault, own) = (self.fault, Arc::clone(&self.own));
        if fault == ThereIsNoFeed {
            return None;
        }
        let mut held = None;
        let items = self.node.feed(after)?.take(if fault == FeedEnds { 20 } else { usize::MAX });
        let items = items.flat_map(move |item| stream::iter(Self::give(fault, own.load(Relaxed), &mut held, item)));
        Some(Feed::new(items))
    }

    async fn notify(&self, mut notices: Vec<Notice>) -> Result<(), ReadError> {
        if self.fault == NoticesAreStored {
            for notice in &notices {
                if let Notice::Ephemeral(record) = notice {
                    self.node.append([record.clone()].into()).await.map_err(ReadError::new)?;
                }
            }
        }
        if self.fault == NoticesAreReversed {
            notices.reverse();
        }
        self.node.notify(notices).await
    }
}
