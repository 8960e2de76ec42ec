//! How records leave a [`Log`] to make room, or because they are too old.
//!
//! Invariant: the floor of a topic is raised in the transaction that removes the record.

use super::log::{Log, int, millis};
use rusqlite::Transaction;
use std::time::Duration;

/// What is removed in one transaction for its age, so that those who append wait only for so much.
const STEP: i64 = 512;

/// A record that has to go.
struct Old {
    position: i64,
    topic: i64,
    cost: i64,
    lasting: bool,
}

impl Log {
    /// After how long it is worth looking for what is too old.
    pub(super) fn trim_interval(&self) -> Duration {
        let options = &self.options;
        let times = [Some(options.age), options.latest, Some(options.keys), Some(options.finished)];
        let least = times.into_iter().flatten().min().unwrap_or(options.age);
        (least / 4).clamp(Duration::from_millis(10), Duration::from_secs(30))
    }

    /// Keeps the bounds of all topics, where they are narrower than they were.
    pub(super) fn bound_topics(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let (events, bytes) = (int(self.options.events_per_topic), int(self.options.bytes_per_topic));
        let mut select = tx.prepare("SELECT id FROM topics WHERE events > ?1 OR bytes > ?2")?;
        let over = select.query_map((events, bytes), |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
        over.into_iter().try_for_each(|topic| {
            self.load_row(tx, topic)?;
            self.bound_topic(tx, topic)
        })
    }

    /// Keeps the bounds of one topic, oldest first.
    pub(super) fn bound_topic(&mut self, tx: &Transaction<'_>, topic: i64) -> rusqlite::Result<()> {
        let (events, bytes) = (int(self.options.events_per_topic), int(self.options.bytes_per_topic));
        while {
            let row = self.row(topic);
            row.events > 0 && (row.events > events || row.bytes > bytes)
        } {
            let sql = "SELECT position, topic, cost, lasting FROM records WHERE topic = ?1 ORDER BY position LIMIT ?2";
            let oldest = collect(tx, sql, (topic, STEP))?;
            let is_over = |log: &mut Self| {
                let row = log.row(topic);
                row.events > events || row.bytes > bytes
            };
            if self.evict(tx, oldest, is_over)? == 0 {
                // The numbers of the row are not those of its records.
                return Err(rusqlite::Error::QueryReturnedNoRows);
            }
        }
        Ok(())
    }

    /// Keeps the bound over all topics: what is history goes before what is state, unless that takes more than half.
    pub(super) fn bound_total(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let total = int(self.options.total_bytes);
        while self.bytes > total {
            let state_first = self.lasting_bytes > total / 2;
            let sql = "SELECT position, topic, cost, lasting FROM records WHERE lasting = ?1 ORDER BY at LIMIT ?2";
            let mut oldest = collect(tx, sql, (state_first, STEP))?;
            if oldest.is_empty() {
                oldest = collect(tx, sql, (!state_first, STEP))?;
            }
            let is_over = |log: &mut Self| log.bytes > total && (log.lasting_bytes > total / 2) == state_first;
            if self.evict(tx, oldest, is_over)? == 0 {
                return Err(rusqlite::Error::QueryReturnedNoRows);
            }
        }
        Ok(())
    }

    /// Removes some of what is too old. Whether there may be more.
    pub(super) fn expire(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<bool> {
        let before = |age: Duration| self.clock.saturating_sub(millis(age));
        let (events, keys) = (before(self.options.age), before(self.options.keys));
        let state = self.options.latest.map(before);
        // That a topic is finished is remembered for no less time than its events.
        let ends = before(self.options.finished.max(self.options.age));
        let mut more = self.expire_records(tx, false, events)?;
        if let Some(state) = state {
            more |= self.expire_records(tx, true, state)?;
        }
        let sql = "SELECT id FROM topics WHERE ended IS NOT NULL AND events = 0 AND ended_at <= ?1 LIMIT ?2";
        let ended: Vec<i64> =
            tx.prepare_cached(sql)?.query_map((ends, STEP), |row| row.get(0))?.collect::<Result<_, _>>()?;
        more |= int(ended.len()) == STEP;
        for topic in ended {
            self.load_row(tx, topic)?;
            self.row(topic).ended = None;
        }
        // In their order, so that nothing beyond the first that is good is looked at.
        let sql = "SELECT seq, at FROM keys ORDER BY seq LIMIT ?1";
        let oldest: Vec<(i64, i64)> = tx
            .prepare_cached(sql)?
            .query_map([STEP], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let old = oldest.iter().take_while(|(_, at)| *at <= keys);
        let (count, last) = old.fold((0, None), |(count, _), (seq, _)| (count + 1, Some(*seq)));
        self.removed_keys = tx.prepare_cached("DELETE FROM keys WHERE seq <= ?1")?.execute([last])? > 0;
        Ok(more || count == STEP)
    }

    fn expire_records(&mut self, tx: &Transaction<'_>, lasting: bool, before: i64) -> rusqlite::Result<bool> {
        let sql =
            "SELECT position, topic, cost, lasting FROM records WHERE lasting = ?1 AND at <= ?2 ORDER BY at LIMIT ?3";
        let old = collect(tx, sql, (lasting, before, STEP))?;
        Ok(self.evict(tx, old, |_| true)? == STEP)
    }

    /// Removes records for as long as they have to go. How many did.
    fn evict(
        &mut self,
        tx: &Transaction<'_>,
        oldest: Vec<Old>,
        has_to: impl Fn(&mut Self) -> bool,
    ) -> rusqlite::Result<i64> {
        let mut count = 0;
        for Old { position, topic, cost, lasting } in oldest {
            if !has_to(self) {
                break;
            }
            self.load_row(tx, topic)?;
            self.remove(tx, topic, position, cost, lasting)?;
            let row = self.row(topic);
            row.floor = row.floor.max(position);
            count += 1;
        }
        Ok(count)
    }
}

fn collect(tx: &Transaction<'_>, sql: &str, parameters: impl rusqlite::Params) -> rusqlite::Result<Vec<Old>> {
    let mut select = tx.prepare_cached(sql)?;
    let rows = select.query_map(parameters, |row| {
        Ok(Old { position: row.get(0)?, topic: row.get(1)?, cost: row.get(2)?, lasting: row.get(3)? })
    })?;
    rows.collect()
}
