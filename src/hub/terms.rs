//! [`Terms`]: until when a subscription may stay.

use super::end::EndReason;
use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A longer time than this is none, because clocks end somewhere.
pub(super) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Of a subscription that may not stay for as long as it likes.
pub(crate) struct Terms {
    expires: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    /// Whom the timer wakes, so that it is not told what it knows.
    waker: Option<Waker>,
}

impl Terms {
    /// Until a moment, if there is one.
    pub(crate) fn new(expires: Option<Instant>) -> Option<Self> {
        let timer = Box::pin(sleep_until(expires?));
        Some(Self { expires, timer, waker: None })
    }

    /// Ready once it has to go, with why.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        if self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) && !self.timer.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            let (until, reason) = self.next();
            if self.timer.deadline() != until {
                self.timer.as_mut().reset(until);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if self.next() == (until, reason) {
                return Poll::Ready(reason);
            }
        }
    }

    fn next(&self) -> (Instant, EndReason) {
        (self.expires.unwrap_or_else(|| Instant::now() + LONGEST), EndReason::Expired)
    }
}
