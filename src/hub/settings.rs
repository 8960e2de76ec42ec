//! What a hub can be told about how its subscriptions look on the wire. [`Names`] is the one place of the names that
//! clients see.

use super::{follow::Start, gap::GapPolicy, lag::LagBudget};
use crate::{EventType, KeepAlive, LastEventId, keep_alive::Many, last_event_id::LAST_EVENT_ID_PARAMETER};
use http::{HeaderName, request::Parts};
use std::{borrow::Cow, time::Duration};
use tokio::time::Instant;

/// The names that a hub's clients see: part of the contract with them, so change them before you have clients.
///
/// ```
/// use tidings::{EventType, Hub, Names};
///
/// let names = Names { gap_event: EventType::from_static("missed"), ..Names::default() };
/// let hub = Hub::builder().names(names).build();
/// ```
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made with functional update; a new name is a new major version anyway")]
pub struct Names {
    /// The response header that says why a resume has a gap, where that is known before the response begins: `evicted`,
    /// `foreign` or `malformed`. Default: `tidings-gap`.
    pub gap_header: HeaderName,
    /// The type of the event that reports a gap, for `EventSource`, which cannot read headers. Its data is
    /// `{"reason":"evicted","after":"ID","through":"ID"}`: events between the two ids may be missing. `after` can be
    /// `null`. Default: `tidings-gap`.
    pub gap_event: EventType,
    /// The type of the event that says why the server ends a stream, where that is asked for with
    /// [`announce_ends`](crate::HubBuilder::announce_ends). Its data is `{"reason":"finished"}`. Default: `tidings-end`.
    pub end_event: EventType,
    /// The type of the event that begins a stream whose client is to send heartbeats
    /// (`HubBuilder::client_heartbeats`, feature `client-heartbeats`). Its data is
    /// `{"token":"…","timeout":30000,"interval":15000}`: post the token every `interval` milliseconds. Default:
    /// `tidings-session`.
    pub session_event: EventType,
    /// The type of the event that answers such a heartbeat. Its data is the heartbeat's number, from 1. Default:
    /// `tidings-pong`.
    pub pong_event: EventType,
    /// The query parameter that carries the last event id where there is no header. It is what the hub's handler and
    /// [`Subscription::for_request`](crate::Subscription::for_request) read; [`LastEventId`] as an extractor knows only the
    /// default: `lastEventId`.
    pub last_event_id_parameter: Cow<'static, str>,
}

impl Names {
    pub(crate) fn last_event_id(&self, request: &Parts) -> LastEventId {
        LastEventId::from_request_with(&request.headers, &request.uri, &self.last_event_id_parameter)
    }
}

impl Default for Names {
    fn default() -> Self {
        Self {
            gap_header: HeaderName::from_static("tidings-gap"),
            gap_event: EventType::from_static("tidings-gap"),
            end_event: EventType::from_static("tidings-end"),
            session_event: EventType::from_static("tidings-session"),
            pong_event: EventType::from_static("tidings-pong"),
            last_event_id_parameter: LAST_EVENT_ID_PARAMETER.into(),
        }
    }
}

/// How a client's last event id is moved when there is no event to carry it: at the start of a fresh subscription, after
/// a gap report, and with the heartbeats of a quiet one.
///
/// Without it, a client that is cut before its first event cannot say where it was, and comes back as a fresh one.
///
/// A script sees an id only with an event. One that watches over its connection, and makes a new `EventSource` when it is
/// silent, needs [`Named`](Self::Named): else it does not know its id before the first event or named heartbeat.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum CursorMoves {
    /// A block with nothing but an `id:`, which `EventSource` takes in silently. The default.
    #[default]
    IdOnly,
    /// An event of this type whose data is the id: for clients that drop blocks without data.
    Named(EventType),
    /// Not at all: for clients that raise a message on every blank line.
    Off,
}

/// Shared by the subscriptions of a hub; a subscription that differs has a copy.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) keep_alive: KeepAlive,
    pub(crate) heartbeats: Many,
    pub(crate) retry: Duration,
    pub(crate) cursor_moves: CursorMoves,
    pub(crate) names: Names,
    pub(crate) accel_buffering: bool,
    pub(crate) page: (usize, usize),
    pub(crate) start: Start,
    pub(crate) lag_budget: LagBudget,
    pub(crate) on_gap: GapPolicy,
    pub(crate) announce_ends: bool,
    pub(crate) max_lifetime: Option<Duration>,
    #[cfg(feature = "client-heartbeats")]
    pub(crate) client_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keep_alive: KeepAlive::new(),
            heartbeats: Many { origin: Instant::now() },
            // What browsers use by themselves, give or take.
            retry: Duration::from_secs(3),
            cursor_moves: CursorMoves::default(),
            names: Names::default(),
            accel_buffering: false,
            // One page for each round trip to a store, and for each client that catches up, in memory.
            page: (256, 256 * 1024),
            start: Start::Now,
            lag_budget: LagBudget::new(),
            on_gap: GapPolicy::default(),
            announce_ends: false,
            max_lifetime: None,
            #[cfg(feature = "client-heartbeats")]
            client_timeout: None,
        }
    }
}

impl Settings {
    /// The client's reconnection time, drawn for each client from half to one and a half of the setting, so that those
    /// who were cut together do not come back together.
    pub(crate) fn draw_retry(&self) -> Duration {
        let ms = u64::try_from(self.retry.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(fastrand::u64(ms / 2..=ms.saturating_add(ms / 2)))
    }
}
