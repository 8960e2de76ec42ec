//! The only code that writes the bytes of the wire.
//!
//! It knows the grammar of the format and nothing of clocks, streams or logs. What it is given was checked when it was
//! made ([`crate::field`]), so nothing here can fail.
//!
//! Invariant: a payload is copied once, from the caller's text to the frame. So its lines are written with room in
//! front for the short fields, which are known later, and behind for the id, which is known last.

use crate::field::EventType;
use bytes::{Buf as _, BufMut, Bytes};
use std::borrow::Cow;

/// Bytes kept free before the data: enough for an `event:` and a `retry:` of the usual length.
const HEAD_ROOM: usize = 48;
/// Bytes kept free behind the data: enough for the id of a cursor and the blank line.
pub(crate) const ID_ROOM: usize = 64;

/// What an encoded event takes beside its own bytes.
pub(crate) const ROOM: usize = HEAD_ROOM + ID_ROOM;

/// The room in front, and how data begins.
const OPENING: [u8; HEAD_ROOM + 6] = *b"                                                data: ";

/// The longest frame that is moved to the end of its memory: to share memory with a spare end takes `Bytes` one more
/// allocation, and that costs more than to move a little.
const SHORT: usize = 2048;

/// The `data:` lines of one event, with room on both sides.
#[derive(Clone)]
pub(crate) struct DataLines(Vec<u8>);

impl DataLines {
    pub(crate) fn new(text: &str) -> Self {
        let mut buf = Vec::with_capacity(OPENING.len() + text.len() + b"\n".len() + ID_ROOM);
        if text.is_empty() || memchr::memchr2(b'\r', b'\n', text.as_bytes()).is_some() {
            buf.extend_from_slice(&OPENING[..HEAD_ROOM]);
            put_lines(&mut buf, b"data: ", text);
        } else {
            buf.extend_from_slice(&OPENING);
            buf.extend_from_slice(text.as_bytes());
            buf.push(b'\n');
        }
        Self(buf)
    }

    /// Lets `write` put a text of one line straight into its place.
    #[cfg(feature = "json")]
    pub(crate) fn written<E>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Self, E> {
        let mut buf = Vec::with_capacity(OPENING.len() + ID_ROOM);
        buf.extend_from_slice(&OPENING);
        write(&mut buf)?;
        let text = &buf[OPENING.len()..];
        // JSON has line breaks only where an application's raw value or serializer put them.
        if memchr::memchr2(b'\r', b'\n', text).is_some() {
            return Ok(Self::new(&String::from_utf8_lossy(text)));
        }
        buf.push(b'\n');
        Ok(Self(buf))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() - HEAD_ROOM
    }
}

/// What stands before the data of an event.
pub(crate) struct Head<'a> {
    pub(crate) comment: Option<&'a str>,
    pub(crate) event_type: Option<&'a EventType>,
    pub(crate) retry_ms: Option<u64>,
}

impl Head<'_> {
    #[inline]
    fn put(&self, buf: &mut impl BufMut) {
        if let Some(comment) = self.comment {
            put_lines(buf, b": ", comment);
        }
        if let Some(event_type) = self.event_type {
            put_field(buf, b"event: ", event_type.as_bytes());
        }
        if let Some(ms) = self.retry_ms {
            put_field(buf, b"retry: ", itoa::Buffer::new().format(ms).as_bytes());
        }
    }

    /// How many bytes `put` writes, if that is known without writing them.
    #[inline]
    fn len(&self) -> Option<usize> {
        if self.comment.is_some() {
            return None;
        }
        let event_type = self.event_type.map_or(0, |t| b"event: \n".len() + t.as_bytes().len());
        let retry = self.retry_ms.map_or(0, |ms| b"retry: \n".len() + itoa::Buffer::new().format(ms).len());
        Some(event_type + retry)
    }
}

/// Lines of the wire, behind what is left of the room in front and before the room for an id.
#[derive(Default)]
pub(crate) struct Lines {
    buf: Vec<u8>,
    start: usize,
}

impl Lines {
    /// Sets the body of an event: all its lines but the id and the blank line that dispatches it.
    #[inline]
    pub(crate) fn set_body(&mut self, head: &Head<'_>, data: Option<DataLines>) {
        match (head.len(), data) {
            (Some(len), Some(DataLines(buf))) if len <= HEAD_ROOM => {
                self.start = HEAD_ROOM - len;
                self.buf = buf;
                head.put(&mut &mut self.buf[self.start..HEAD_ROOM]);
            }
            (len, data) => {
                let data = data.as_ref().map_or(&[][..], |lines| &lines.0[HEAD_ROOM..]);
                self.start = 0;
                self.buf = Vec::with_capacity(len.unwrap_or(0) + data.len() + ID_ROOM);
                head.put(&mut self.buf);
                self.buf.extend_from_slice(data);
            }
        }
    }

    /// Ends a body, as [`finish`] does.
    #[inline]
    pub(crate) fn finish(&mut self, id: Option<&[u8]>) {
        finish(&mut self.buf, id);
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.buf.len() - self.start
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buf[self.start..]
    }

    /// Adds lines that are ready together, and makes room for `more` if there is none.
    pub(crate) fn join(&mut self, lines: &Self, more: usize) {
        if self.buf.capacity() - self.buf.len() < lines.len() {
            self.buf.reserve(lines.len().max(more));
        }
        self.buf.extend_from_slice(lines.as_bytes());
    }

    /// As they are, with the room behind them.
    pub(crate) fn take(&mut self) -> Bytes {
        let mut bytes = Bytes::from(std::mem::take(&mut self.buf));
        bytes.advance(std::mem::take(&mut self.start));
        bytes
    }

    /// As a frame, to which nothing is added any more.
    pub(crate) fn take_frame(&mut self) -> Bytes {
        let (len, spare) = (self.buf.len(), self.buf.capacity() - self.buf.len());
        if len + spare <= SHORT + ROOM {
            self.buf.resize(len + spare, 0);
            self.buf.copy_within(self.start..len, self.start + spare);
            self.start += spare;
        }
        self.take()
    }
}

/// Ends a body: the id last, if it has one, then the blank line.
#[inline]
pub(crate) fn finish(buf: &mut impl BufMut, id: Option<&[u8]>) {
    if let Some(id) = id {
        put_field(buf, b"id: ", id);
    }
    buf.put_slice(b"\n");
}

/// One field; `name` ends in the space that comes before a value.
#[inline]
fn put_field(buf: &mut impl BufMut, name: &[u8], value: &[u8]) {
    buf.put_slice(if value.is_empty() { &name[..name.len() - 1] } else { name });
    buf.put_slice(value);
    buf.put_slice(b"\n");
}

/// One line `name LINE` for each line of `text`. CRLF, LF and CR are each one line break, and a break at the end opens
/// one more, empty line: so the client reads back the same text, with its breaks as LF.
fn put_lines(buf: &mut impl BufMut, name: &[u8], text: &str) {
    let mut rest = text.as_bytes();
    while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
        put_field(buf, name, &rest[..end]);
        let len = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[end + len..];
    }
    put_field(buf, name, rest);
}

/// Why bytes that were kept somewhere cannot be the body of an event.
pub(crate) fn check_body(body: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(body).map_err(|_| "it is not UTF-8")?;
    if text.contains('\r') {
        return Err("it has a carriage return");
    }
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("its last line has no end");
    }
    for line in text.lines() {
        if line.is_empty() {
            return Err("it has a blank line, which would dispatch half of the event");
        }
        if line == "id" || line.starts_with("id:") {
            return Err("it has an id, which only the log gives");
        }
    }
    Ok(())
}

/// The value of the first field `name` in a body.
pub(crate) fn field<'a>(body: &'a [u8], name: &str) -> Option<&'a str> {
    values(body, name).next()
}

/// The text of the `data:` lines of a body, with line breaks as LF; copied only if there are several lines.
pub(crate) fn data(body: &[u8]) -> Option<Cow<'_, str>> {
    let mut lines = values(body, "data");
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
    let mut text = String::with_capacity(body.len());
    text.push_str(first);
    for line in std::iter::once(second).chain(lines) {
        text.push('\n');
        text.push_str(line);
    }
    Some(Cow::Owned(text))
}

fn values<'a>(body: &'a [u8], name: &str) -> impl Iterator<Item = &'a str> {
    // Every body is made here or passed `check_body`, so it is UTF-8.
    let text = std::str::from_utf8(body).unwrap_or_default();
    text.lines().filter_map(move |line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        Some(value.strip_prefix(' ').unwrap_or(value))
    })
}
