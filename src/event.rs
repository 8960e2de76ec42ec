//! [`Event`]: one event without an id, valid by construction.

use crate::{
    encode::{DataLines, Head, Lines},
    field::{EventId, EventType},
};
use bytes::Bytes;
use std::{fmt, time::Duration};

/// One event, without an id.
///
/// Ids are given by whoever orders the events: the [`Hub`](crate::Hub) when it publishes, or you, beside the event, in
/// the stream that you pass to [`Sse`](crate::Sse).
///
/// Setting a field twice keeps the last value. Nothing here fails or panics: an [`EventType`] is checked when it is
/// made, and any text can be data or a comment.
///
/// ```
/// use tidings::{Event, EventType};
///
/// const PRICE: EventType = EventType::from_static("price");
/// let event = Event::new().event_type(PRICE).data("first line\nsecond line");
/// assert_eq!(event.encode(None), "event: price\ndata: first line\ndata: second line\n\n");
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct Event {
    event_type: Option<EventType>,
    retry_ms: Option<u64>,
    comment: Option<Box<str>>,
    data: Option<DataLines>,
}

impl Event {
    /// An event without any field. On its own it writes nothing.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the data, any text at all.
    ///
    /// The client reads back the same text, with each line break (CRLF, LF or CR) as one LF. An empty text reaches the
    /// client as an empty message; an event whose data was never set dispatches nothing.
    ///
    /// The text is copied once, here, into its final form.
    #[inline]
    pub fn data(mut self, text: impl AsRef<str>) -> Self {
        self.data = Some(DataLines::new(text.as_ref()));
        self
    }

    /// Sets the data to a value as JSON, serialized straight into its final form.
    ///
    /// # Errors
    ///
    /// When the value's `Serialize` fails, or has a map with keys that are not strings.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn json(mut self, value: &(impl serde::Serialize + ?Sized)) -> Result<Self, JsonError> {
        self.data = Some(DataLines::written(|out| serde_json::to_writer(out, value)).map_err(JsonError)?);
        Ok(self)
    }

    /// Sets the event type, the name that `addEventListener` takes. Without one the client sees a `message`.
    #[inline]
    pub fn event_type(mut self, event_type: EventType) -> Self {
        self.event_type = Some(event_type);
        self
    }

    /// Sets how long the client waits before it reconnects, in whole milliseconds: a part of a millisecond is cut off.
    pub fn retry(mut self, delay: Duration) -> Self {
        self.retry_ms = Some(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Sets a comment, which clients ignore. Each of its lines becomes a comment line.
    ///
    /// An event that has nothing but a comment is written without the blank line that dispatches an event.
    pub fn comment(mut self, text: impl AsRef<str>) -> Self {
        self.comment = Some(text.as_ref().into());
        self
    }

    /// The bytes of the wire.
    #[must_use]
    pub fn encode(self, id: Option<&EventId>) -> Bytes {
        let mut lines = Lines::default();
        self.write(id, &mut lines);
        lines.take_frame()
    }

    /// Appends the bytes of the wire to a frame, and makes room for `more` if there is none; to an empty one without a
    /// copy.
    #[inline]
    pub(crate) fn join(self, id: Option<&EventId>, frame: &mut Lines, more: usize) {
        if frame.len() == 0 {
            self.write(id, frame);
        } else {
            let mut lines = Lines::default();
            self.write(id, &mut lines);
            frame.join(&lines, more);
        }
    }

    fn write(self, id: Option<&EventId>, lines: &mut Lines) {
        let dispatches = self.event_type.is_some() || self.retry_ms.is_some() || self.data.is_some();
        self.write_body(lines);
        if dispatches || id.is_some() {
            lines.finish(id.map(EventId::as_bytes));
        }
    }

    /// All lines but the id and the blank line.
    pub(crate) fn into_body(self) -> Lines {
        let mut lines = Lines::default();
        self.write_body(&mut lines);
        lines
    }

    #[inline]
    fn write_body(self, lines: &mut Lines) {
        let head =
            Head { comment: self.comment.as_deref(), event_type: self.event_type.as_ref(), retry_ms: self.retry_ms };
        lines.set_body(&head, self.data);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The payload stays out: events are logged more often than their authors expect.
        f.debug_struct("Event")
            .field("event_type", &self.event_type)
            .field("retry_ms", &self.retry_ms)
            .field("comment", &self.comment.is_some())
            .field("data_bytes", &self.data.as_ref().map(DataLines::len))
            .finish()
    }
}

/// Why a value could not be written as JSON.
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
#[derive(Debug)]
pub struct JsonError(serde_json::Error);

#[cfg(feature = "json")]
impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value cannot be written as JSON: {}", self.0)
    }
}

#[cfg(feature = "json")]
impl std::error::Error for JsonError {}
