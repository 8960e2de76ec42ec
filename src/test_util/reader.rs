//! Reads an event stream as the standard says a client must, and as little like the encoder as possible.

use bytes::Buf;
use http_body::Body;
use std::{fmt, future::poll_fn, pin::Pin};

/// One event as an `EventSource` would dispatch it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// The type; `message` if the event has none.
    pub event_type: String,
    /// The data, with line breaks as LF.
    pub data: String,
    /// The last event id as of this event; empty if there was none yet.
    pub last_event_id: String,
}

/// All events in some bytes that begin where a stream begins. An event that is cut off is not one.
#[must_use]
pub fn decode(bytes: &[u8]) -> Vec<Received> {
    let mut decoder = Decoder::default();
    bytes.iter().filter_map(|byte| decoder.push(*byte)).collect()
}

/// Reads a response body as an `EventSource` would: the next event, and what a client remembers.
pub struct EventReader<B> {
    body: Pin<Box<B>>,
    decoder: Decoder,
    chunk: Box<dyn Buf + Send>,
}

impl<B> EventReader<B>
where
    B: Body<Data: Send + 'static, Error: fmt::Display>,
{
    /// Reads `body` from its beginning.
    pub fn new(body: B) -> Self {
        Self { body: Box::pin(body), decoder: Decoder::default(), chunk: Box::new(&[][..]) }
    }

    /// The next event; `None` at a clean end.
    ///
    /// # Panics
    ///
    /// When the body fails; use [`try_next`](Self::try_next) where that is expected.
    pub async fn next(&mut self) -> Option<Received> {
        match self.try_next().await {
            Ok(event) => event,
            Err(error) => panic!("the body failed: {error}"),
        }
    }

    /// The next event, or how the body failed.
    ///
    /// # Errors
    ///
    /// When the body fails: the connection would be cut.
    pub async fn try_next(&mut self) -> Result<Option<Received>, B::Error> {
        loop {
            while self.chunk.has_remaining() {
                if let Some(event) = self.decoder.push(self.chunk.get_u8()) {
                    return Ok(Some(event));
                }
            }
            let frame = poll_fn(|cx| self.body.as_mut().poll_frame(cx)).await;
            let Some(frame) = frame.transpose()? else { return Ok(None) };
            if let Ok(data) = frame.into_data() {
                self.chunk = Box::new(data);
            }
        }
    }

    /// What the client would send as `Last-Event-ID` if it was cut now. Blocks that have only an id move it, too.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.decoder.last_event_id
    }

    /// The reconnection time in milliseconds, if the stream has set it.
    #[must_use]
    pub fn retry_ms(&self) -> Option<u64> {
        self.decoder.retry_ms
    }

    /// The comments so far; an empty heartbeat is an empty one.
    #[must_use]
    pub fn comments(&self) -> &[String] {
        &self.decoder.comments
    }
}

impl<B> fmt::Debug for EventReader<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventReader").field("last_event_id", &self.decoder.last_event_id).finish_non_exhaustive()
    }
}

/// [HTML, 9.2.6](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation), a byte at a
/// time.
#[derive(Default)]
struct Decoder {
    started: bool,
    after_cr: bool,
    line: Vec<u8>,
    event_type: String,
    data: String,
    id: String,
    last_event_id: String,
    retry_ms: Option<u64>,
    comments: Vec<String>,
}

impl Decoder {
    fn push(&mut self, byte: u8) -> Option<Received> {
        let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
        match byte {
            b'\n' if after_cr => None,
            b'\n' | b'\r' => {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
                let started = std::mem::replace(&mut self.started, true);
                self.line(if started { &line } else { line.strip_prefix('\u{feff}').unwrap_or(&line) })
            }
            _ => {
                self.line.push(byte);
                None
            }
        }
    }

    fn line(&mut self, line: &str) -> Option<Received> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => self.comments.push(value.to_owned()),
            "event" => value.clone_into(&mut self.event_type),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry_ms = value.parse().ok().or(self.retry_ms);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Received> {
        self.last_event_id.clone_from(&self.id);
        let event_type = std::mem::take(&mut self.event_type);
        let mut data = std::mem::take(&mut self.data);
        // Without a `data:` line nothing is dispatched; with an empty one the buffer has its line feed.
        data.pop()?;
        Some(Received {
            event_type: if event_type.is_empty() { "message".to_owned() } else { event_type },
            data,
            last_event_id: self.last_event_id.clone(),
        })
    }
}
