//! A store of your own: the log in an `SQLite` file, so that ids stay good across restarts.
//!
//! ```text
//! cargo run --example custom_store                       # [--port PORT] [--db PATH] [--check]
//!
//! curl -N localhost:3000/events                          # in a second terminal: follow
//! curl localhost:3000/publish -d 'first'                 # in a third: publish; the answer is the event's id
//!
//! kill -9 PID                                            # as printed; the client is cut, and here stays away
//! cargo run --example custom_store                       # the same log
//! curl localhost:3000/publish -d 'missed'
//! curl -N localhost:3000/events -H 'last-event-id: ID'   # with the last id that the client saw: 'missed' comes
//! ```
//!
//! `--port 0` takes a free port, `--check` only runs the conformance suite, and the file is in the directory for temporary
//! ones unless `--db` says otherwise.
//!
//! `cargo test --example custom_store` runs the conformance suite on it.

use axum::{Router, extract::State, http::StatusCode, routing::post};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior::Immediate};
use std::{
    error::Error,
    future::ready,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tidings::{
    Event, Hub, Topic,
    replay::{
        AppendError, Cursor, Kind, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Run,
        conformance::{self, Keep},
    },
};
use tokio::task::spawn_blocking;

type BoxError = Box<dyn Error + Send + Sync>;
type Outcomes = Vec<Result<Cursor, Refused>>;

const SCHEMA: &str = "
    PRAGMA locking_mode = EXCLUSIVE;  -- a second process would give the same positions
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;        -- what was acknowledged survives a power cut
    CREATE TABLE IF NOT EXISTS log (
        id        INTEGER PRIMARY KEY CHECK (id = 1),
        epoch     BLOB NOT NULL,
        newest    INTEGER NOT NULL,   -- never falls, whatever is removed
        forgotten INTEGER NOT NULL    -- the one floor of all topics that have no row
    ) STRICT;
    CREATE TABLE IF NOT EXISTS openings (
        ordinal   INTEGER PRIMARY KEY,
        run       INTEGER NOT NULL UNIQUE,
        began     INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS topics (
        topic     TEXT PRIMARY KEY,
        floor     INTEGER NOT NULL,
        finished  INTEGER
    ) STRICT;
    CREATE TABLE IF NOT EXISTS keys (
        topic     TEXT NOT NULL,
        key       TEXT NOT NULL,      -- an idempotency key: the record outlives it, or the other way round
        position  INTEGER NOT NULL,
        since     INTEGER NOT NULL,
        PRIMARY KEY (topic, key)
    ) STRICT;
    CREATE INDEX IF NOT EXISTS keys_by_age ON keys (since);
    CREATE TABLE IF NOT EXISTS records (
        position  INTEGER PRIMARY KEY,
        topic     TEXT NOT NULL,
        kind      TEXT NOT NULL,
        body      BLOB NOT NULL,
        micros    INTEGER NOT NULL,
        key       TEXT,
        labels    TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS records_of_topic ON records (topic, position);
    -- finds what a record takes the place of, and sees to it that there is no more than one
    CREATE UNIQUE INDEX IF NOT EXISTS newest_of_key ON records (topic, key) WHERE kind IN ('latest', 'removal');
";

/// A log in a database that belongs to this process for as long as it is open.
#[derive(Clone)]
struct SqliteStore(Arc<Shared>);

struct Shared {
    /// The only connection: what is read under its lock is one view of the log.
    db: Mutex<Connection>,
    run: Run,
    keep: Option<usize>,
}

impl SqliteStore {
    /// Opens the log, and begins a new run. Keeps so many events of each topic.
    fn open(mut db: Connection, keep: Option<usize>) -> rusqlite::Result<Self> {
        db.execute_batch(SCHEMA)?;
        let tx = db.transaction_with_behavior(Immediate)?;
        tx.execute("INSERT OR IGNORE INTO log VALUES (1, ?1, 0, 0)", [Run::new_log().epoch.to_be_bytes()])?;
        let (epoch, newest) =
            tx.query_row("SELECT epoch, newest FROM log", [], |row| Ok((row.get(0)?, row.get::<_, u64>(1)?)))?;
        // Drawn, because a file that was restored from a copy does not know the runs that came after the copy.
        let begin = "INSERT INTO openings (run, began) VALUES (abs(random() % 4294967296), ?1) RETURNING run";
        let number = tx.query_row(begin, [newest], |row| row.get(0))?;
        tx.commit()?;
        let run = Run { epoch: u64::from_be_bytes(epoch), number };
        Ok(Self(Arc::new(Shared { db: Mutex::new(db), run, keep })))
    }

    /// Runs a call where it may block. It goes on to its end even if the future is dropped.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Shared) -> Result<T, BoxError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let shared = Arc::clone(&self.0);
        spawn_blocking(move || call(&shared)).await.map_err(ReadError::new)?.map_err(ReadError::new)
    }
}

impl ReplayStore for SqliteStore {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.blocking(|log| Ok(log.run.at(newest(&log.db())?))).await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Outcomes, AppendError> {
        let shared = Arc::clone(&self.0);
        // A thread that panicked, or never ran, does not say how far it came.
        spawn_blocking(move || shared.append(&records)).await.map_err(AppendError::unknown)?
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        self.blocking(move |log| log.read(&read)).await
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.blocking(move |log| log.forget(topic.as_key())).await
    }
}

impl Shared {
    fn db(&self) -> MutexGuard<'_, Connection> {
        // A panic rolled its transaction back.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, records: &[Record]) -> Result<Outcomes, AppendError> {
        let mut db = self.db();
        let tx = db.transaction_with_behavior(Immediate).map_err(AppendError::refused)?;
        // After an error the transaction is dropped, and without a COMMIT nothing of it is ever read.
        let outcomes = self.append_in(&tx, records).map_err(AppendError::refused)?;
        // A COMMIT that failed may have reached the disk all the same.
        tx.commit().map_err(AppendError::unknown)?;
        Ok(outcomes)
    }

    fn append_in(&self, tx: &Transaction<'_>, records: &[Record]) -> Result<Outcomes, BoxError> {
        // Idempotency keys are remembered for five minutes.
        tx.prepare_cached("DELETE FROM keys WHERE since <= unixepoch() - 300")?.execute([])?;
        let mut position = newest(tx)?;
        let mut outcomes = Outcomes::with_capacity(records.len());
        for record in records {
            let topic = record.topic().as_key();
            if let Some(key) = record.idempotency_key() {
                let first = "SELECT position FROM keys WHERE topic = ?1 AND key = ?2";
                let first = tx.prepare_cached(first)?.query_row([topic, key], |row| row.get(0)).optional()?;
                if let Some(first) = first {
                    outcomes.push(Err(Refused::Duplicate(self.run.at(first))));
                    continue;
                }
            }
            tx.prepare_cached("INSERT OR IGNORE INTO topics SELECT ?1, forgotten, NULL FROM log")?.execute([topic])?;
            let is_over = "SELECT finished IS NOT NULL FROM topics WHERE topic = ?1";
            if tx.prepare_cached(is_over)?.query_row([topic], |row| row.get(0))? {
                outcomes.push(Err(Refused::Finished));
                continue;
            }
            position += 1;
            if let Some(key) = record.replaces() {
                let replace = "DELETE FROM records WHERE topic = ?1 AND key = ?2 AND kind IN ('latest', 'removal')";
                tx.prepare_cached(replace)?.execute((topic, key))?;
            }
            if let Some(key) = record.idempotency_key() {
                let remember = "INSERT INTO keys VALUES (?1, ?2, ?3, unixepoch())";
                tx.prepare_cached(remember)?.execute((topic, key, position))?;
            }
            let kind = record.kind().as_str();
            let micros = record.time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
            let labels = serde_json::to_string(&record.labels().collect::<Vec<_>>())?;
            let row = (position, topic, kind, &record.body()[..], i64::try_from(micros)?, record.key(), labels);
            tx.prepare_cached("INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(row)?;
            if record.kind() == Kind::Finish {
                tx.execute("UPDATE topics SET finished = ?2 WHERE topic = ?1", (topic, position))?;
            }
            if let Some(keep) = self.keep {
                evict(tx, topic, keep)?;
            }
            outcomes.push(Ok(self.run.at(position)));
        }
        tx.execute("UPDATE log SET newest = ?1", [position])?;
        Ok(outcomes)
    }

    fn read(&self, read: &Read) -> Result<Page, BoxError> {
        let db = self.db();
        let newest = newest(&db)?;
        let topics = serde_json::to_string(&read.topics.iter().map(Topic::as_key).collect::<Vec<_>>())?;
        let after = match read.from {
            ReadFrom::After(cursor) if self.is_foreign(&db, cursor, newest)? => {
                return Ok(Page::foreign(self.run.at(newest)));
            }
            ReadFrom::After(cursor) => cursor.position(),
            ReadFrom::Last(0) => newest,
            ReadFrom::Last(n) => {
                let nth = "SELECT position - 1 FROM records WHERE topic IN (SELECT value FROM json_each(?1))
                           ORDER BY position DESC LIMIT 1 OFFSET ?2";
                let first = db.prepare_cached(nth)?.query_row((&topics, number(n - 1)), |row| row.get(0)).optional()?;
                first.unwrap_or(0)
            }
            _ => 0,
        };
        let mut page = Page::new(self.run.at(newest));
        let mut select = db.prepare_cached(
            "SELECT position, topic, kind, body, micros, key, labels FROM records
             WHERE topic IN (SELECT value FROM json_each(?1)) AND position > ?2 ORDER BY position LIMIT ?3",
        )?;
        // One more than asked for, to know whether there is more.
        let mut rows = select.query((&topics, after, number(read.max_events.saturating_add(1))))?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let is_full = page.entries.len() >= read.max_events || bytes >= read.max_bytes;
            if let Some(last) = page.entries.last().filter(|_| is_full) {
                page.through = last.cursor();
                break;
            }
            let record = record(row)?;
            bytes += record.body().len();
            page.push(self.run.at(row.get(0)?), record);
        }
        let forgotten = db.query_row("SELECT forgotten FROM log", [], |row| row.get(0))?;
        for topic in &read.topics {
            let mut select = db.prepare_cached("SELECT floor, finished FROM topics WHERE topic = ?1")?;
            let row = select.query_row([topic.as_key()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            let (floor, finished): (u64, Option<u64>) = row.unwrap_or((forgotten, None));
            page.floor = page.floor.max(floor);
            page.finished.extend(finished.filter(|end| *end <= page.through.position()).map(|_| topic.clone()));
        }
        Ok(page)
    }

    fn is_foreign(&self, db: &Connection, cursor: Cursor, newest: u64) -> rusqlite::Result<bool> {
        let (run, position) = (cursor.run(), cursor.position());
        if run == self.run {
            return Ok(position > newest);
        }
        let good = "SELECT min(began) FROM openings WHERE ordinal > (SELECT ordinal FROM openings WHERE run = ?1)";
        let good: Option<u64> = db.prepare_cached(good)?.query_row([run.number], |row| row.get(0))?;
        Ok(run.epoch != self.run.epoch || good.is_none_or(|good| position > good))
    }

    fn forget(&self, topic: &str) -> Result<(), BoxError> {
        let mut db = self.db();
        let tx = db.transaction_with_behavior(Immediate)?;
        tx.execute(
            "UPDATE log SET forgotten = max(forgotten, ifnull((SELECT floor FROM topics WHERE topic = ?1), 0),
                                            ifnull((SELECT max(position) FROM records WHERE topic = ?1), 0))",
            [topic],
        )?;
        tx.execute("DELETE FROM records WHERE topic = ?1", [topic])?;
        tx.execute("DELETE FROM topics WHERE topic = ?1", [topic])?;
        Ok(tx.commit()?)
    }
}

fn newest(db: &Connection) -> rusqlite::Result<u64> {
    db.query_row("SELECT newest FROM log", [], |row| row.get(0))
}

/// Removes all but the newest events of a topic, and raises its floor in the same transaction.
fn evict(tx: &Transaction<'_>, topic: &str, keep: usize) -> rusqlite::Result<()> {
    let raise = "UPDATE topics SET floor = max(floor, ifnull(
                     (SELECT position FROM records WHERE topic = ?1 ORDER BY position DESC LIMIT 1 OFFSET ?2), 0))
                 WHERE topic = ?1";
    tx.prepare_cached(raise)?.execute((topic, number(keep)))?;
    let remove = "DELETE FROM records WHERE topic = ?1 AND position <= (SELECT floor FROM topics WHERE topic = ?1)";
    tx.prepare_cached(remove)?.execute([topic])?;
    Ok(())
}

fn record(row: &rusqlite::Row<'_>) -> Result<Record, BoxError> {
    let topic = Topic::from_key(row.get_ref("topic")?.as_str()?)?;
    let kind = Kind::from_name(row.get_ref("kind")?.as_str()?).ok_or("a kind of a later version")?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(row.get("micros")?);
    let mut record = Record::from_stored(topic, kind, row.get_ref("body")?.as_blob()?, time)?;
    if let Some(key) = row.get_ref("key")?.as_str_or_null()? {
        record = record.with_key(key);
    }
    let labels: Vec<(String, String)> = serde_json::from_str(row.get_ref("labels")?.as_str()?)?;
    Ok(labels.into_iter().fold(record, |record, (name, value)| record.with_label(name, value)))
}

/// A count that is too large for the database is no bound.
fn number(count: usize) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Runs the conformance suite: on logs in memory, and on one in a file that is opened again and again.
async fn check() -> Result<(), BoxError> {
    conformance::check(async |keep: Keep| {
        let db = Connection::open_in_memory().expect("memory");
        SqliteStore::open(db, keep.events_per_topic).expect("a new log")
    })
    .await?;
    let path = temp_file(&format!("tidings-check-{}.db", Run::new_log().epoch));
    let reopened = conformance::check_reopen(async |keep: Keep| {
        let db = Connection::open(&path).expect("a file in the directory for temporary ones");
        SqliteStore::open(db, keep.events_per_topic).expect("the same log")
    });
    let verdict = reopened.await;
    let _ = std::fs::remove_file(&path);
    Ok(verdict?)
}

fn temp_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (mut port, mut path, mut check_only) = (3000, temp_file("tidings.db"), false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or("the option needs a value");
        match arg.as_str() {
            "--port" => port = value()?.parse()?,
            "--db" => path = value()?.into(),
            "--check" => check_only = true,
            _ => return Err("usage: custom_store [--port PORT] [--db PATH] [--check]".into()),
        }
    }
    check().await?;
    println!("the store passes the conformance suite");
    if check_only { Ok(()) } else { serve(port, &path).await }
}

async fn serve(port: u16, path: &Path) -> Result<(), BoxError> {
    let store = SqliteStore::open(Connection::open(path)?, Some(10_000))?;
    let hub = Hub::builder().open(store).await?;
    let topic = Topic::new("news")?;

    let followed = topic.clone();
    let events = hub.handler(move |_| ready(followed.clone()));
    let app = Router::new().route_service("/events", events).route("/publish", post(publish)).with_state((hub, topic));

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("the log is in {}", path.display());
    println!("follow:  curl -N {address}/events");
    println!("publish: curl {address}/publish -d 'some text'");
    println!("resume:  kill -9 {}, start again, publish, and then", std::process::id());
    println!("         curl -N {address}/events -H 'last-event-id: THE LAST ID YOU SAW'");
    Ok(axum::serve(listener, app).await?)
}

async fn publish(State((hub, topic)): State<(Hub, Topic)>, text: String) -> (StatusCode, String) {
    match hub.publish(&topic, Event::new().data(text)).await {
        Ok(id) => (StatusCode::OK, format!("{id}\n")),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn conforms_on_one_thread() {
        super::check().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn conforms_on_several_threads() {
        super::check().await.unwrap();
    }
}
