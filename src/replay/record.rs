//! [`Record`]: what is appended to a log. [`Entry`]: a record that has its place.

use super::{Cursor, cursor::CursorText};
use crate::{
    Event, Topic,
    encode::{self, Lines},
};
use bytes::{Bytes, BytesMut};
use std::{borrow::Cow, fmt, sync::Arc, time::SystemTime};

/// What a [`Record`] does to its topic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// One more event.
    Event,
    /// The end of the topic, with or without a last event. Nothing can be appended after it.
    Finish,
    /// The newest event of its key: it takes the place of what the topic has under that key.
    Latest,
    /// The last event of its key: it takes that place too, and is then kept no longer than any event.
    Removal,
}

impl Kind {
    /// The kind as a word, for a store to keep: `event`, `finish`, `latest` or `removal`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Finish => "finish",
            Self::Latest => "latest",
            Self::Removal => "removal",
        }
    }

    /// The kind of a word that [`as_str`](Self::as_str) gave.
    #[must_use]
    pub fn from_name(word: &str) -> Option<Self> {
        [Self::Event, Self::Finish, Self::Latest, Self::Removal].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// One event on its way into a log, or read back from one: its topic, its encoded body, and what filters and stores
/// need to know of it.
///
/// The body has every line of the event but the id. A store keeps it as it is, and never has to look inside.
#[derive(Clone)]
#[must_use]
pub struct Record {
    topic: Topic,
    kind: Kind,
    body: Bytes,
    time: SystemTime,
    // Most records have neither a key nor labels.
    extra: Option<Arc<Extra>>,
}

#[derive(Clone, Default)]
struct Extra {
    key: Option<Box<str>>,
    idempotency_key: Option<Box<str>>,
    labels: Vec<(Box<str>, Box<str>)>,
}

impl Record {
    /// One event of a topic, made now.
    pub fn new(topic: impl Into<Topic>, event: Event) -> Self {
        Self::with_body(topic.into(), Kind::Event, event.into_body().take(), SystemTime::now())
    }

    /// The end of a topic, with an optional last event.
    pub fn finish(topic: impl Into<Topic>, last: Option<Event>) -> Self {
        let body = last.unwrap_or_default().into_body().take();
        Self::with_body(topic.into(), Kind::Finish, body, SystemTime::now())
    }

    /// The newest event of a key: what the topic has under the same key goes, and this one is kept until it is replaced
    /// in turn.
    ///
    /// For state that is always sent whole, such as prices, positions or presence: a client that was away or is slow skips
    /// straight to the newest event of each key, and so does one that comes late and [starts](crate::Start) with what is held.
    pub fn latest(topic: impl Into<Topic>, key: impl AsRef<str>, event: Event) -> Self {
        Self { kind: Kind::Latest, ..Self::new(topic, event) }.with_key(key)
    }

    /// The last event of a key, such as that a user left: what the topic has under the same key goes, and this one is kept
    /// no longer than any event.
    pub fn removal(topic: impl Into<Topic>, key: impl AsRef<str>, event: Event) -> Self {
        Self { kind: Kind::Removal, ..Self::new(topic, event) }.with_key(key)
    }

    /// A record as a store kept it.
    ///
    /// # Errors
    ///
    /// When `body` is not what [`Record::body`] gave: then it could break the stream of every client that reads it.
    pub fn from_stored(topic: Topic, kind: Kind, body: &[u8], time: SystemTime) -> Result<Self, BodyError> {
        encode::check_body(body).map_err(BodyError)?;
        // Into memory of our own, with room for the id: so the memory of others is never freed under a lock.
        let mut own = BytesMut::with_capacity(body.len() + encode::ID_ROOM);
        own.extend_from_slice(body);
        Ok(Self::with_body(topic, kind, own.freeze(), time))
    }

    fn with_body(topic: Topic, kind: Kind, body: Bytes, time: SystemTime) -> Self {
        Self { topic, kind, body, time, extra: None }
    }

    /// Sets the key, for filters. Only [`latest`](Self::latest) and [`removal`](Self::removal) take the place of events
    /// with the same key.
    pub fn with_key(mut self, key: impl AsRef<str>) -> Self {
        self.extra_mut().key = Some(key.as_ref().into());
        self
    }

    /// Sets a key by which the log knows the record again: if its topic has had a record with the same one, this one is
    /// not stored, and its publisher is answered with the place of the first. So a publisher that does not know whether a
    /// record was stored ([`PublishError::is_unknown`](crate::PublishError::is_unknown)) can publish it again.
    ///
    /// The key is one operation's, such as the id of the request that led to it. How long it is remembered is for the store
    /// to say: the [`Ring`](super::Ring) does so for [5 minutes](super::Ring::keep_idempotency_keys). It is sent to nobody.
    pub fn with_idempotency_key(mut self, key: impl AsRef<str>) -> Self {
        self.extra_mut().idempotency_key = Some(key.as_ref().into());
        self
    }

    /// Adds a label, for the application's own use. Labels are never sent to clients.
    pub fn with_label(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.extra_mut().labels.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    fn extra_mut(&mut self) -> &mut Extra {
        Arc::make_mut(self.extra.get_or_insert_default())
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// What it does to its topic.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The event as it goes over the wire, without its id and the blank line. Empty for a finish without an event.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Whether this ends its topic and says nothing else.
    pub(crate) fn is_bare_finish(&self) -> bool {
        self.kind == Kind::Finish && self.body.is_empty()
    }

    /// Body, keys and labels, in bytes.
    pub(crate) fn size(&self) -> usize {
        let labels: usize = self.labels().map(|(name, value)| name.len() + value.len()).sum();
        let keys = [self.key(), self.idempotency_key()].into_iter().flatten().map(str::len).sum::<usize>();
        self.body.len() + keys + labels
    }

    /// When the record was made.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        self.time
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.extra.as_ref()?.key.as_deref()
    }

    /// The key by which the log knows the record again. A record that was read from a store need not have it.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&str> {
        self.extra.as_ref()?.idempotency_key.as_deref()
    }

    /// The key of which this is the newest event: it takes the place of every record of its topic that has the same here.
    #[must_use]
    pub fn replaces(&self) -> Option<&str> {
        if matches!(self.kind, Kind::Latest | Kind::Removal) { self.key() } else { None }
    }

    /// The value of the first label with this name.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels().find_map(|(label, value)| (label == name).then_some(value))
    }

    /// The labels, in the order they were added.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.extra.iter().flat_map(|extra| &extra.labels).map(|(name, value)| (&**name, &**value))
    }

    /// The event type, read from the body.
    #[must_use]
    pub fn event_type(&self) -> Option<&str> {
        encode::field(&self.body, "event")
    }

    /// The data, read from the body, with line breaks as LF; `None` if the event has none.
    #[must_use]
    pub fn data(&self) -> Option<Cow<'_, str>> {
        encode::data(&self.body)
    }
}

impl<T: Into<Topic>> From<(T, Event)> for Record {
    fn from((topic, event): (T, Event)) -> Self {
        Self::new(topic, event)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The payload, the key and the labels stay out.
        f.debug_struct("Record")
            .field("topic", &self.topic)
            .field("kind", &self.kind)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// The bytes that a store gave back are not the body of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyError(&'static str);

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the stored bytes are not the body of an event: {}", self.0)
    }
}

impl std::error::Error for BodyError {}

/// A record on its way into a log, whose body only it holds: the id is written behind it, into the room that the encoder
/// left there.
pub(crate) struct Draft {
    body: Body,
    /// All but the body.
    record: Record,
}

/// What nobody else holds.
enum Body {
    /// As the event made it.
    Made(Lines),
    /// As a record held it.
    Held(BytesMut),
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Made(lines) => lines.len(),
            Self::Held(buf) => buf.len(),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Made(mut lines) => lines.take(),
            Self::Held(buf) => buf.freeze(),
        }
    }

    fn finish(&mut self, id: Option<&[u8]>) {
        match self {
            Self::Made(lines) => lines.finish(id),
            Self::Held(buf) => encode::finish(buf, id),
        }
    }
}

impl Draft {
    pub(crate) fn new(topic: Topic, event: Event) -> Self {
        let record = Record::with_body(topic, Kind::Event, Bytes::new(), SystemTime::now());
        Self { body: Body::Made(event.into_body()), record }
    }

    pub(crate) fn topic(&self) -> &Topic {
        &self.record.topic
    }

    /// All but the body.
    pub(super) fn head(&self) -> &Record {
        &self.record
    }

    /// As that of a record.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + self.record.size()
    }
}

impl From<Record> for Draft {
    fn from(mut record: Record) -> Self {
        let body = std::mem::take(&mut record.body).try_into_mut().unwrap_or_else(|shared| {
            let mut copy = BytesMut::with_capacity(shared.len() + encode::ID_ROOM);
            copy.extend_from_slice(&shared);
            copy
        });
        Self { body: Body::Held(body), record }
    }
}

impl From<Draft> for Record {
    fn from(draft: Draft) -> Self {
        Self { body: draft.body.into_bytes(), ..draft.record }
    }
}

/// A [`Record`] and its place in the log, encoded once for every client that will read it.
pub struct Entry {
    cursor: Cursor,
    record: Record,
    frame: Bytes,
    ephemeral: bool,
}

impl Entry {
    /// Gives a record its place.
    #[must_use]
    pub fn new(cursor: Cursor, record: Record) -> Self {
        Self::with_id(cursor, &cursor.text(), record.into())
    }

    /// The same, where the cursor's text is known.
    pub(crate) fn with_id(cursor: Cursor, id: &CursorText, draft: Draft) -> Self {
        Self::encoded(cursor, draft, Some(id))
    }

    /// One that has no place of its own, but stands behind the one at `after`.
    pub(crate) fn ephemeral(after: Cursor, record: Record) -> Self {
        Self::encoded(after, record.into(), None)
    }

    /// Says where an ephemeral one stands, once that is known.
    pub(crate) fn stand_behind(&mut self, after: Cursor) {
        self.cursor = after;
    }

    /// Without an id, an ephemeral one.
    fn encoded(cursor: Cursor, draft: Draft, id: Option<&CursorText>) -> Self {
        let Draft { mut body, mut record } = draft;
        let len = body.len();
        body.finish(id.map(|id| id.as_str().as_bytes()));
        let frame = body.into_bytes();
        record.body = frame.slice(..len);
        Self { cursor, record, frame, ephemeral: id.is_none() }
    }

    /// The place, and the id of the event; of an [ephemeral](Self::is_ephemeral) one, which has no id, the place that it
    /// came behind. Who resumes from here goes on after this event.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether it was sent only to those who were there ([`Hub::publish_ephemeral`](crate::Hub::publish_ephemeral)), and is
    /// not in the log.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    /// The bytes of the wire, with the id, if it has one, and the blank line; shared, so that a clone copies nothing.
    #[must_use]
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    pub(crate) fn position(&self) -> u64 {
        self.cursor.position()
    }

    /// What holding the entry costs, about.
    pub(crate) fn cost(&self) -> usize {
        // Two counts, the allocator's own, and the places in the lists that hold it.
        const LISTS: usize = 64;
        // Its key is named once more where it is found by it.
        let index = self.record.replaces().map_or(0, |key| key.len() + LISTS);
        let extra = self.record.size() - self.record.body.len();
        self.frame.len() + extra + encode::ROOM + size_of::<Self>() + LISTS + index
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("cursor", &self.cursor).field("record", &self.record).finish_non_exhaustive()
    }
}
