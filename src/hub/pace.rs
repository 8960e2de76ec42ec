//! [`Pace`]: a subscription that does not look for what is new as often as it could.

use super::window::{Standing, Taken};
use crate::replay::Cursor;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// One round goes up to where the log ended when it began, so that no key comes twice in it; the next begins no sooner
/// than an interval later.
pub(crate) struct Pace {
    interval: Duration,
    up_to: Option<Cursor>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, up_to: None, rest: None }
    }

    /// Up to where the log may be read from a cursor; `None` if as far as it goes. Pending while it is to rest.
    pub(crate) fn poll_limit(&mut self, cursor: Cursor, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let round = self.up_to.filter(|end| end.run() == cursor.run() && end.position() > cursor.position());
        if round.is_none() {
            if let Some(rest) = &mut self.rest {
                ready!(rest.as_mut().poll(cx));
                self.rest = None;
            }
        }
        Poll::Ready(round.map(Cursor::position))
    }

    /// Takes in what a look came to that had no limit: if it found something, a round has begun.
    pub(crate) fn looked(&mut self, taken: &Taken) {
        if taken.standing == Standing::Behind {
            self.up_to = Some(taken.head);
            self.rest = Some(Box::pin(sleep(self.interval)));
        }
    }
}
