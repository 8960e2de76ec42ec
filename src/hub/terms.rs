//! [`Terms`]: until when a subscription may stay.

use super::end::EndReason;
#[cfg(feature = "client-heartbeats")]
use super::session::Session;
#[cfg(feature = "client-heartbeats")]
use std::sync::Arc;
use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tokio::{
    task::coop,
    time::{Instant, Sleep, sleep_until},
};

/// Of a subscription that may not stay for as long as it likes.
#[derive(Default)]
pub(crate) struct Terms {
    pub(crate) expires: Option<Instant>,
    /// Whose client has to say that it is there.
    #[cfg(feature = "client-heartbeats")]
    pub(crate) session: Option<Arc<Session>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes, so that it is not told what it knows.
    waker: Option<Waker>,
}

impl Terms {
    /// Ready once it has to go, with why.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        if let (Some(waker), Some(timer)) = (&self.waker, &self.timer) {
            if waker.will_wake(cx.waker()) && !timer.is_elapsed() {
                return Poll::Pending;
            }
        }
        loop {
            let Some((until, reason)) = self.next() else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
            // It fires, looks whether that is still so, and waits for the rest.
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            // A task that has used up its budget is polled again, and its timer is not set before that.
            let set = coop::has_budget_remaining();
            if timer.as_mut().poll(cx).is_pending() {
                self.waker = set.then(|| cx.waker().clone());
                return Poll::Pending;
            }
            if self.next() == Some((until, reason)) {
                return Poll::Ready(reason);
            }
        }
    }

    fn next(&self) -> Option<(Instant, EndReason)> {
        let expires = self.expires.map(|at| (at, EndReason::Expired));
        #[cfg(feature = "client-heartbeats")]
        let silent = self.session.as_ref().map(|session| (session.deadline(), EndReason::Silent));
        #[cfg(not(feature = "client-heartbeats"))]
        let silent = None;
        expires.into_iter().chain(silent).min_by_key(|(at, _)| *at)
    }
}
