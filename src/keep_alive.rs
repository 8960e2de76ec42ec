//! Heartbeats: what a connection sends when there is nothing to send.
//!
//! Proxies and load balancers close a connection that is silent for a minute or so, and a client cannot tell a quiet
//! server from a dead one. This is the only place below the hub that uses a timer.
//!
//! Invariant: a heartbeat stands between events, never inside one, and only after an idle interval.

use crate::{Event, EventType};
use bytes::Bytes;
use futures_core::Stream;
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    task::coop,
    time::{Instant, Sleep, sleep_until},
};

/// 15 s: nginx and most load balancers close a silent connection after 60 s, Cloudflare after about 100 s, and a client
/// that gives up after two silent intervals still notices within half a minute.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);

/// How often an idle stream sends a heartbeat, and what it looks like.
///
/// The default is an empty comment (`:` and a line feed) after 15 seconds without an event. Comments are invisible to
/// `EventSource`; a script that watches over its connection needs [`KeepAlive::event`].
///
/// ```
/// use std::time::Duration;
/// use tidings::{EventType, KeepAlive};
///
/// let seen_by_scripts =
///     KeepAlive::new().interval(Duration::from_secs(10)).event(EventType::from_static("heartbeat"));
/// ```
#[derive(Clone)]
#[must_use]
pub struct KeepAlive {
    /// `None` when there are no heartbeats.
    interval: Option<Duration>,
    form: Form,
    /// The form as bytes: made once, shared by every beat.
    frame: Bytes,
}

#[derive(Clone)]
enum Form {
    Comment(Box<str>),
    /// Without a text, the data is the interval.
    Named(EventType, Option<Box<str>>),
}

impl KeepAlive {
    /// An empty comment every 15 seconds.
    pub fn new() -> Self {
        Self { interval: Some(DEFAULT_INTERVAL), form: Form::Comment("".into()), frame: Bytes::new() }.with_frame()
    }

    /// No heartbeats at all: for streams that end soon, or that always have something to say.
    pub fn off() -> Self {
        Self { interval: None, ..Self::new() }
    }

    /// Sets how long a stream is silent before it sends a heartbeat. Default: 15 seconds.
    ///
    /// In a hub, the first heartbeat of a silence comes up to an eighth of this earlier, drawn for each subscription, so
    /// that those who had the same event do not all send one in the same moment; and heartbeats come in steps of a
    /// twentieth of this, at most 50 milliseconds, so that the server does not wake up for each.
    ///
    /// The timer's resolution is a millisecond; a shorter interval counts as one millisecond.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval.max(Duration::from_millis(1)));
        self.with_frame()
    }

    /// Makes each heartbeat a comment with this text. Default: a comment without text.
    pub fn comment(mut self, text: impl AsRef<str>) -> Self {
        self.form = Form::Comment(text.as_ref().into());
        self.with_frame()
    }

    /// Makes each heartbeat a named event, which scripts can see. Its data is the interval in milliseconds, so that a
    /// client knows how long a silence means trouble. A hub's heartbeat also carries the id, if that has moved.
    pub fn event(mut self, event_type: EventType) -> Self {
        self.form = Form::Named(event_type, None);
        self.with_frame()
    }

    /// Makes each heartbeat a named event with this text as its data.
    pub fn event_with(mut self, event_type: EventType, text: impl AsRef<str>) -> Self {
        self.form = Form::Named(event_type, Some(text.as_ref().into()));
        self.with_frame()
    }

    /// The heartbeat as an event, if a script can see it.
    pub(crate) fn named(&self) -> Option<Event> {
        let Form::Named(event_type, text) = &self.form else { return None };
        let event = Event::new().event_type(event_type.clone());
        Some(match text {
            Some(text) => event.data(text),
            None => event.data(self.interval.unwrap_or_default().as_millis().to_string()),
        })
    }

    pub(crate) fn idle_interval(&self) -> Option<Duration> {
        self.interval
    }

    /// The bytes of a heartbeat.
    pub(crate) fn frame(&self) -> Bytes {
        self.frame.clone()
    }

    fn with_frame(mut self) -> Self {
        let event = match &self.form {
            Form::Comment(text) => Some(Event::new().comment(text)),
            Form::Named(..) => self.named(),
        };
        self.frame = event.unwrap_or_default().encode(None);
        self
    }
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAlive")
            .field("interval", &self.interval)
            .field("named", &matches!(self.form, Form::Named(..)))
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// When the next heartbeat is due.
    ///
    /// The timer is not re-armed for each event, which would cost more than the event: it fires, looks since when there is
    /// silence, and waits for the rest.
    pub(crate) struct Beats {
        // Since when there is silence. Not known before that is found, because to ask the clock costs half as much as an
        // event.
        silent: Option<Instant>,
        #[pin]
        timer: Option<Sleep>,
        // Whom the timer wakes, so that it is not told what it knows.
        waker: Option<Waker>,
    }
}

impl Beats {
    pub(crate) fn new() -> Self {
        Self { silent: Some(Instant::now()), timer: None, waker: None }
    }

    /// Since when there is silence, if that is known; else since it is asked for a heartbeat.
    pub(crate) fn silent(self: Pin<&mut Self>) -> &mut Option<Instant> {
        self.project().silent
    }

    /// Something was sent. If the timer has fired meanwhile, because nobody asked for more, silence begins anew.
    pub(crate) fn not_now(self: Pin<&mut Self>) {
        let this = self.project();
        if this.timer.as_ref().as_pin_ref().is_some_and(|timer| timer.is_elapsed()) {
            *this.silent = None;
        }
    }

    /// Ready when an interval of silence is over; the next one begins then. One of `many` may be a little early.
    #[inline]
    pub(crate) fn poll(
        self: Pin<&mut Self>,
        interval: Option<Duration>,
        many: Option<Many>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut this = self.project();
        let Some(interval) = interval else { return Poll::Pending };
        let silent = this.silent.get_or_insert_with(Instant::now);
        if let (Some(waker), Some(timer)) = (&*this.waker, this.timer.as_ref().as_pin_ref()) {
            if waker.will_wake(cx.waker()) && !timer.is_elapsed() {
                return Poll::Pending;
            }
        }
        loop {
            // An interval past the end of the clock never comes.
            let Some(due) = silent.checked_add(interval) else { return Poll::Pending };
            match this.timer.as_mut().as_pin_mut() {
                None => this.timer.set(Some(sleep_until(many.map_or(due, |many| many.first(due, interval))))),
                Some(mut timer) => {
                    // A task that has used up its budget is polled again, and its timer is not set before that.
                    let set = coop::has_budget_remaining();
                    if timer.as_mut().poll(cx).is_pending() {
                        *this.waker = set.then(|| cx.waker().clone());
                        return Poll::Pending;
                    }
                    // The timer has let go of it.
                    *this.waker = None;
                    let now = Instant::now();
                    if many.map_or(due, |_| Many::earliest(due, interval)) <= now {
                        *silent = now;
                        let due = now.checked_add(interval).unwrap_or(now);
                        timer.reset(many.map_or(due, |many| many.together(due, interval)));
                        return Poll::Ready(());
                    }
                    timer.reset(many.map_or(due, |many| many.first(due, interval)));
                }
            }
        }
    }
}

/// How the heartbeats of many streams that have the same events lie in time.
///
/// They are silent since the same moment, so that the first of a silence comes early by a part of the interval that is
/// drawn for each: else all would come at once. And they come in steps, a few at a time, which costs a tenth less than one
/// by one, because the runtime and the clients wake up less often.
///
/// Invariant: what is `first` or `together` is never after `due`, so that no silence is longer than the interval, and not
/// before `earliest`, so that the timer does not fire in vain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Many {
    /// A step begins here.
    pub(crate) origin: Instant,
}

impl Many {
    const EARLY: u32 = 8;
    const STEPS: u32 = 20;
    const LONGEST_STEP: Duration = Duration::from_millis(50);

    fn step(interval: Duration) -> Duration {
        (interval / Self::STEPS).min(Self::LONGEST_STEP)
    }

    fn first(self, due: Instant, interval: Duration) -> Instant {
        self.together(due - (interval / Self::EARLY).mul_f64(fastrand::f64()), interval)
    }

    fn together(self, due: Instant, interval: Duration) -> Instant {
        let since = due.duration_since(self.origin).as_nanos();
        let over = since % Self::step(interval).as_nanos().max(1);
        due - Duration::from_nanos(u64::try_from(over).unwrap_or(0))
    }

    fn earliest(due: Instant, interval: Duration) -> Instant {
        due - interval / Self::EARLY - Self::step(interval)
    }
}

/// What a [`KeepAliveStream`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beat<T> {
    /// The inner stream's next item.
    Item(T),
    /// The inner stream has been silent for an interval: the bytes to write between two events.
    Heartbeat(Bytes),
}

pin_project! {
    /// Interleaves heartbeats with any stream: one whenever the stream has been silent for an interval.
    ///
    /// [`Sse`](crate::Sse) and the hub's subscriptions have this built in; use it on its own to serve events with
    /// another HTTP library. It ends when the inner stream ends.
    ///
    /// # Panics
    ///
    /// When it is first polled idle outside of a tokio runtime that has its timer enabled.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when a pending `next()` is dropped.
    pub struct KeepAliveStream<S> {
        #[pin]
        stream: S,
        #[pin]
        beats: Beats,
        keep_alive: KeepAlive,
    }
}

impl<S> KeepAliveStream<S> {
    /// Wraps a stream. The first interval begins now.
    pub fn new(stream: S, keep_alive: KeepAlive) -> Self {
        Self { stream, beats: Beats::new(), keep_alive }
    }

    pub(crate) fn stream(self: Pin<&mut Self>) -> Pin<&mut S> {
        self.project().stream
    }

    /// Ends a silence, when the stream was polled on its own and had something.
    pub(crate) fn spoke(self: Pin<&mut Self>) {
        *self.project().beats.silent() = None;
    }

    /// Waits for the next heartbeat, while the stream has nothing.
    #[inline]
    pub(crate) fn poll_beat(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Bytes> {
        let this = self.project();
        this.beats.poll(this.keep_alive.interval, None, cx).map(|()| this.keep_alive.frame())
    }
}

impl<S: Stream> Stream for KeepAliveStream<S> {
    type Item = Beat<S::Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(item) = self.as_mut().stream().poll_next(cx) {
            self.spoke();
            return Poll::Ready(item.map(Beat::Item));
        }
        self.poll_beat(cx).map(|beat| Some(Beat::Heartbeat(beat)))
    }
}

impl<S> fmt::Debug for KeepAliveStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAliveStream").field("keep_alive", &self.keep_alive).finish_non_exhaustive()
    }
}
