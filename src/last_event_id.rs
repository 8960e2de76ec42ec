//! [`LastEventId`]: where the client says it left off.
//!
//! What a client sends is never trusted and never an error: every value, however broken, has a defined outcome.

use crate::EventId;
use http::{HeaderMap, HeaderName, Uri, request::Parts};
use percent_encoding::percent_decode;
use std::{borrow::Cow, fmt};

/// The request header that `EventSource` sends when it reconnects.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The query parameter that is read when there is no header: for clients that cannot set one, and for the first
/// connection of a page that was rendered at a known position.
pub const LAST_EVENT_ID_PARAMETER: &str = "lastEventId";

/// Ids over this length are not kept. The ids of a hub are shorter than 128 bytes.
const MAX_LEN: usize = 1024;

/// The last event id that a client received, from the `Last-Event-ID` header or the `lastEventId` query parameter.
///
/// The header wins, because an `EventSource` keeps the URL it was made with and so repeats an old parameter for as long
/// as it lives.
///
/// | the request has | outcome |
/// | --- | --- |
/// | neither, or an empty one | [absent](Self::is_absent): a fresh client |
/// | a value of up to 1,024 bytes of UTF-8 | [the value](Self::as_str) |
/// | a longer value, or one that is not UTF-8 | [invalid](Self::is_invalid) |
///
/// Whether a value is one of a hub's own ids is for the hub to say; one that is not, or that is invalid here, is
/// reported to the client as a gap.
///
/// With feature `axum` it is an extractor that never rejects.
///
/// See [HTML, 9.2.4](https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastEventId(Value);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Value {
    #[default]
    Absent,
    Text(Box<str>),
    Invalid,
}

impl LastEventId {
    /// A client that was never here.
    #[must_use]
    pub const fn absent() -> Self {
        Self(Value::Absent)
    }

    /// Reads the header, or else the query parameter, of a request.
    #[must_use]
    pub fn from_parts(parts: &Parts) -> Self {
        Self::from_request(&parts.headers, &parts.uri)
    }

    /// Reads the header `Last-Event-ID`, or else the query parameter `lastEventId`.
    #[must_use]
    pub fn from_request(headers: &HeaderMap, uri: &Uri) -> Self {
        Self::from_request_with(headers, uri, LAST_EVENT_ID_PARAMETER)
    }

    /// The same with another name for the query parameter.
    #[must_use]
    pub fn from_request_with(headers: &HeaderMap, uri: &Uri, parameter: &str) -> Self {
        let header = headers.get(LAST_EVENT_ID).map(|value| Self::from_bytes(value.as_bytes()));
        match header {
            Some(value) if !value.is_absent() => value,
            _ => Self::from_query(uri.query().unwrap_or_default(), parameter),
        }
    }

    fn from_query(query: &str, parameter: &str) -> Self {
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if *decoded(name) == *parameter.as_bytes() {
                return Self::from_bytes(&decoded(value));
            }
        }
        Self::absent()
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            _ if bytes.len() > MAX_LEN => Self(Value::Invalid),
            Ok("") => Self(Value::Absent),
            Ok(text) => Self(Value::Text(text.into())),
            Err(_) => Self(Value::Invalid),
        }
    }

    /// The value, if the client sent one that can be used.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.0 {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether the client sent no id, or the empty one, which is what a client that has none sends.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.0 == Value::Absent
    }

    /// Whether the client sent something that cannot be an id: too long, or not UTF-8.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.0 == Value::Invalid
    }
}

impl From<&str> for LastEventId {
    fn from(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }
}

impl From<EventId> for LastEventId {
    fn from(id: EventId) -> Self {
        Self::from(id.as_str())
    }
}

impl From<String> for LastEventId {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl<T: Into<LastEventId>> From<Option<T>> for LastEventId {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::absent(), Into::into)
    }
}

impl fmt::Display for LastEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Value::Absent => f.write_str("(absent)"),
            Value::Text(text) => f.write_str(text),
            Value::Invalid => f.write_str("(invalid)"),
        }
    }
}

/// Undoes `application/x-www-form-urlencoded`. Bytes, not text: what is not UTF-8 must be seen, not mended.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode(spaced.as_bytes()).collect());
    }
    percent_decode(text.as_bytes()).into()
}
