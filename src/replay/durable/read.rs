//! [`Readers`]: the connections that read, each from a view of its own, while another one writes.
//!
//! Invariant: a page comes from one view. A record is checked before anybody sees it.

use super::{
    error::{DurableError, Kind},
    file,
    log::{cursor, int},
    writer::Seen,
};
use crate::{
    Topic,
    replay::{Cursor, Page, Read, ReadError, ReadFrom, Run, codec},
    sync::Mutex,
};
use rusqlite::{Connection, OptionalExtension as _, Transaction};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};
use tokio::{sync::Semaphore, task::spawn_blocking};

/// How many read at the same time: each has some 2 MB of pages of its own, and the rest wait for microseconds.
const CONNECTIONS: usize = 4;

#[derive(Debug)]
pub(super) struct Readers {
    folder: PathBuf,
    run: Run,
    idle: Mutex<Vec<Connection>>,
    slots: Arc<Semaphore>,
    seen: Arc<Seen>,
}

/// Why there is no page.
#[derive(Debug)]
enum Trouble {
    Engine(rusqlite::Error),
    Damaged(String),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(error)
    }
}

/// A topic that is asked for.
struct Asked {
    id: i64,
    events: i64,
    ended: Option<i64>,
}

impl Readers {
    pub(super) fn new(folder: PathBuf, run: Run, seen: Arc<Seen>) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        Arc::new(Self { folder, run, idle: Mutex::default(), slots, seen })
    }

    /// Closes the connections that nobody uses.
    pub(super) fn close(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }

    pub(super) async fn head(self: &Arc<Self>) -> Result<Cursor, ReadError> {
        self.blocking(|run, tx| Ok(cursor(run, newest_and_base(tx)?.0))).await
    }

    pub(super) async fn page(self: &Arc<Self>, read: Read) -> Result<Page, ReadError> {
        self.blocking(move |run, tx| page(run, tx, &read)).await
    }

    /// Does something with one view of the log, where it may block.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(Run, &Transaction<'_>) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, ReadError> {
        // Also if this future is dropped, the slot is taken until the connection is given back.
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(ReadError::new)?;
        let this = Arc::clone(self);
        let work = move || {
            let _slot = slot;
            let done = this.with_view(|tx| work(this.run, tx));
            done.map_err(|trouble| match trouble {
                Trouble::Engine(error) => ReadError::new(DurableError::engine(&this.folder, &error)),
                Trouble::Damaged(found) => ReadError::new(DurableError::damaged(&this.folder, found)),
            })
        };
        if self.seen.unsure.load(Ordering::Acquire) {
            // What is not in a view now might be there after a restart.
            return Err(ReadError::new(DurableError::new(Kind::Io(self.folder.clone()))));
        }
        spawn_blocking(work).await.map_err(ReadError::new)?
    }

    fn with_view<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let idle = self.idle.lock().pop();
        let mut db = match idle {
            Some(db) => db,
            None => file::connect(&file::log_path(&self.folder), true)?,
        };
        let done = work(&db.transaction()?);
        // One that has failed is not used again.
        if done.is_ok() {
            self.idle.lock().push(db);
        }
        done
    }
}

fn newest_and_base(tx: &Transaction<'_>) -> rusqlite::Result<(i64, i64)> {
    tx.prepare_cached("SELECT newest, base FROM log")?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn page(run: Run, tx: &Transaction<'_>, read: &Read) -> Result<Page, Trouble> {
    let (newest, base) = newest_and_base(tx)?;
    let head = cursor(run, newest);
    if let ReadFrom::After(after) = read.from {
        if is_foreign(run, tx, after, head)? {
            return Ok(Page::foreign(head));
        }
    }
    let mut page = Page::new(head);
    let mut asked = Vec::with_capacity(read.topics.len());
    for topic in &read.topics {
        let mut select = tx.prepare_cached("SELECT id, floor, events, ended FROM topics WHERE name = ?1")?;
        let row = select.query_row([topic.as_key()], |row| {
            let one = Asked { id: row.get(0)?, events: row.get(2)?, ended: row.get(3)? };
            Ok((row.get::<_, i64>(1)?, one))
        });
        let row = row.optional()?;
        page.floor = page.floor.max(cursor(run, row.as_ref().map_or(base, |(floor, _)| *floor)).position());
        asked.extend(row.map(|(_, one)| (topic, one)));
    }
    let after = match read.from {
        ReadFrom::After(after) => int_position(after.position()),
        ReadFrom::Last(0) => newest,
        ReadFrom::Last(n) => before_last(tx, &asked, n)?,
        ReadFrom::Earliest => 0,
    };
    // One more than asked for, to know whether there is more.
    let positions = positions(tx, &asked, after, read.max_events.saturating_add(1))?;
    let mut select = tx.prepare_cached("SELECT data, sum FROM records WHERE position = ?1")?;
    let mut bytes = 0;
    for position in positions {
        let is_full = page.entries.len() >= read.max_events || bytes >= read.max_bytes;
        if let Some(last) = page.entries.last().filter(|_| is_full) {
            page.through = last.cursor();
            break;
        }
        let mut rows = select.query([position])?;
        let row = rows.next()?.ok_or_else(|| damaged(position, "is missing"))?;
        let data = row.get_ref(0)?.as_blob().map_err(|error| damaged(position, error))?;
        if file::sum(position, data) != row.get::<_, i64>(1)? {
            return Err(damaged(position, "has a wrong checksum"));
        }
        let record = codec::decode(data).map_err(|error| damaged(position, error))?;
        // Whatever the index says, nobody is given what was not asked for.
        if !read.topics.contains(record.topic()) {
            return Err(damaged(position, "is of another topic"));
        }
        bytes += record.body().len();
        page.push(cursor(run, position), record);
    }
    let through = int_position(page.through.position());
    let finished = asked.iter().filter(|(_, one)| one.ended.is_some_and(|end| end <= through));
    page.finished = finished.map(|(topic, _)| Topic::clone(topic)).collect();
    Ok(page)
}

/// The positions of some topics after a place, in order, up to so many.
fn positions(tx: &Transaction<'_>, asked: &[(&Topic, Asked)], after: i64, most: usize) -> rusqlite::Result<Vec<i64>> {
    let sql = "SELECT position FROM records WHERE topic = ?1 AND position > ?2 ORDER BY position LIMIT ?3";
    let mut select = tx.prepare_cached(sql)?;
    let mut positions: Vec<i64> = Vec::new();
    for (_, one) in asked.iter().filter(|(_, one)| one.events > 0) {
        for position in select.query_map((one.id, after, int(most)), |row| row.get(0))? {
            positions.push(position?);
        }
    }
    if asked.len() > 1 {
        positions.sort_unstable();
        positions.truncate(most);
    }
    Ok(positions)
}

/// The place before the last so many records of some topics together.
fn before_last(tx: &Transaction<'_>, asked: &[(&Topic, Asked)], n: usize) -> rusqlite::Result<i64> {
    if asked.iter().map(|(_, one)| one.events).sum::<i64>() <= int(n) {
        return Ok(0);
    }
    let sql = "SELECT position FROM records WHERE topic = ?1 ORDER BY position DESC LIMIT ?2";
    let mut select = tx.prepare_cached(sql)?;
    let mut last: Vec<i64> = Vec::new();
    for (_, one) in asked {
        for position in select.query_map((one.id, int(n)), |row| row.get(0))? {
            last.push(position?);
        }
    }
    last.sort_unstable_by(|a, b| b.cmp(a));
    Ok(last.get(n - 1).map_or(0, |first| first - 1))
}

/// Whether a cursor is none of this log's. One of an older run is good up to where the next run began.
fn is_foreign(run: Run, tx: &Transaction<'_>, of: Cursor, head: Cursor) -> rusqlite::Result<bool> {
    if of.run() == run {
        return Ok(of.position() > head.position());
    }
    if of.run().epoch != run.epoch {
        return Ok(true);
    }
    let sql = "SELECT min(began) FROM runs WHERE seq > (SELECT seq FROM runs WHERE number = ?1)";
    let good: Option<i64> = tx.prepare_cached(sql)?.query_row([of.run().number], |row| row.get(0))?;
    Ok(good.is_none_or(|good| int_position(of.position()) > good))
}

/// No log is so long that it matters.
fn int_position(position: u64) -> i64 {
    position.try_into().unwrap_or(i64::MAX)
}

fn damaged(position: i64, what: impl std::fmt::Display) -> Trouble {
    Trouble::Damaged(format!("the event at position {position}: {what}"))
}
