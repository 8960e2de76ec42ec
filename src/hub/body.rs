//! [`SubscriptionBody`]: a subscription as bytes on the wire.
//!
//! It knows what a client is sent beside the events: the opening, gap reports, heartbeats, and blocks that only move the
//! client's last event id.
//!
//! Invariant: no id is sent before everything up to it was handed to the connection.

use super::{
    end::EndReason,
    error::SubscriptionError,
    follow::{Follower, Step},
    gap::Gap,
    settings::{CursorMoves, Settings},
    snapshot::Snapshot,
};
use crate::{
    Event, EventId,
    keep_alive::Beats,
    replay::{Cursor, Entry},
    response::FRAME_TARGET,
};
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::Instant;

pin_project! {
    /// The body of a [`Subscription`](crate::Subscription)'s response.
    pub struct SubscriptionBody {
        // Nothing after the end.
        wire: Option<Wire>,
        #[pin]
        beats: Beats,
    }
}

impl SubscriptionBody {
    pub(crate) fn new(follower: Follower, settings: Arc<Settings>) -> Self {
        Self::with_state(follower, settings, State::Opening)
    }

    /// "Not now": when to come back, and the end.
    pub(crate) fn come_back(follower: Follower, settings: Arc<Settings>) -> Self {
        Self::with_state(follower, settings, State::Denied)
    }

    /// A body without a byte.
    pub(crate) fn empty() -> Self {
        Self { wire: None, beats: Beats::new() }
    }

    fn with_state(follower: Follower, settings: Arc<Settings>, state: State) -> Self {
        Self { wire: Some(Wire { follower, settings, state, sent: None }), beats: Beats::new() }
    }
}

impl Body for SubscriptionBody {
    type Data = Bytes;
    type Error = SubscriptionError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SubscriptionError>>> {
        let mut this = self.project();
        let Some(wire) = this.wire else { return Poll::Ready(None) };
        let frame = match wire.poll_sent(cx, this.beats.as_mut().silent()) {
            Poll::Ready(Some(frame)) => {
                this.beats.not_now();
                frame
            }
            Poll::Ready(None) => {
                *this.wire = None;
                return Poll::Ready(None);
            }
            Poll::Pending => {
                let settings = &wire.settings;
                ready!(this.beats.as_mut().poll(settings.keep_alive.idle_interval(), Some(settings.heartbeats), cx));
                Ok(wire.heartbeat())
            }
        };
        Poll::Ready(Some(frame.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.wire.is_none()
    }
}

impl fmt::Debug for SubscriptionBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionBody").field("ended", &self.is_end_stream()).finish_non_exhaustive()
    }
}

/// The frames of a subscription.
struct Wire {
    follower: Follower,
    settings: Arc<Settings>,
    state: State,
    /// The position of the last id that the client has or was sent.
    sent: Option<u64>,
}

enum State {
    Opening,
    /// It was turned away.
    Denied,
    Following,
    /// The error waits for one more poll, because hyper throws away the frames that it has not flushed when a body
    /// fails.
    Failed(SubscriptionError),
    Flushed(SubscriptionError),
    Ended,
}

impl Wire {
    /// The next frame; takes down since when there is silence.
    #[expect(clippy::inline_always, reason = "apart from its only caller, a delivery takes a tenth more instructions")]
    #[inline(always)]
    fn poll_sent(
        &mut self,
        cx: &mut Context<'_>,
        silent: &mut Option<Instant>,
    ) -> Poll<Option<Result<Bytes, SubscriptionError>>> {
        loop {
            let frame = if let State::Following = self.state {
                match ready!(self.follower.poll_step(cx)) {
                    Some(Ok(Step::Stretch(stretch))) => {
                        self.sent = Some(stretch.last);
                        // What is live was published just now: that saves asking the clock for each delivery.
                        *silent = silent.and_then(|since| Some(self.follower.newest_at()?.max(since)));
                        return Poll::Ready(Some(Ok(stretch.frame)));
                    }
                    Some(Ok(Step::Entry(entry))) => self.frame(&entry),
                    Some(Ok(Step::Gap(gap))) => self.gap(gap),
                    Some(Ok(Step::Snapshot(snapshot))) => self.snapshot(&snapshot),
                    #[cfg(feature = "client-heartbeats")]
                    Some(Ok(Step::Pong(number))) => self.pong(number),
                    Some(Err(error)) => self.failing(error),
                    None => {
                        self.state = State::Ended;
                        self.end()
                    }
                }
            } else {
                match ready!(self.poll_edge(cx)) {
                    Some(Ok(frame)) => frame,
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => return Poll::Ready(None),
                }
            };
            // An end without an event is nothing to a client that takes no blocks that only move its id.
            if !frame.is_empty() {
                *silent = None;
                return Poll::Ready(Some(Ok(frame)));
            }
        }
    }

    /// Before the first step, and after the last.
    fn poll_edge(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, SubscriptionError>>> {
        if let State::Opening = self.state {
            return Poll::Ready(Some(Ok(match ready!(self.follower.poll_entered(cx)) {
                Ok(()) => {
                    self.state = State::Following;
                    let opening = self.opening();
                    #[cfg(feature = "client-heartbeats")]
                    let opening = match self.settings.client_timeout.filter(|_| self.follower.is_inside()) {
                        Some(timeout) => [opening, self.session(timeout)].concat().into(),
                        None => opening,
                    };
                    opening
                }
                Err(error) if error.is_denied() => {
                    self.state = State::Ended;
                    self.come_back()
                }
                Err(error) => self.failing(error),
            })));
        }
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Denied => Poll::Ready(Some(Ok(self.come_back()))),
            State::Failed(error) => {
                self.state = State::Flushed(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            State::Flushed(error) => Poll::Ready(Some(Err(error))),
            State::Opening | State::Following | State::Ended => Poll::Ready(None),
        }
    }

    /// One entry as it is, without a copy; joined with those that wait behind it, if any, for a reader that is behind.
    fn frame(&mut self, entry: &Entry) -> Bytes {
        let frame = self.bytes(entry);
        let second = self.follower.next_within(FRAME_TARGET.saturating_sub(frame.len()));
        self.has_sent(entry);
        let Some(second) = second else { return frame };
        let mut joined = BytesMut::with_capacity(FRAME_TARGET);
        joined.extend_from_slice(&frame);
        let mut next = Some(second);
        while let Some(entry) = next {
            joined.extend_from_slice(&self.bytes(&entry));
            self.has_sent(&entry);
            next = self.follower.next_within(FRAME_TARGET.saturating_sub(joined.len()));
        }
        joined.freeze()
    }

    /// An ephemeral event has no id.
    fn has_sent(&mut self, entry: &Entry) {
        if !entry.is_ephemeral() {
            self.sent = Some(entry.position());
        }
    }

    /// An entry's bytes; those of an end without an event are a move of the id like others.
    fn bytes(&self, entry: &Entry) -> Bytes {
        if entry.record().is_bare_finish() {
            return self.move_to(entry.cursor(), Event::new());
        }
        entry.frame().clone()
    }

    /// The client's reconnection time, and from where it reads: a fresh client has no id yet, nor has a new `EventSource`
    /// that resumes by the query parameter.
    fn opening(&mut self) -> Bytes {
        let retry = Event::new().retry(self.settings.draw_retry());
        self.sent = self.follower.place().map(Cursor::position);
        match self.sent {
            Some(_) => self.cursor_move(retry),
            // The id comes later. The standard applies `retry:` at the end of its line.
            None => retry.into_body().take(),
        }
    }

    /// What the client needs in order to say that it is there.
    #[cfg(feature = "client-heartbeats")]
    fn session(&mut self, timeout: std::time::Duration) -> Bytes {
        let timeout = timeout.clamp(std::time::Duration::from_millis(1), super::LONGEST);
        match self.follower.begin_session(timeout) {
            Ok(session) => {
                let (token, timeout) = (session.token(), timeout.as_millis());
                let data = format!(r#"{{"token":"{token}","timeout":{timeout},"interval":{}}}"#, timeout.div_ceil(2));
                Event::new().event_type(self.settings.names.session_event.clone()).data(data).encode(None)
            }
            Err(error) => {
                let error = SubscriptionError::session(error);
                #[cfg(feature = "tracing")]
                self.follower.trace_failure(&error);
                self.follower.fail();
                self.failing(error)
            }
        }
    }

    #[cfg(feature = "client-heartbeats")]
    fn pong(&self, number: u64) -> Bytes {
        let event = Event::new().event_type(self.settings.names.pong_event.clone());
        event.data(number.to_string()).encode(None)
    }

    /// The report, and then the id from which the client goes on: not in one, because a client that reads the id has
    /// read the report.
    fn gap(&mut self, gap: Gap) -> Bytes {
        let report = Event::new().event_type(self.settings.names.gap_event.clone()).data(gap.to_json());
        let report = report.encode(None);
        self.sent = self.follower.place().map(Cursor::position);
        if self.sent.is_none() {
            return report;
        }
        [report, self.cursor_move(Event::new())].concat().into()
    }

    /// The state, and only then the id from which the log is followed.
    fn snapshot(&mut self, snapshot: &Snapshot) -> Bytes {
        self.sent = Some(snapshot.cursor.position());
        [&snapshot.frame[..], &self.cursor_move(Event::new())].concat().into()
    }

    /// The id, if the position has moved past what the client did not want, so that it does not come back for that; and
    /// the reason, if it is to be told.
    fn end(&self) -> Bytes {
        let place = self.follower.place().map(Cursor::position);
        let moved = place.is_some() && place != self.sent;
        let mut frame = if moved { self.cursor_move(Event::new()).to_vec() } else { Vec::new() };
        let reason = self.follower.end_reason();
        if let (Some(EndReason::Drained), Some(goodbye)) = (reason, self.follower.goodbye()) {
            let event = goodbye.event.clone().unwrap_or_default().retry(goodbye.draw_retry());
            frame.extend_from_slice(&event.encode(None));
        }
        if let Some(reason) = reason.filter(|_| self.settings.announce_ends) {
            // No reason has a character that JSON escapes.
            let data = format!(r#"{{"reason":"{reason}"}}"#);
            let end = Event::new().event_type(self.settings.names.end_event.clone()).data(data);
            frame.extend_from_slice(&end.encode(None));
        }
        frame.into()
    }

    fn failing(&mut self, error: SubscriptionError) -> Bytes {
        self.state = State::Failed(error);
        // The client's id is still good: it goes on.
        self.come_back()
    }

    /// It is to come back, but not at once.
    fn come_back(&self) -> Bytes {
        Event::new().retry(self.follower.draw_retry(&self.settings)).encode(None)
    }

    /// What an idle connection sends: its heartbeat, with the new id if the position has moved.
    fn heartbeat(&mut self) -> Bytes {
        self.follower.counters().heartbeat();
        let moved = self.follower.is_level() && self.sent != Some(self.follower.cursor().position());
        if !moved || matches!(self.settings.cursor_moves, CursorMoves::Off) {
            return self.settings.keep_alive.frame();
        }
        self.sent = Some(self.follower.cursor().position());
        match self.settings.keep_alive.named() {
            // Scripts wait for the heartbeat itself, so it carries the id.
            Some(event) => event.encode(Some(&self.follower.cursor().into())),
            None => self.cursor_move(Event::new()),
        }
    }

    /// Moves the client's last id to the cursor, in the way the settings say.
    fn cursor_move(&self, event: Event) -> Bytes {
        self.move_to(self.follower.cursor(), event)
    }

    fn move_to(&self, cursor: Cursor, event: Event) -> Bytes {
        let id = EventId::from(cursor);
        match &self.settings.cursor_moves {
            CursorMoves::IdOnly => event.encode(Some(&id)),
            CursorMoves::Named(event_type) => event.event_type(event_type.clone()).data(&id).encode(Some(&id)),
            CursorMoves::Off => event.into_body().take(),
        }
    }
}
