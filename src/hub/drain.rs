//! [`Drain`]: how the streams of a hub are ended before a server stops.

use super::{
    Hub, Shared,
    end::{End, EndReason},
};
use crate::Event;
use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout_at};

/// How often some of the streams are ended: not all in the same moment, and not with a timer for each.
const STEP: Duration = Duration::from_millis(20);

/// How a hub is drained: [`Hub::drain`].
///
/// ```
/// use std::time::Duration;
/// use tidings::{Drain, Event, EventType};
///
/// let drain = Drain::new()
///     .goodbye(Event::new().event_type(EventType::from_static("goodbye")).data("a new version is coming"))
///     .retry(Duration::from_secs(1)..=Duration::from_secs(20));
/// ```
#[derive(Clone)]
#[must_use]
pub struct Drain {
    notice: Duration,
    grace: Duration,
    deadline: Duration,
    goodbye: Goodbye,
}

/// What those are told who have to go.
#[derive(Clone)]
pub(crate) struct Goodbye {
    pub(crate) event: Option<Event>,
    retry: RangeInclusive<Duration>,
}

impl Goodbye {
    /// When a client is to come back.
    pub(crate) fn draw_retry(&self) -> Duration {
        let ms = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (least, most) = (ms(self.retry.start()), ms(self.retry.end()));
        Duration::from_millis(fastrand::u64(least..=most.max(least)))
    }
}

impl Drain {
    /// Ten seconds of grace, five more until the deadline: well below the 30 seconds after which Kubernetes kills; clients
    /// come back after 1 to 10 seconds.
    pub fn new() -> Self {
        let goodbye = Goodbye { event: None, retry: Duration::from_secs(1)..=Duration::from_secs(10) };
        let (notice, grace, deadline) = (Duration::ZERO, Duration::from_secs(10), Duration::from_secs(5));
        Self { notice, grace, deadline, goodbye }
    }

    /// Sets for how long, before the first stream is ended, nobody is let in any more and [`Hub::is_draining`] says so: as
    /// long as it takes a load balancer to see that in a health check, and to send clients elsewhere. Default: not at all.
    pub fn notice(mut self, notice: Duration) -> Self {
        self.notice = notice;
        self
    }

    /// Sets over how long a time the streams are ended, one after the other, so that whoever takes the clients over gets
    /// them one after the other. Default: 10 seconds. Zero: all at once.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets for how long after the grace period the last ones are waited for. Default: 5 seconds.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets after how long clients come back; a time is drawn for each. Default: 1 to 10 seconds. Of a range that ends
    /// before it begins, the beginning counts.
    pub fn retry(mut self, range: RangeInclusive<Duration>) -> Self {
        self.goodbye.retry = range;
        self
    }

    /// Sets a last event for every stream, sent without an id. Default: none.
    pub fn goodbye(mut self, event: Event) -> Self {
        self.goodbye.event = Some(event);
        self
    }

    /// The longest that it takes: the notice, the grace period, and the time until the deadline.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.notice.saturating_add(self.grace).saturating_add(self.deadline)
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("notice", &self.notice)
            .field("grace", &self.grace)
            .field("deadline", &self.deadline)
            .field("goodbye", &self.goodbye.event.is_some())
            .field("retry", &self.goodbye.retry)
            .finish()
    }
}

/// How a drain came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Subscriptions that were there, and left before the deadline.
    pub ended: usize,
    /// Those that were still there: their clients have stopped reading.
    pub remaining: usize,
}

impl Hub {
    /// Ends all streams before the server stops, so that their clients come back spread out, and miss nothing.
    ///
    /// Nobody is let in any more: whoever comes gets a reconnection time and the end. Each stream gets what was published
    /// until its turn comes, the goodbye, and its reconnection time, and ends. When all are gone, or the deadline has
    /// passed, the hub is [closed](Self::close). Until then it can be published to.
    ///
    /// ```no_run
    /// use tidings::{Drain, Hub};
    ///
    /// # async fn example(listener: tokio::net::TcpListener, app: axum::Router, hub: Hub) -> std::io::Result<()> {
    /// let drained = async move {
    ///     let _ = tokio::signal::ctrl_c().await;
    ///     hub.drain(Drain::new()).await;
    /// };
    /// axum::serve(listener, app).with_graceful_shutdown(drained).await
    /// # }
    /// ```
    ///
    /// The server accepts connections until the hub is drained, so that clients who come meanwhile are sent away for as
    /// long as it takes, and other routes are served. With hyper-util, await this before `GracefulShutdown::shutdown`.
    ///
    /// A client that has stopped reading keeps its stream open, because a server does not ask for what it cannot write.
    /// Those remain, and their connections are for the server to cut: `tidings::net::Connections::drain` (feature `net`)
    /// does both.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped once it was polled, the hub is closed at once.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime that has its timer enabled.
    pub async fn drain(&self, drain: Drain) -> Drained {
        let shared = &self.handle.shared;
        let _closed = Closed(shared);
        let deadline = Instant::now().checked_add(drain.longest());
        shared.registry.drain(Arc::new(drain.goodbye));
        if !drain.notice.is_zero() {
            sleep(drain.notice).await;
        }
        let begun = Instant::now();
        let mut members = shared.window.members();
        fastrand::shuffle(&mut members);
        let there = members.len();
        let mut rest = &members[..];
        while !rest.is_empty() {
            let left = drain.grace.saturating_sub(begun.elapsed());
            // As many stay as their share of the time that is left.
            let share = (there as u128 * left.as_nanos()).checked_div(drain.grace.as_nanos()).unwrap_or(0);
            let stay = usize::try_from(share).unwrap_or(there).min(rest.len());
            let (those, others) = rest.split_at(rest.len() - stay);
            shared.tell(those, End { reason: EndReason::Drained, at_once: false });
            rest = others;
            if !rest.is_empty() {
                sleep(STEP.min(left)).await;
            }
        }
        drop(members);
        let empty = shared.registry.empty();
        match deadline {
            Some(deadline) => drop(timeout_at(deadline, empty).await),
            // The clock does not go so far.
            None => empty.await,
        }
        let remaining = shared.registry.counts().present;
        Drained { ended: there.saturating_sub(remaining), remaining }
    }

    /// Whether nobody is let in any more, because the hub is being [drained](Self::drain), or everybody has to go, because
    /// it was [closed](Self::close): for a health check that sends clients to another server. With few streams a drain is over
    /// within milliseconds, so give a [notice](Drain::notice) of as long as the checks take.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        let shared = &self.handle.shared;
        shared.registry.goodbye().is_some() || shared.window.is_closed()
    }

    /// Waits until no subscription is there.
    #[cfg(feature = "net")]
    pub(crate) async fn emptied(&self) {
        self.handle.shared.registry.empty().await;
    }
}

/// However a drain ends, nobody is left waiting.
struct Closed<'a>(&'a Arc<Shared>);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.window.close();
    }
}
