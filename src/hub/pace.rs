//! [`Pace`]: a subscription that does not look for what is new as often as it could.

use super::LONGEST;
use crate::replay::Cursor;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// One round goes up to where the log ended when it began, so that no key comes twice in it; the next begins no sooner
/// than an interval later.
pub(crate) struct Pace {
    interval: Duration,
    up_to: Option<Cursor>,
    /// When the next round may begin.
    next: Option<Instant>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval: interval.min(LONGEST), up_to: None, next: None, rest: None }
    }

    /// Up to where the round goes that is under way at a cursor.
    pub(crate) fn round(&self, cursor: Cursor) -> Option<u64> {
        let end = self.up_to.filter(|end| end.run() == cursor.run() && end.position() > cursor.position());
        end.map(Cursor::position)
    }

    /// Up to where the log may be read from a cursor; `None` if as far as it goes. Pending while it is to rest.
    pub(crate) fn poll_limit(&mut self, cursor: Cursor, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let round = self.round(cursor);
        if let (None, Some(next)) = (round, self.next) {
            let rest = self.rest.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if rest.deadline() != next {
                rest.as_mut().reset(next);
            }
            ready!(rest.as_mut().poll(cx));
            self.next = None;
        }
        Poll::Ready(round)
    }

    /// Takes in that something was found, where the log ended at `head`: a round has begun.
    pub(crate) fn found(&mut self, head: Cursor) {
        self.up_to = Some(head);
        self.next = Some(Instant::now() + self.interval);
    }
}
