//! [`Ring`]: the log in the memory of the process.

use super::{
    AppendError, Cursor, Draft, Entry, Limits, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Room,
    Run, Shelf, cursor::CursorText, repeats::Repeats,
};
use crate::{Topic, response::FRAME_TARGET, sync::Mutex};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A log in memory, bounded by count, bytes and age for each topic, and by bytes over all topics.
///
/// What no longer fits goes, oldest first; a topic's own bounds keep a busy one from evicting the others. A new ring is a
/// new log: ids of an earlier process are foreign to it, and their clients are told of a gap.
///
/// The defaults, for each topic: 10,000 events, which is what a busy topic has in a bad reconnect; 4 MiB; 5 minutes, after
/// which a client had better load the page anew. Over all topics: 256 MiB. That a topic is finished is remembered for an
/// hour.
///
/// Where a topic is one answer, of use only as a whole, ask for more: a token of generated text takes about 370 bytes, so
/// that the defaults hold some 10,000 of them, and those only for 5 minutes.
///
/// The newest event of a key ([`Record::latest`]) is not history but state: it stays for as long as there is room, unless
/// [`keep_latest`](Self::keep_latest) says otherwise, until its topic is finished or another takes its place.
///
/// Topics of which nothing is held cost nothing; they share one floor. So a client that was away for longer than events
/// are kept is told of a gap, even if nothing of its own topics was lost.
///
/// ```
/// use std::time::Duration;
/// use tidings::{Hub, replay::Ring};
///
/// let ring = Ring::new().events_per_topic(1_000).max_age(Duration::from_secs(3600));
/// let hub = Hub::builder().ring(ring).build();
/// ```
#[derive(Debug)]
pub struct Ring {
    state: Mutex<State>,
}

/// An entry, and the last of those that had to go for it.
type Pushed = (Arc<Entry>, Option<Arc<Entry>>);

/// What a page of frames has at most: as many as hyper takes at once.
const JOINED_BYTES: usize = 16 * FRAME_TARGET;

struct State {
    run: Run,
    /// What the ids of the run end with.
    ids: CursorText,
    position: u64,
    shelf: Shelf,
    repeats: Repeats,
}

impl Ring {
    /// An empty log with the default bounds.
    #[must_use]
    pub fn new() -> Self {
        let limits = Limits {
            events_per_topic: 10_000,
            bytes_per_topic: 4 * 1024 * 1024,
            total_bytes: 256 * 1024 * 1024,
            age: Some(Duration::from_secs(5 * 60)),
            latest: None,
            finished: Some(Duration::from_secs(60 * 60)),
        };
        let run = Run::new_log();
        // As long as a client of an HTTP API may go on trying.
        let repeats = Repeats::new(Duration::from_secs(5 * 60));
        Self { state: Mutex::new(State { run, ids: run.text(), position: 0, shelf: Shelf::new(limits, 0), repeats }) }
    }

    /// Sets how many events of a topic are kept. Default: 10,000.
    #[must_use]
    pub fn events_per_topic(self, events: usize) -> Self {
        self.limit(|limits| limits.events_per_topic = events)
    }

    /// Sets how many bytes of a topic are kept, the bookkeeping included. Default: 4 MiB.
    #[must_use]
    pub fn bytes_per_topic(self, bytes: usize) -> Self {
        self.limit(|limits| limits.bytes_per_topic = bytes)
    }

    /// Sets for how long events are kept. Default: 5 minutes.
    #[must_use]
    pub fn max_age(self, age: Duration) -> Self {
        self.limit(|limits| limits.age = Some(age))
    }

    /// Sets for how long the newest event of a key is kept if none takes its place. Default: for as long as there is room
    /// for it.
    #[must_use]
    pub fn keep_latest(self, time: Duration) -> Self {
        self.limit(|limits| limits.latest = Some(time))
    }

    /// Sets for how long it is remembered that a topic is finished, which takes about half a kilobyte for each: at least for
    /// as long as its events are kept. After that the topic is as if it had never been. Default: 1 hour.
    #[must_use]
    pub fn keep_finished(self, time: Duration) -> Self {
        self.limit(|limits| limits.finished = Some(time))
    }

    /// Sets for how long [idempotency keys](Record::with_idempotency_key) are remembered; they take at most 16 MiB, which is
    /// some 100,000 of them, and then the oldest go. Default: 5 minutes.
    #[must_use]
    pub fn keep_idempotency_keys(self, time: Duration) -> Self {
        self.state.lock().repeats.time = time;
        self
    }

    /// Sets how many bytes are kept over all topics, the bookkeeping of events included; a topic of which something is held
    /// takes some 300 bytes beside them, and the frames that are joined for those who are behind, and shared by them, up to
    /// 4 MiB in all. Default: 256 MiB.
    #[must_use]
    pub fn total_bytes(self, bytes: usize) -> Self {
        self.limit(|limits| limits.total_bytes = bytes)
    }

    fn limit(self, set: impl FnOnce(&mut Limits)) -> Self {
        set(&mut self.state.lock().shelf.limits);
        self
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn evict(&self) {
        self.state.lock().shelf.evict_all();
    }

    pub(crate) fn limits(&self) -> Limits {
        self.state.lock().shelf.limits.clone()
    }

    /// How many events had to go, or were forgotten.
    pub(crate) fn evicted(&self) -> u64 {
        let state = self.state.lock();
        // Each position was given once, and none was left out.
        state.shelf.evicted(state.position)
    }

    pub(crate) fn head_now(&self) -> Cursor {
        self.state.lock().head()
    }

    /// Appends one record and returns it with its place, ready to be sent.
    pub(crate) fn push(&self, draft: Draft, now: Instant) -> Result<Pushed, Refused> {
        self.state.lock().push(draft, now)
    }

    pub(crate) fn forget_now(&self, topic: &Topic) {
        self.state.lock().shelf.forget(topic, true);
    }

    /// Whether there is anything of a topic.
    pub(crate) fn has(&self, topic: &Topic) -> bool {
        let mut state = self.state.lock();
        state.shelf.expire(Instant::now());
        state.shelf.row(topic).is_some()
    }

    pub(crate) fn read_now(&self, read: &Read) -> Page {
        self.state.lock().read(read)
    }
}

impl State {
    fn head(&self) -> Cursor {
        self.run.at(self.position)
    }

    fn push(&mut self, draft: Draft, now: Instant) -> Result<Pushed, Refused> {
        self.shelf.expire(now);
        // Before anything else: the end of a topic can be published again too.
        let name = Repeats::name(draft.head());
        if let Some(position) = name.as_ref().and_then(|name| self.repeats.find(name, now)) {
            return Err(Refused::Duplicate(self.run.at(position)));
        }
        let row = self.shelf.row_again(draft.topic());
        if row.is_some_and(|row| self.shelf.finished(row).is_some()) {
            return Err(Refused::Finished);
        }
        let next = self.position + 1;
        let entry = Entry::with_id(self.run.at(next), &self.ids.at(next), draft);
        if entry.cost() > self.shelf.limits.bytes_per_topic.min(self.shelf.limits.total_bytes) {
            return Err(Refused::TooLarge);
        }
        let entry = Arc::new(entry);
        self.position = next;
        if let Some(name) = name {
            self.repeats.insert(name, next, now);
        }
        let evicted = self.shelf.push_to(row, Arc::clone(&entry), now);
        Ok((entry, evicted))
    }

    fn read(&mut self, ask: &Read) -> Page {
        self.shelf.expire(Instant::now());
        if let ReadFrom::After(cursor) = ask.from {
            if cursor.run() != self.run || cursor.position() > self.position {
                return Page::foreign(self.head());
            }
        }
        let kept = &self.shelf;
        let mut page = Page::new(self.head());
        let mut rows = Vec::with_capacity(ask.topics.len());
        for topic in &ask.topics {
            let row = kept.row(topic);
            page.floor = page.floor.max(row.map_or(kept.base(), |row| kept.floor(row)));
            rows.extend(row);
        }
        let after = match ask.from {
            ReadFrom::After(cursor) => cursor.position(),
            ReadFrom::Earliest => 0,
            ReadFrom::Last(n) => kept.before_last(rows.iter().copied(), n),
        };
        let asked = || rows.iter().copied();
        let (mut at, mut bytes, mut all) = (after, 0, false);
        while ask.joined && !all && bytes < JOINED_BYTES.min(ask.max_bytes) {
            let Some((stretch, is_all)) = self.shelf.stretch_after(asked(), at) else { break };
            (at, all) = (stretch.last, is_all);
            bytes += stretch.frame.len();
            page.stretches.push_back(stretch);
        }
        if page.stretches.is_empty() {
            let mut room = Room { events: ask.max_events, bytes: ask.max_bytes };
            all = self.shelf.collect(asked(), (after, u64::MAX), &mut room, &mut page.entries);
            at = page.entries.last().map_or(after, |last| last.position());
        }
        if !all {
            page.through = self.run.at(at);
        }
        let kept = &self.shelf;
        let through = page.through.position();
        page.finished = ask
            .topics
            .iter()
            .filter(|topic| {
                let finished = kept.row(topic).and_then(|row| kept.finished(row));
                finished.is_some_and(|position| position <= through)
            })
            .cloned()
            .collect();
        page
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplayStore for Ring {
    async fn head(&self) -> Result<Cursor, ReadError> {
        Ok(self.head_now())
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        self.try_append(&records).unwrap_or(Ok(Vec::new()))
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        Ok(self.read_now(&read))
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.forget_now(&topic);
        Ok(())
    }

    fn try_append(&self, records: &Arc<[Record]>) -> Option<Result<Vec<Result<Cursor, Refused>>, AppendError>> {
        let now = Instant::now();
        let mut state = self.state.lock();
        Some(Ok(records.iter().map(|record| Ok(state.push(record.clone().into(), now)?.0.cursor())).collect()))
    }
}
