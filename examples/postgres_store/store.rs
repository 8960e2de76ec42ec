//! [`PostgresStore`]: a log in tables of a PostgreSQL database.
//!
//! Invariants: whoever writes has the one row of `log` locked until its transaction ends, so positions are given in the
//! order in which they become readable. While it is not known how one of our commits ended, nothing is read or written.

use crate::sql;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts, Transaction};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tidings::{
    Topic,
    replay::{AppendError, Cursor, Kind, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Run},
};
use tokio::time::timeout;
use tokio_postgres::{Config, IsolationLevel, NoTls, Row, types::ToSql};

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;
type Outcomes = Vec<Result<Cursor, Refused>>;
type Parameter<'a> = &'a (dyn ToSql + Sync);

/// How long one answer of the server may take before its connection is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a store keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// So many events of each topic.
    pub(crate) events_per_topic: Option<usize>,
    /// Idempotency keys for so long.
    pub(crate) keys_for: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events_per_topic: None, keys_for: Duration::from_secs(300) }
    }
}

/// A log in one schema of a database.
pub(crate) struct PostgresStore {
    pool: Pool,
    retention: Retention,
    /// Commits of which it is not known how they ended.
    doubts: Mutex<Vec<Doubt>>,
}

/// The row of the log, locked.
struct Turn {
    run: Run,
    newest: u64,
    same_server: bool,
    doubt: Doubt,
}

/// A transaction that may be committing.
#[derive(Clone, PartialEq)]
struct Doubt {
    pid: i32,
    xid: String,
    server: String,
}

/// How a transaction ended that was in doubt.
enum End {
    Committed,
    Aborted,
    /// On a server that is no more, or was rewound: what there is of it can be read.
    Elsewhere,
}

impl PostgresStore {
    /// Opens the log, and begins a new run.
    pub(crate) async fn open(mut config: Config, schema: &str, retention: Retention) -> Result<Self, BoxError> {
        config
            .options(format!("-c search_path={schema}"))
            .connect_timeout(PATIENCE)
            .tcp_user_timeout(PATIENCE)
            .keepalives_idle(PATIENCE);
        // Connections that a server's restart has broken are found before they are used.
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let pool = Pool::builder(Manager::from_config(config, NoTls, recycling))
            .max_size(8)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: Some(PATIENCE), create: Some(PATIENCE), recycle: Some(PATIENCE) })
            .build()?;
        let store = Self { pool, retention, doubts: Mutex::default() };
        let mut client = store.pool.get().await?;
        let tx = writing(&mut client).await?;
        // `IF NOT EXISTS` alone fails where two create the same at the same time.
        tx.batch_execute("SELECT pg_advisory_xact_lock(hashtext('tidings'))").await?;
        tx.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}; {}", sql::SCHEMA)).await?;
        tx.execute(sql::NEW_LOG, &[&Run::new_log().epoch.cast_signed()]).await?;
        let turn = lock(&tx).await?;
        begin_run(&tx, turn.run.epoch).await?;
        tx.commit().await?;
        drop(client);
        Ok(store)
    }

    /// Removes what was made longer ago than `age`, some at a time, so that nobody waits long for the turn.
    pub(crate) async fn prune(&self, age: Duration) -> Result<(), BoxError> {
        const AT_ONCE: i64 = 1000;
        let before = micros(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
        loop {
            let mut client = self.client().await?;
            let tx = writing(&mut client).await?;
            let turn = self.turn(&tx).await?;
            let topics = execute(&tx, sql::PRUNE, &[&before, &AT_ONCE]).await?;
            execute(&tx, sql::PRUNE_KEYS, &[]).await?;
            self.commit(tx, turn.doubt).await?;
            if topics == 0 {
                return Ok(());
            }
        }
    }

    /// A connection, once nothing is in doubt.
    async fn client(&self) -> Result<Object, BoxError> {
        loop {
            let Some(doubt) = self.doubts().first().cloned() else { return Ok(self.pool.get().await?) };
            self.resolve(&doubt).await?;
        }
    }

    fn doubts(&self) -> MutexGuard<'_, Vec<Doubt>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to write, in the present run.
    async fn turn(&self, tx: &Transaction<'_>) -> Result<Turn, BoxError> {
        let mut turn = lock(tx).await?;
        if !turn.same_server {
            turn.run = begin_run(tx, turn.run.epoch).await?;
        }
        Ok(turn)
    }

    /// Commits, and does not take a broken connection for an answer: `None` if nobody knows.
    async fn commit(&self, tx: Transaction<'_>, doubt: Doubt) -> Result<(), CommitError> {
        let broken = match timeout(PATIENCE, tx.commit()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => BoxError::from(error),
            Err(late) => late.into(),
        };
        self.doubts().push(doubt.clone());
        match self.resolve(&doubt).await {
            Ok(End::Committed) => Ok(()),
            Ok(End::Aborted) => Err(CommitError { unknown: false, source: broken }),
            Ok(End::Elsewhere) | Err(_) => Err(CommitError { unknown: true, source: broken }),
        }
    }

    /// Waits until a transaction has ended, however it did: after that, nothing of it can become readable.
    async fn resolve(&self, doubt: &Doubt) -> Result<End, BoxError> {
        let end = timeout(PATIENCE, self.fence(doubt)).await??;
        self.doubts().retain(|other| other != doubt);
        Ok(end)
    }

    async fn fence(&self, doubt: &Doubt) -> Result<End, BoxError> {
        let mut client = self.pool.get().await?;
        client.query(sql::TERMINATE, &[&doubt.pid, &doubt.xid, &doubt.server]).await?;
        let tx = writing(&mut client).await?;
        // It had the row locked when it was told to commit, so this waits for its end.
        let turn = lock(&tx).await?;
        if turn.doubt.server != doubt.server {
            return Ok(End::Elsewhere);
        }
        let status: Option<String> = tx.query_one(sql::STATUS, &[&doubt.xid]).await?.try_get(0)?;
        match status.as_deref() {
            Some("committed") => Ok(End::Committed),
            Some("aborted") => Ok(End::Aborted),
            other => Err(format!("a transaction that has ended is {other:?}").into()),
        }
    }

    async fn append_all(&self, records: &[Record]) -> Result<Outcomes, AppendError> {
        let mut client = self.client().await.map_err(AppendError::refused)?;
        // An error before the commit was sent takes everything back.
        let tx = writing(&mut client).await.map_err(AppendError::refused)?;
        let turn = self.turn(&tx).await.map_err(AppendError::refused)?;
        let outcomes = self.write(&tx, &turn, records).await.map_err(AppendError::refused)?;
        let committed = self.commit(tx, turn.doubt).await;
        if committed.is_err() {
            // Its connection is of no more use to anybody.
            drop(Object::take(client));
        }
        match committed {
            Ok(()) => Ok(outcomes),
            Err(error) if error.unknown => Err(AppendError::unknown(error.source)),
            Err(error) => Err(AppendError::refused(error.source)),
        }
    }

    async fn write(&self, tx: &Transaction<'_>, turn: &Turn, records: &[Record]) -> Result<Outcomes, BoxError> {
        let topics: BTreeSet<&[u8]> = records.iter().map(|record| topic(record)).collect();
        let topics: Vec<_> = topics.into_iter().collect();
        let rows = query(tx, sql::FINISHED, &[&topics]).await?;
        let mut finished = rows.iter().map(|row| row.try_get::<_, Vec<u8>>(0)).collect::<Result<BTreeSet<_>, _>>()?;

        let mut batch = Batch::default();
        let mut position = turn.newest;
        let mut outcomes = Outcomes::with_capacity(records.len());
        for record in records {
            if finished.contains(topic(record)) {
                outcomes.push(Err(Refused::Finished));
                continue;
            }
            position += 1;
            if record.kind() == Kind::Finish {
                finished.insert(topic(record).to_vec());
            }
            batch.push(position, record);
            outcomes.push(Ok(turn.run.at(position)));
        }
        if position > turn.newest {
            batch.write(tx).await?;
            if let Some(keep) = self.retention.events_per_topic {
                execute(tx, sql::EVICT, &[&topics, &count(keep)]).await?;
            }
        }
        // Also where nothing was stored: a transaction that writes nothing has no outcome to ask for.
        execute(tx, sql::ADVANCE, &[&signed(position)]).await?;
        Ok(outcomes)
    }

    async fn forget_topic(&self, topic: &[u8]) -> Result<(), BoxError> {
        let mut client = self.client().await?;
        let tx = writing(&mut client).await?;
        let turn = self.turn(&tx).await?;
        for statement in sql::FORGET {
            execute(&tx, statement, &[&topic]).await?;
        }
        Ok(self.commit(tx, turn.doubt).await?)
    }

    /// A page, or `None` if a new run has to begin first.
    async fn page(&self, read: &Read) -> Result<Option<Page>, BoxError> {
        let mut client = self.client().await?;
        // All of it from one snapshot.
        let snapshot = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        let tx = snapshot.start().await?;
        let topics: Vec<_> = read.topics.iter().map(|topic| topic.as_key().as_bytes()).collect();
        let asked = if let ReadFrom::After(cursor) = read.from { Some(cursor) } else { None };
        let view = View::of(&tx, asked.map_or(0, |cursor| cursor.run().number)).await?;
        if !view.same_server {
            return Ok(None);
        }
        let after = match read.from {
            ReadFrom::After(cursor) if view.is_foreign(cursor) => return Ok(Some(Page::foreign(view.newest))),
            ReadFrom::After(cursor) => cursor.position(),
            ReadFrom::Last(0) => view.newest.position(),
            ReadFrom::Last(n) => {
                let row = query(&tx, sql::LAST, &[&topics, &count(n)]).await?;
                row.first().map(|row| position(row, 0)).transpose()?.unwrap_or(0)
            }
            _ => 0,
        };
        let bounds = (count(read.max_events), count(read.max_bytes));
        let rows = query(&tx, sql::READ, &[&topics, &signed(after), &bounds.0, &bounds.1]).await?;
        let mut page = Page::new(view.newest);
        for row in &rows {
            let cursor = view.newest.run().at(position(row, "position")?);
            page.push(cursor, record(row)?);
        }
        if let Some(last) = rows.last().filter(|row| row.get("more")) {
            page.through = view.newest.run().at(position(last, "position")?);
        }
        let rows = query(&tx, sql::TOPICS, &[&topics]).await?;
        let rows: HashMap<&[u8], &Row> = rows.iter().map(|row| (row.get("topic"), row)).collect();
        for topic in &read.topics {
            let Some(row) = rows.get(topic.as_key().as_bytes()) else {
                page.floor = page.floor.max(view.forgotten);
                continue;
            };
            page.floor = page.floor.max(position(row, "floor")?);
            let end: Option<i64> = row.try_get("finished")?;
            if end.is_some_and(|end| end.cast_unsigned() <= page.through.position()) {
                page.finished.push(topic.clone());
            }
        }
        Ok(Some(page))
    }

    /// Begins a new run if the server is another than the one where the present one began.
    async fn look_at_server(&self) -> Result<(), BoxError> {
        let mut client = self.client().await?;
        let tx = writing(&mut client).await?;
        let turn = self.turn(&tx).await?;
        Ok(self.commit(tx, turn.doubt).await?)
    }

    async fn present(&self) -> Result<Option<Cursor>, BoxError> {
        let mut client = self.client().await?;
        let view = View::of(&client.transaction().await?, 0).await?;
        Ok(view.same_server.then_some(view.newest))
    }
}

impl ReplayStore for PostgresStore {
    async fn head(&self) -> Result<Cursor, ReadError> {
        loop {
            match self.present().await.map_err(ReadError::new)? {
                Some(newest) => return Ok(newest),
                None => self.look_at_server().await.map_err(ReadError::new)?,
            }
        }
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Outcomes, AppendError> {
        if records.is_empty() { Ok(Vec::new()) } else { self.append_all(&records).await }
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        loop {
            match self.page(&read).await.map_err(ReadError::new)? {
                Some(page) => return Ok(page),
                None => self.look_at_server().await.map_err(ReadError::new)?,
            }
        }
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.forget_topic(topic.as_key().as_bytes()).await.map_err(ReadError::new)
    }
}

/// What of a batch is stored, column by column, so that it takes as many statements however long it is.
#[derive(Default)]
struct Batch<'a> {
    rows: Vec<Option<(u64, &'a Record)>>,
    /// For each topic the end, if it is one of these, and how many rows it has.
    topics: BTreeMap<&'a [u8], (Option<i64>, i64)>,
    /// Where the newest of each key stands.
    newest: HashMap<(&'a [u8], &'a str), usize>,
}

impl<'a> Batch<'a> {
    fn push(&mut self, position: u64, record: &'a Record) {
        let of_topic = self.topics.entry(topic(record)).or_default();
        if record.kind() == Kind::Finish {
            of_topic.0 = Some(signed(position));
        }
        of_topic.1 += 1;
        let replaced = record.replaces().and_then(|key| self.newest.insert((topic(record), key), self.rows.len()));
        if let Some(replaced) = replaced {
            self.rows[replaced] = None;
            of_topic.1 -= 1;
        }
        self.rows.push(Some((position, record)));
    }

    async fn write(&self, tx: &Transaction<'_>) -> Result<(), BoxError> {
        let (topics, of_topics): (Vec<_>, Vec<_>) = self.topics.iter().map(|(topic, of)| (*topic, *of)).unzip();
        let (ends, held): (Vec<_>, Vec<_>) = of_topics.into_iter().unzip();
        execute(tx, sql::COUNT, &[&topics, &ends, &held]).await?;
        if !self.newest.is_empty() {
            let (topics, keys): (Vec<_>, Vec<_>) =
                self.newest.keys().map(|(topic, key)| (*topic, key.as_bytes())).unzip();
            execute(tx, sql::REPLACE, &[&topics, &keys]).await?;
        }
        let rows = || self.rows.iter().flatten();
        let positions: Vec<_> = rows().map(|(position, _)| signed(*position)).collect();
        let topics: Vec<_> = rows().map(|(_, record)| topic(record)).collect();
        let kinds: Vec<_> = rows().map(|(_, record)| record.kind().as_str()).collect();
        let bodies: Vec<_> = rows().map(|(_, record)| &record.body()[..]).collect();
        let times: Vec<_> = rows().map(|(_, record)| micros(record.time())).collect();
        let keys: Vec<_> = rows().map(|(_, record)| record.key().map(str::as_bytes)).collect();
        let labels = rows().map(|(_, record)| serde_json::to_string(&record.labels().collect::<Vec<_>>()));
        let labels = labels.collect::<Result<Vec<_>, _>>()?;
        execute(tx, sql::INSERT, &[&positions, &topics, &kinds, &bodies, &times, &keys, &labels]).await?;
        Ok(())
    }
}

/// The log's row, as one snapshot has it.
struct View {
    newest: Cursor,
    forgotten: u64,
    same_server: bool,
    /// How far a cursor of the run that was asked for is good, if that is an older one.
    good: Option<u64>,
}

impl View {
    async fn of(tx: &Transaction<'_>, run: u32) -> Result<Self, BoxError> {
        let row = tx.query_one(&tx.prepare_cached(sql::VIEW).await?, &[&i64::from(run)]).await?;
        let good: Option<i64> = row.try_get("good")?;
        Ok(Self {
            newest: present_run(&row)?.at(position(&row, "newest")?),
            forgotten: position(&row, "forgotten")?,
            same_server: row.try_get("same_server")?,
            good: good.map(i64::cast_unsigned),
        })
    }

    fn is_foreign(&self, cursor: Cursor) -> bool {
        let (run, present) = (cursor.run(), self.newest.run());
        let good = if run == present { Some(self.newest.position()) } else { self.good };
        run.epoch != present.epoch || good.is_none_or(|good| cursor.position() > good)
    }
}

#[derive(Debug)]
struct CommitError {
    unknown: bool,
    source: BoxError,
}

impl std::fmt::Display for CommitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.unknown { "the server did not say whether it committed" } else { "it was not committed" })
    }
}

impl Error for CommitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Each statement is to see what was committed before it: with any other level, that would be what was before the lock.
async fn writing(client: &mut Object) -> Result<Transaction<'_>, BoxError> {
    Ok(client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?)
}

async fn lock(tx: &Transaction<'_>) -> Result<Turn, BoxError> {
    let row = tx.query_one(&tx.prepare_cached(sql::LOCK).await?, &[]).await?;
    let doubt = Doubt { pid: row.try_get("pid")?, xid: row.try_get("xid")?, server: row.try_get("server")? };
    let (newest, same_server) = (position(&row, "newest")?, row.try_get("same_server")?);
    Ok(Turn { run: present_run(&row)?, newest, same_server, doubt })
}

async fn begin_run(tx: &Transaction<'_>, epoch: u64) -> Result<Run, BoxError> {
    let number: i64 = tx.query_one(sql::BEGIN_RUN, &[]).await?.try_get(0)?;
    Ok(Run { epoch, number: number.try_into()? })
}

fn present_run(row: &Row) -> Result<Run, BoxError> {
    let (epoch, number): (i64, i64) = (row.try_get("epoch")?, row.try_get("run")?);
    Ok(Run { epoch: epoch.cast_unsigned(), number: number.try_into()? })
}

async fn query(tx: &Transaction<'_>, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, BoxError> {
    Ok(tx.query(&tx.prepare_cached(sql).await?, parameters).await?)
}

async fn execute(tx: &Transaction<'_>, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, BoxError> {
    Ok(tx.execute(&tx.prepare_cached(sql).await?, parameters).await?)
}

fn record(row: &Row) -> Result<Record, BoxError> {
    let topic = Topic::from_key(std::str::from_utf8(row.try_get("topic")?)?)?;
    let kind = Kind::from_name(row.try_get("kind")?).ok_or("a kind of a later version")?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_micros(position(row, "micros")?);
    let mut record = Record::from_stored(topic, kind, row.try_get("body")?, time)?;
    if let Some(key) = row.try_get("key")? {
        record = record.with_key(std::str::from_utf8(key)?);
    }
    let labels: Vec<(String, String)> = serde_json::from_str(row.try_get("labels")?)?;
    Ok(labels.into_iter().fold(record, |record, (name, value)| record.with_label(name, value)))
}

/// As bytes: a text of PostgreSQL's cannot have a NUL, and compares as its collation says.
fn topic(record: &Record) -> &[u8] {
    record.topic().as_key().as_bytes()
}

fn position(row: &Row, column: impl tokio_postgres::row::RowIndex + std::fmt::Display) -> Result<u64, BoxError> {
    Ok(row.try_get::<_, i64>(column)?.try_into()?)
}

/// A position that is past all of the server's numbers is past the newest.
fn signed(position: u64) -> i64 {
    position.try_into().unwrap_or(i64::MAX)
}

/// A bound that is too large for a page is none.
fn count(bound: usize) -> i64 {
    i64::try_from(bound).unwrap_or(i64::MAX).min(1 << 40)
}

fn micros(time: SystemTime) -> i64 {
    let micros = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    micros.try_into().unwrap_or(i64::MAX)
}
