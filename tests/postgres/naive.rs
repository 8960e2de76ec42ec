//! Why positions do not come from a sequence.

use crate::{
    open,
    postgres_store::{BoxError, PostgresStore, Retention},
    server::Postgres,
};
use std::{cell::Cell, sync::Arc};
use tidings::{
    Topic,
    replay::{
        AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore,
        conformance::{self, Keep, Rule},
    },
};
use tokio_postgres::Client;

#[tokio::test]
async fn a_number_from_a_sequence_can_become_readable_after_a_later_one() {
    let server = Postgres::start();
    let (slow, fast, reader) = (server.connect().await, server.connect().await, server.connect().await);
    slow.batch_execute("CREATE TABLE events (position bigserial, text text)").await.unwrap();
    slow.batch_execute("BEGIN; INSERT INTO events (text) VALUES ('first')").await.unwrap();
    fast.batch_execute("INSERT INTO events (text) VALUES ('second')").await.unwrap();

    let select = "SELECT position, text FROM events WHERE position > $1 ORDER BY position";
    let page = reader.query(select, &[&0_i64]).await.unwrap();
    let page: Vec<(i64, String)> = page.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(page, [(2, "second".to_owned())]);

    slow.batch_execute("COMMIT").await.unwrap();
    // Who goes on from where it was never sees the first.
    assert!(reader.query(select, &[&2_i64]).await.unwrap().is_empty());
    assert_eq!(reader.query(select, &[&0_i64]).await.unwrap().len(), 2);
}

/// The store, but for where positions come from: a sequence, before the row is locked.
struct Naive {
    store: PostgresStore,
    /// Of its own, because the numbers of a batch are to stand together.
    sequence: Client,
}

impl Naive {
    async fn append_all(&self, records: &[Record]) -> Result<Vec<Result<Cursor, Refused>>, BoxError> {
        let count = i64::try_from(records.len())?;
        let numbers =
            "SELECT min(nextval) FROM (SELECT nextval('positions') FROM generate_series(1, $1::bigint)) AS given";
        let first: i64 = self.sequence.query_one(numbers, &[&count]).await?.try_get(0)?;
        let mut client = self.store.db.client().await?;
        let tx = client.transaction().await?;
        let run = self.store.head().await?.run();
        let outcomes = self.store.write(&tx, run.at(u64::try_from(first - 1)?), records).await?;
        // Whoever comes later, the newest is the newest.
        tx.batch_execute("UPDATE log SET newest = greatest(newest, (SELECT max(position) FROM records))").await?;
        tx.commit().await?;
        Ok(outcomes)
    }
}

impl ReplayStore for Naive {
    fn head(&self) -> impl Future<Output = Result<Cursor, ReadError>> + Send {
        self.store.head()
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        self.append_all(&records).await.map_err(AppendError::refused)
    }

    fn read(&self, read: Read) -> impl Future<Output = Result<Page, ReadError>> + Send {
        self.store.read(read)
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.store.forget(topic).await?;
        // Which took a number too.
        let pass = "SELECT setval('positions', greatest(last_value, newest)) FROM positions, log WHERE newest > 0";
        self.sequence.query(pass, &[]).await.map_err(ReadError::new).map(drop)
    }
}

async fn is_rejected() {
    let server = Postgres::start();
    drop(open(server.config()).await);
    let made = Cell::new(0);
    let verdict = Box::pin(conformance::check(async |keep: Keep| {
        made.set(made.get() + 1);
        let schema = format!("naive_{}", made.get());
        let retention = Retention { events_per_topic: keep.events_per_topic, ..Retention::default() };
        let store = PostgresStore::open(server.config(), &schema, retention).await.unwrap();
        let sequence = server.connect().await;
        sequence.batch_execute(&format!("SET search_path = {schema}; CREATE SEQUENCE positions")).await.unwrap();
        Naive { store, sequence }
    }));
    let violation = verdict.await.expect_err("a sequence is no place for positions to come from");
    assert_eq!(violation.rule(), Rule::NothingLower, "{violation}");
}

#[tokio::test]
async fn the_suite_rejects_a_sequence_on_one_thread() {
    is_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_rejects_a_sequence_on_several_threads() {
    is_rejected().await;
}
