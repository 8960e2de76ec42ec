//! The only code that writes the bytes of the wire.
//!
//! It knows the grammar of the format and nothing of clocks, streams or logs. What it is given was checked when it was
//! made ([`crate::field`]), so nothing here can fail.
//!
//! Invariant: a payload is copied once, from the caller's text to the frame. So its lines are written with room in
//! front for the short fields, which are known later, and behind for the id, which is known last.

use crate::field::EventType;
use bytes::{Buf as _, BufMut, BytesMut};
use std::borrow::Cow;

/// Bytes kept free before the data: enough for an `event:` and a `retry:` of the usual length.
const HEAD_ROOM: usize = 48;
/// Bytes kept free behind the data: enough for the id of a cursor and the blank line.
pub(crate) const ID_ROOM: usize = 64;

/// What an encoded event takes beside its own bytes.
pub(crate) const ROOM: usize = HEAD_ROOM + ID_ROOM;

/// The `data:` lines of one event, with room on both sides.
#[derive(Clone)]
pub(crate) struct DataLines(BytesMut);

impl DataLines {
    pub(crate) fn new(text: &str) -> Self {
        let mut buf = Self::room(text.len());
        put_lines(&mut buf, b"data:", text);
        Self(buf)
    }

    /// Lets `write` put a text of one line straight into its place.
    #[cfg(feature = "json")]
    pub(crate) fn written<E>(
        write: impl FnOnce(&mut bytes::buf::Writer<BytesMut>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut buf = Self::room(0);
        buf.put_slice(b"data: ");
        let mut writer = buf.writer();
        write(&mut writer)?;
        let mut buf = writer.into_inner();
        let text = &buf[HEAD_ROOM + b"data: ".len()..];
        // JSON has line breaks only where an application's raw value or serializer put them.
        if memchr::memchr2(b'\r', b'\n', text).is_some() {
            return Ok(Self::new(&String::from_utf8_lossy(text)));
        }
        buf.put_u8(b'\n');
        Ok(Self(buf))
    }

    fn room(len: usize) -> BytesMut {
        let mut buf = BytesMut::with_capacity(HEAD_ROOM + b"data: \n".len() + len + ID_ROOM);
        buf.put_bytes(0, HEAD_ROOM);
        buf
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
    fn put(&self, buf: &mut impl BufMut) {
        if let Some(comment) = self.comment {
            put_lines(buf, b":", comment);
        }
        if let Some(event_type) = self.event_type {
            put_field(buf, b"event:", event_type.as_str());
        }
        if let Some(ms) = self.retry_ms {
            put_field(buf, b"retry:", itoa::Buffer::new().format(ms));
        }
    }

    /// How many bytes `put` writes, if that is known without writing them.
    fn len(&self) -> Option<usize> {
        if self.comment.is_some() {
            return None;
        }
        let event_type = self.event_type.map_or(0, |t| b"event: \n".len() + t.as_str().len());
        let retry = self.retry_ms.map_or(0, |ms| b"retry: \n".len() + itoa::Buffer::new().format(ms).len());
        Some(event_type + retry)
    }
}

/// The body of an event: all its lines but the id and the blank line that dispatches it.
pub(crate) fn body(head: &Head<'_>, data: Option<DataLines>) -> BytesMut {
    match (head.len(), data) {
        (Some(len), Some(DataLines(mut buf))) if len <= HEAD_ROOM => {
            let start = HEAD_ROOM - len;
            head.put(&mut &mut buf[start..HEAD_ROOM]);
            buf.advance(start);
            buf
        }
        (len, data) => {
            let data = data.as_ref().map_or(&[][..], |lines| &lines.0[HEAD_ROOM..]);
            let mut buf = BytesMut::with_capacity(len.unwrap_or(0) + data.len() + ID_ROOM);
            head.put(&mut buf);
            buf.put_slice(data);
            buf
        }
    }
}

/// Ends a body that has an id: the id last, then the blank line.
pub(crate) fn finish_with_id(buf: &mut BytesMut, id: &str) {
    buf.reserve(b"id: \n\n".len() + id.len());
    put_field(buf, b"id:", id);
    buf.put_u8(b'\n');
}

/// Ends a body without an id.
pub(crate) fn finish(buf: &mut BytesMut) {
    buf.put_u8(b'\n');
}

fn put_field(buf: &mut impl BufMut, name: &[u8], value: &str) {
    buf.put_slice(name);
    if !value.is_empty() {
        buf.put_u8(b' ');
        buf.put_slice(value.as_bytes());
    }
    buf.put_u8(b'\n');
}

/// One line `name LINE` for each line of `text`. CRLF, LF and CR are each one line break, and a break at the end opens
/// one more, empty line: so the client reads back the same text, with its breaks as LF.
fn put_lines(buf: &mut impl BufMut, name: &[u8], text: &str) {
    let mut rest = text;
    while let Some(end) = memchr::memchr2(b'\r', b'\n', rest.as_bytes()) {
        put_field(buf, name, &rest[..end]);
        let len = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
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
