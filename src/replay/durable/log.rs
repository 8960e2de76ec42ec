//! [`Log`]: what the one connection that writes knows of the log, and how records get in.
//!
//! It works within the transaction that it is given, and knows no thread and no channel.
//!
//! Invariants: positions rise in the order of the records. Bounds are kept, floors are raised and topics that hold nothing
//! are folded into the base in the transaction that gives cause to it. What is remembered here between two transactions is
//! what the log has: after one that failed it is read anew.

use super::{builder::Options, file};
use crate::{
    Topic,
    replay::{Cursor, Kind, Record, Refused, Run, codec},
};
use rusqlite::{OptionalExtension as _, Transaction};
use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, SystemTime},
};

/// What a record takes on disk beside its bytes, about: its places in four trees.
const OVERHEAD: usize = 100;

pub(super) type Outcomes = Vec<Result<Cursor, Refused>>;

#[derive(Debug)]
pub(super) struct Log {
    pub(super) options: Options,
    run: Run,
    pub(super) newest: i64,
    pub(super) base: i64,
    /// In milliseconds.
    pub(super) clock: i64,
    pub(super) bytes: i64,
    pub(super) lasting_bytes: i64,
    /// The topics that the present transaction has to do with.
    pub(super) topics: HashMap<i64, Row>,
    names: HashMap<Topic, i64>,
    /// Whether the present transaction has removed keys.
    pub(super) removed_keys: bool,
}

/// One topic.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) floor: i64,
    pub(super) events: i64,
    pub(super) bytes: i64,
    pub(super) ended: Option<i64>,
    ended_at: Option<i64>,
}

impl Log {
    pub(super) fn new(options: Options, run: Run) -> Self {
        Self {
            options,
            run,
            newest: 0,
            base: 0,
            clock: 0,
            bytes: 0,
            lasting_bytes: 0,
            topics: HashMap::new(),
            names: HashMap::new(),
            removed_keys: false,
        }
    }

    /// Begins: reads what the log has, and the clock.
    pub(super) fn load(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        self.topics.clear();
        self.names.clear();
        self.removed_keys = false;
        let clock;
        (self.newest, self.base, clock, self.bytes, self.lasting_bytes) = tx
            .prepare_cached("SELECT newest, base, clock, bytes, lasting_bytes FROM log")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?, row.get(3)?, row.get(4)?)))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // So that what is older has a lower position too.
        self.clock = clock.max(millis(now));
        Ok(())
    }

    /// Ends: keeps the bounds, and writes what has changed. Whether anything has.
    pub(super) fn save(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<bool> {
        if self.topics.is_empty() {
            return Ok(self.removed_keys);
        }
        let touched: Vec<i64> = self.topics.keys().copied().collect();
        for topic in touched {
            self.bound_topic(tx, topic)?;
        }
        self.bound_total(tx)?;
        let mut update = tx.prepare_cached(
            "UPDATE topics SET floor = ?2, events = ?3, bytes = ?4, ended = ?5, ended_at = ?6 WHERE id = ?1",
        )?;
        for (id, row) in self.topics.drain() {
            if row.events == 0 && row.ended.is_none() {
                // Topics of which nothing is held cost nothing, and share one floor.
                self.base = self.base.max(row.floor);
                tx.prepare_cached("DELETE FROM topics WHERE id = ?1")?.execute([id])?;
            } else {
                update.execute((id, row.floor, row.events, row.bytes, row.ended, row.ended_at))?;
            }
        }
        let sql = "UPDATE log SET newest = ?1, base = ?2, clock = ?3, bytes = ?4, lasting_bytes = ?5";
        tx.prepare_cached(sql)?.execute((self.newest, self.base, self.clock, self.bytes, self.lasting_bytes))?;
        Ok(true)
    }

    pub(super) fn append(&mut self, tx: &Transaction<'_>, records: &[Record]) -> rusqlite::Result<Outcomes> {
        records.iter().map(|record| self.append_one(tx, record)).collect()
    }

    fn append_one(&mut self, tx: &Transaction<'_>, record: &Record) -> rusqlite::Result<Result<Cursor, Refused>> {
        let name = record.topic().as_key();
        // Before anything else: the end of a topic can be published again too.
        if let Some(key) = record.idempotency_key() {
            let since = self.clock.saturating_sub(millis(self.options.keys));
            let known = "SELECT position FROM keys WHERE topic = ?1 AND key = ?2 AND at > ?3";
            let known = tx.prepare_cached(known)?.query_row((name, key, since), |row| row.get(0)).optional()?;
            if let Some(position) = known {
                return Ok(Err(Refused::Duplicate(cursor(self.run, position))));
            }
        }
        let topic = self.topic(tx, record.topic())?;
        if topic.is_some_and(|topic| self.row(topic).ended.is_some()) {
            return Ok(Err(Refused::Finished));
        }
        let data = codec::encode(record);
        let cost = data.len() + record.replaces().map_or(0, |key| 2 * key.len()) + OVERHEAD;
        if cost > self.options.bytes_per_topic.min(self.options.total_bytes) {
            return Ok(Err(Refused::TooLarge));
        }
        let topic = match topic {
            Some(topic) => topic,
            None => self.new_topic(tx, record.topic())?,
        };
        self.newest += 1;
        let (position, clock) = (self.newest, self.clock);
        self.replace(tx, topic, record)?;
        let lasts = record.kind() == Kind::Latest;
        let cost = int(cost);
        tx.prepare_cached("INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute((
            position,
            topic,
            lasts,
            clock,
            cost,
            record.replaces(),
            &data,
            file::sum(position, &data),
        ))?;
        self.bytes += cost;
        self.lasting_bytes += if lasts { cost } else { 0 };
        let row = self.row(topic);
        row.events += 1;
        row.bytes += cost;
        if record.kind() == Kind::Finish {
            (row.ended, row.ended_at) = (Some(position), Some(clock));
            self.end_lasting(tx, topic)?;
        }
        if let Some(key) = record.idempotency_key() {
            let insert = "INSERT OR REPLACE INTO keys (topic, key, position, at) VALUES (?1, ?2, ?3, ?4)";
            tx.prepare_cached(insert)?.execute((name, key, position, clock))?;
        }
        Ok(Ok(cursor(self.run, position)))
    }

    /// Removes a topic with all that it has.
    pub(super) fn forget(&mut self, tx: &Transaction<'_>, topic: &Topic) -> rusqlite::Result<()> {
        let Some(id) = self.topic(tx, topic)? else { return Ok(()) };
        let sql = "SELECT ifnull(max(position), 0), ifnull(sum(cost), 0), ifnull(sum(cost * lasting), 0) FROM records WHERE topic = ?1";
        let (last, bytes, lasting): (i64, i64, i64) =
            tx.prepare_cached(sql)?.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        tx.prepare_cached("DELETE FROM records WHERE topic = ?1")?.execute([id])?;
        self.bytes -= bytes;
        self.lasting_bytes -= lasting;
        // With nothing in it, it is folded into the base at the end, or is there again before that.
        let row = self.row(id);
        *row = Row { floor: row.floor.max(last), ..Row::default() };
        Ok(())
    }

    /// The row of a topic, which is then among those of the transaction.
    fn topic(&mut self, tx: &Transaction<'_>, topic: &Topic) -> rusqlite::Result<Option<i64>> {
        if let Some(id) = self.names.get(topic) {
            return Ok(Some(*id));
        }
        let sql = "SELECT id, floor, events, bytes, ended, ended_at FROM topics WHERE name = ?1";
        let found = tx.prepare_cached(sql)?.query_row([topic.as_key()], |row| {
            let id: i64 = row.get(0)?;
            Ok((id, row_from(row)?))
        });
        let Some((id, row)) = found.optional()? else { return Ok(None) };
        self.names.insert(topic.clone(), id);
        self.topics.entry(id).or_insert(row);
        Ok(Some(id))
    }

    fn new_topic(&mut self, tx: &Transaction<'_>, topic: &Topic) -> rusqlite::Result<i64> {
        let sql = "INSERT INTO topics (name, floor, events, bytes) VALUES (?1, ?2, 0, 0)";
        let id = tx.prepare_cached(sql)?.insert((topic.as_key(), self.base))?;
        self.names.insert(topic.clone(), id);
        self.topics.insert(id, Row { floor: self.base, ..Row::default() });
        Ok(id)
    }

    /// The same for a topic by its number.
    pub(super) fn load_row(&mut self, tx: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
        if let Entry::Vacant(place) = self.topics.entry(id) {
            let sql = "SELECT id, floor, events, bytes, ended, ended_at FROM topics WHERE id = ?1";
            place.insert(tx.prepare_cached(sql)?.query_row([id], row_from)?);
        }
        Ok(())
    }

    pub(super) fn row(&mut self, topic: i64) -> &mut Row {
        self.topics.entry(topic).or_default()
    }

    /// Removes what a record takes the place of, which is no loss.
    fn replace(&mut self, tx: &Transaction<'_>, topic: i64, record: &Record) -> rusqlite::Result<()> {
        let Some(key) = record.replaces() else { return Ok(()) };
        let sql = "SELECT position, cost, lasting FROM records WHERE topic = ?1 AND key = ?2";
        let older = tx
            .prepare_cached(sql)?
            .query_row((topic, key), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        if let Some((position, cost, lasting)) = older {
            self.remove(tx, topic, position, cost, lasting)?;
        }
        Ok(())
    }

    pub(super) fn remove(
        &mut self,
        tx: &Transaction<'_>,
        topic: i64,
        position: i64,
        cost: i64,
        lasting: bool,
    ) -> rusqlite::Result<()> {
        tx.prepare_cached("DELETE FROM records WHERE position = ?1")?.execute([position])?;
        self.bytes -= cost;
        self.lasting_bytes -= if lasting { cost } else { 0 };
        let row = self.row(topic);
        row.events -= 1;
        row.bytes -= cost;
        Ok(())
    }

    /// Once its topic is finished, nothing takes the place of what is the newest of its key: from now on it ages as the
    /// rest.
    fn end_lasting(&mut self, tx: &Transaction<'_>, topic: i64) -> rusqlite::Result<()> {
        let mut update = tx.prepare_cached(
            "UPDATE records SET lasting = 0, at = ?2 WHERE topic = ?1 AND lasting = 1 RETURNING cost",
        )?;
        let costs = update.query_map((topic, self.clock), |row| row.get::<_, i64>(0))?;
        for cost in costs {
            self.lasting_bytes -= cost?;
        }
        Ok(())
    }
}

fn row_from(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row { floor: row.get(1)?, events: row.get(2)?, bytes: row.get(3)?, ended: row.get(4)?, ended_at: row.get(5)? })
}

/// The cursor of a position as the log has it, which is never below 0.
pub(super) fn cursor(run: Run, position: i64) -> Cursor {
    run.at(position.try_into().unwrap_or(0))
}

/// A number for the engine; one that is too large is no bound.
pub(super) fn int(number: usize) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

pub(super) fn millis(time: Duration) -> i64 {
    time.as_millis().try_into().unwrap_or(i64::MAX)
}
