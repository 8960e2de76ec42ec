//! How a follower becomes one that others see, what it may be told then, and how it leaves.

use super::{Follower, Phase, Step};
#[cfg(feature = "client-heartbeats")]
use crate::hub::session::Session;
#[cfg(feature = "tracing")]
use crate::hub::trace;
use crate::{
    Peer,
    hub::{
        LONGEST,
        drain::Goodbye,
        end::{End, EndReason},
        error::SubscriptionError,
        member::{Details, LeaveReason, Subscriber},
        registry::Limit,
        settings::Settings,
        stats::Counters,
    },
};
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// Whether others see it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    NotYet,
    Inside,
    /// It has left, or is not to be seen.
    Away,
}

/// What the application says of a subscription, before it is there.
#[derive(Default)]
pub(crate) struct Intro {
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) peer: Option<Peer>,
    pub(crate) lifetime: Option<Duration>,
    pub(crate) expires: Option<Instant>,
}

impl Follower {
    pub(crate) fn subscriber(&self) -> Subscriber {
        Subscriber::new(Arc::clone(&self.member), &self.shared)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// What it is told if the hub is being drained.
    pub(crate) fn goodbye(&self) -> Option<Arc<Goodbye>> {
        self.shared.registry.goodbye()
    }

    /// When its client is to come back.
    pub(crate) fn draw_retry(&self, settings: &Settings) -> Duration {
        self.goodbye().map_or_else(|| settings.draw_retry(), |goodbye| goodbye.draw_retry())
    }

    /// What is said of it. Nobody looks at that once it is there.
    pub(crate) fn intro(&mut self) -> &mut Intro {
        self.intro.get_or_insert_default()
    }

    /// It is never to be seen.
    pub(crate) fn stay_away(&mut self) {
        self.seen = Seen::Away;
    }

    /// Lets others see it, from now on and until it leaves, once it is known how it begins. Not if it has failed, or has
    /// nothing to follow.
    pub(crate) fn poll_entered(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SubscriptionError>> {
        if self.seen != Seen::NotYet {
            return Poll::Ready(Ok(()));
        }
        let opened = ready!(self.poll_outcome(cx)).inspect_err(|_| self.turn_away());
        Poll::Ready(opened.and_then(|()| self.enter()))
    }

    /// The same where that is known.
    pub(crate) fn enter(&mut self) -> Result<(), SubscriptionError> {
        let (Seen::NotYet, Some(outcome)) = (self.seen, self.outcome()) else { return Ok(()) };
        if self.is_complete() {
            return Ok(());
        }
        let intro = self.intro.take().map(|intro| *intro).unwrap_or_default();
        let limits = Limit::merged(intro.limits);
        let keys = limits.iter().map(|limit| limit.key.clone()).collect();
        let details = Details { labels: intro.labels, keys, peer: intro.peer };
        let (shared, subscriber) = (&self.shared, self.subscriber());
        let (registry, window) = (&shared.registry, &shared.window);
        let entered = match registry.enter(window, &self.attached, &subscriber, &limits, details, outcome) {
            Ok(entered) => entered,
            Err(denied) => {
                #[cfg(feature = "tracing")]
                trace::denied(&self.member, denied);
                self.turn_away();
                return Err(denied.into());
            }
        };
        // Before anybody else's code runs, which may panic.
        self.seen = Seen::Inside;
        let lifetime = intro.lifetime.or(self.shared.settings.max_lifetime);
        let drawn = |most: Duration| Instant::now() + most.min(LONGEST).mul_f64(0.8 + 0.2 * fastrand::f64());
        let expires = lifetime.map(drawn).into_iter().chain(intro.expires).min();
        if expires.is_some() {
            self.terms.get_or_insert_default().expires = expires;
        }
        #[cfg(feature = "tracing")]
        {
            self.span = trace::entered(&self.member, outcome);
        }
        self.shared.tell(&entered.replaced, End { reason: EndReason::Replaced, at_once: true });
        entered.told.wake();
        Ok(())
    }

    /// Whether others see it.
    #[cfg(feature = "client-heartbeats")]
    pub(crate) fn is_inside(&self) -> bool {
        self.seen == Seen::Inside
    }

    /// Expects heartbeats of its client from now on.
    #[cfg(feature = "client-heartbeats")]
    pub(crate) fn begin_session(&mut self, timeout: Duration) -> std::io::Result<Arc<Session>> {
        let session = self.shared.sessions.begin(&self.member, timeout)?;
        self.terms.get_or_insert_default().session = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Whether its time is over; and what its client's heartbeat is to be answered.
    pub(super) fn look_at_terms(&mut self, cx: &mut Context<'_>) -> Option<Step> {
        if let Some(Poll::Ready(reason)) = self.terms.as_mut().map(|terms| terms.poll(cx)) {
            self.end_now(reason);
        }
        #[cfg(feature = "client-heartbeats")]
        return self.pong();
        #[cfg(not(feature = "client-heartbeats"))]
        None
    }

    /// Its waker is kept: what comes from now on wakes it. What came just before is not to wait.
    #[cfg_attr(
        not(feature = "client-heartbeats"),
        expect(clippy::unused_self, reason = "of a client that says something")
    )]
    pub(super) fn pending(&self) -> Poll<Option<Result<Step, SubscriptionError>>> {
        #[cfg(feature = "client-heartbeats")]
        if let Some(pong) = self.pong() {
            return Poll::Ready(Some(Ok(pong)));
        }
        Poll::Pending
    }

    /// What its client's heartbeat is to be answered.
    #[cfg(feature = "client-heartbeats")]
    fn pong(&self) -> Option<Step> {
        if self.member.is_to_go_at_once() || matches!(self.phase, Phase::Ended(_)) {
            return None;
        }
        self.terms.as_ref()?.session.as_ref()?.take_pong().map(Step::Pong)
    }

    /// Ends it as it was told to.
    pub(super) fn end_as_told(&mut self) {
        let end = self.member.told();
        self.end_now(end.map_or(EndReason::Closed, |end| end.reason));
    }

    /// Ends it without handing over anything more. Whoever comes back is told again of what is still to be reported.
    pub(super) fn end_now(&mut self, reason: EndReason) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        match self.resume_from() {
            Some(place) => self.cursor = place,
            None => self.placeless = true,
        }
        self.clear();
        self.phase = Phase::Ended(Some(reason));
    }

    /// Takes in that it is over.
    pub(crate) fn leave(&mut self) {
        let lost = self.member.details().and_then(|details| details.peer.as_ref()?.lost());
        let reason = match (&self.phase, lost) {
            (Phase::Ended(Some(reason)), _) => LeaveReason::Ended(*reason),
            (Phase::Ended(None), _) => LeaveReason::Failed,
            (_, Some(lost)) => LeaveReason::Lost(lost),
            // It may not have heard that it is to go, because nobody asked it for more.
            (_, None) => self.member.told().map_or(LeaveReason::Disconnected, |told| LeaveReason::Ended(told.reason)),
        };
        let place = self.resume_from();
        if std::mem::replace(&mut self.seen, Seen::Away) != Seen::Inside {
            // Somebody may look after it, though nobody saw it.
            return self.member.leave(reason, place);
        }
        #[cfg(feature = "client-heartbeats")]
        if let Some(session) = self.terms.as_ref().and_then(|terms| terms.session.as_ref()) {
            self.shared.sessions.end(session);
        }
        #[cfg(feature = "tracing")]
        let span = self.span.take();
        let (shared, subscriber) = (&self.shared, self.subscriber());
        shared.registry.leave(&shared.window, &self.attached, &subscriber, reason, place);
        #[cfg(feature = "tracing")]
        trace::left(span, reason, place);
    }

    #[cfg(feature = "tracing")]
    pub(crate) fn trace_failure(&self, error: &SubscriptionError) {
        trace::failed(&self.member, self.span.as_deref(), error);
    }

    /// It never comes in.
    fn turn_away(&mut self) {
        self.fail();
        self.seen = Seen::Away;
    }

    /// Nothing follows a failure.
    pub(crate) fn fail(&mut self) {
        self.clear();
        self.phase = Phase::Ended(None);
    }
}
