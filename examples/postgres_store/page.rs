//! Reading: one page, or the head, from one snapshot.
//!
//! Invariant: nothing here writes, and a snapshot of a server where no run has begun yet is not an answer.

use super::{
    BoxError, sql,
    turn::{Database, count, position, present_run, query, signed},
};
use deadpool_postgres::Transaction;
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};
use tidings::{
    Topic,
    replay::{Cursor, Kind, Page, Read, ReadFrom, Record},
};
use tokio_postgres::{IsolationLevel, Row};

/// The log's row, as one snapshot has it.
pub(crate) struct View {
    pub(crate) newest: Cursor,
    pub(crate) forgotten: u64,
    pub(crate) evicted: u64,
    /// How far a cursor of the run that was asked for is good, if that is an older one.
    good: Option<u64>,
}

impl View {
    /// `None` if a new run has to begin first.
    pub(crate) async fn of(tx: &Transaction<'_>, run: u32) -> Result<Option<Self>, BoxError> {
        let row = tx.query_one(&tx.prepare_cached(sql::VIEW).await?, &[&i64::from(run)]).await?;
        let good: Option<i64> = row.try_get("good")?;
        let view = Self {
            newest: present_run(&row)?.at(position(&row, "newest")?),
            forgotten: position(&row, "forgotten")?,
            evicted: position(&row, "evicted")?,
            good: good.map(u64::try_from).transpose()?,
        };
        Ok(row.try_get::<_, bool>("same_server")?.then_some(view))
    }

    fn is_foreign(&self, cursor: Cursor) -> bool {
        let (run, present) = (cursor.run(), self.newest.run());
        let good = if run == present { Some(self.newest.position()) } else { self.good };
        run.epoch != present.epoch || good.is_none_or(|good| cursor.position() > good)
    }
}

impl Database {
    pub(crate) async fn head(&self) -> Result<Option<Cursor>, BoxError> {
        let mut client = self.client().await?;
        let view = View::of(&client.transaction().await?, 0).await?;
        Ok(view.map(|view| view.newest))
    }

    /// `None` if a new run has to begin first.
    pub(crate) async fn page(&self, read: &Read) -> Result<Option<Page>, BoxError> {
        let mut client = self.client().await?;
        // The first statement takes the snapshot that all of them see.
        let snapshot = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        let tx = snapshot.start().await?;
        let topics: Vec<_> = read.topics.iter().map(|topic| topic.as_key().as_bytes()).collect();
        let run = if let ReadFrom::After(cursor) = read.from { cursor.run().number } else { 0 };
        let Some(view) = View::of(&tx, run).await? else { return Ok(None) };
        let after = match read.from {
            ReadFrom::After(cursor) if view.is_foreign(cursor) => return Ok(Some(Page::foreign(view.newest))),
            ReadFrom::After(cursor) => cursor.position(),
            ReadFrom::Last(0) => view.newest.position(),
            ReadFrom::Last(n) => {
                let rows = query(&tx, sql::LAST, &[&topics, &count(n)]).await?;
                rows.first().map(|row| position(row, "after")).transpose()?.unwrap_or(0)
            }
            _ => 0,
        };
        let (events, bytes) = (count(read.max_events), count(read.max_bytes));
        let rows = query(&tx, sql::READ, &[&topics, &signed(after), &events, &bytes]).await?;
        let mut page = Page::new(view.newest);
        for row in &rows {
            let cursor = view.newest.run().at(position(row, "position")?);
            page.push(cursor, record(row)?);
        }
        let is_cut = rows.last().map(|row| row.try_get("more")).transpose()?;
        if let Some(last) = page.entries.last().filter(|_| is_cut == Some(true)) {
            page.through = last.cursor();
        }
        let rows = query(&tx, sql::TOPICS, &[&topics]).await?;
        let rows = rows.iter().map(|row| Ok((row.try_get("topic")?, row)));
        let rows: HashMap<&[u8], &Row> = rows.collect::<Result<_, BoxError>>()?;
        for topic in &read.topics {
            let Some(row) = rows.get(topic.as_key().as_bytes()) else {
                page.floor = page.floor.max(view.forgotten);
                continue;
            };
            page.floor = page.floor.max(position(row, "floor")?);
            let end: Option<i64> = row.try_get("finished")?;
            if end.is_some_and(|end| end <= signed(page.through.position())) {
                page.finished.push(topic.clone());
            }
        }
        Ok(Some(page))
    }
}

/// The record of a row that has its columns.
pub(crate) fn record(row: &Row) -> Result<Record, BoxError> {
    let kind = Kind::from_name(row.try_get("kind")?).ok_or("a kind of a later version")?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(position(row, "micros")?);
    let mut record = Record::from_stored(topic(row)?, kind, row.try_get("body")?, time)?;
    if let Some(key) = row.try_get("key")? {
        record = record.with_key(std::str::from_utf8(key)?);
    }
    let labels: Vec<(String, String)> = serde_json::from_str(row.try_get("labels")?)?;
    Ok(labels.into_iter().fold(record, |record, (name, value)| record.with_label(name, value)))
}

pub(crate) fn topic(row: &Row) -> Result<Topic, BoxError> {
    Ok(Topic::from_key(std::str::from_utf8(row.try_get("topic")?)?)?)
}
