//! What a hub takes in from the [`Feed`] of a log that it shares with other nodes.
//!
//! Invariant: over such a log the window shows what the feed brings, and nothing else: in the order of the log, each once.
//! Where the feed leaves something out, every subscription that is not past it is sent to the store.

#[cfg(feature = "tracing")]
use super::trace;
use super::{Shared, Store};
use crate::replay::{Entry, Feed, FeedItem, Notice};
use futures_core::Stream as _;
use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::sleep,
};

/// Taken in at a time, so that a burst is one change of the window.
const MOST_AT_ONCE: usize = 256;

/// How long to wait before a store is asked for its feed again: it was not to end.
const BACKOFF: Duration = Duration::from_secs(1);

/// Takes in the feed for as long as the hub is there.
pub(super) async fn follow(shared: Arc<Shared>, first: Feed) {
    let mut feed = Some(first);
    loop {
        // In a task of its own, because the store's code may panic; which ends with this one.
        let mut following = JoinSet::new();
        following.spawn(take_all(Arc::clone(&shared), feed.take()));
        following.join_next().await;
        shared.counters.feed_lost();
        #[cfg(feature = "tracing")]
        trace::feed_ended();
        sleep(BACKOFF).await;
    }
}

async fn take_all(shared: Arc<Shared>, feed: Option<Feed>) {
    let again = || match &shared.store {
        Store::Other(store) => store.feed(shared.window.head()),
        Store::Ring(_) => None,
    };
    let Some(feed) = feed.or_else(again) else { return };
    let mut feed = pin!(feed);
    let mut items = Vec::new();
    loop {
        let goes_on = poll_fn(|cx| poll_some(feed.as_mut().get_mut(), &mut items, cx)).await;
        let is_full = items.len() == MOST_AT_ONCE;
        shared.take_in(&mut items);
        if !goes_on {
            return;
        }
        if is_full {
            // Others have their turn while there is much to catch up with.
            yield_now().await;
        }
    }
}

/// Takes what is there, and waits only if that is nothing. Says whether more can come.
fn poll_some(feed: &mut Feed, items: &mut Vec<FeedItem>, cx: &mut Context<'_>) -> Poll<bool> {
    while items.len() < MOST_AT_ONCE {
        match pin!(&mut *feed).poll_next(cx) {
            Poll::Ready(Some(item)) => items.push(item),
            Poll::Ready(None) => return Poll::Ready(false),
            Poll::Pending if items.is_empty() => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(true)
}

impl Shared {
    fn take_in(self: &Arc<Self>, items: &mut Vec<FeedItem>) {
        let mut entries = Vec::new();
        for item in items.drain(..) {
            if let FeedItem::Record(cursor, record) = item {
                entries.push(Arc::new(Entry::new(cursor, record)));
                continue;
            }
            // What came before it comes before it.
            if !entries.is_empty() {
                self.window.publish_new(entries.drain(..));
            }
            match item {
                FeedItem::Record(..) => {}
                FeedItem::Forgotten(topic, place) => self.window.forget_at(&topic, place),
                FeedItem::Skip(place) => {
                    self.window.skip_to(place);
                    self.counters.feed_skipped();
                }
                // To those who are there, if any.
                FeedItem::Notice(Notice::Ephemeral(record)) => drop(self.window.publish_ephemeral(record)),
                FeedItem::Notice(Notice::Control(message)) => self.hear(&message),
                FeedItem::Lost => {
                    self.counters.feed_lost();
                    #[cfg(feature = "tracing")]
                    trace::feed_lost();
                }
                FeedItem::Caught { missed } => {
                    self.counters.feed_caught(missed);
                    #[cfg(feature = "tracing")]
                    trace::feed_caught(missed);
                }
            }
        }
        if !entries.is_empty() {
            self.window.publish_new(entries);
        }
    }
}
