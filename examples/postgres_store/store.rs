//! [`PostgresStore`]: the log of one schema, and everything that writes to it.

use super::{
    BoxError,
    feed::{self, Follower},
    sql,
    turn::{Database, begin, count, execute, position, query, signed, take_turn},
};
use deadpool_postgres::Transaction;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidings::{
    Topic,
    replay::{AppendError, Cursor, Feed, Kind, Notice, Page, Read, ReadError, Record, Refused, ReplayStore, Run},
};
use tokio_postgres::Config;

type Outcomes = Vec<Result<Cursor, Refused>>;

/// What a store keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// So many events of each topic.
    pub(crate) events_per_topic: Option<usize>,
    /// Idempotency keys, for so long.
    pub(crate) keys_for: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events_per_topic: None, keys_for: Duration::from_secs(300) }
    }
}

/// A log in one schema of a database.
#[derive(Clone)]
pub(crate) struct PostgresStore {
    pub(crate) db: Arc<Database>,
    retention: Retention,
}

impl PostgresStore {
    /// Opens the log, and makes it if there is none. Others may have it open.
    pub(crate) async fn open(config: Config, schema: &str, retention: Retention) -> Result<Self, BoxError> {
        let store = Self { db: Arc::new(Database::new(config, schema)?), retention };
        let mut client = store.db.client().await?;
        let tx = begin(&mut client).await?;
        // `IF NOT EXISTS` alone fails where two make the same at the same time.
        tx.batch_execute("SELECT pg_advisory_xact_lock(hashtext('tidings'))").await?;
        tx.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}; {}", sql::SCHEMA)).await?;
        tx.execute(sql::NEW_LOG, &[&i64::from_be_bytes(Run::new_log().epoch.to_be_bytes())]).await?;
        take_turn(&tx).await?;
        tx.commit().await?;
        drop(client);
        Ok(store)
    }

    /// Removes what was made longer ago than `age`, some at a time, so that nobody waits long for the turn.
    pub(crate) async fn prune(&self, age: Duration) -> Result<(), BoxError> {
        const AT_ONCE: i64 = 1000;
        let before = micros(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
        loop {
            let mut client = self.db.client().await?;
            let tx = begin(&mut client).await?;
            let turn = take_turn(&tx).await?;
            let topics = execute(&tx, sql::PRUNE, &[&before, &AT_ONCE]).await?;
            for statement in [sql::PRUNE_KEYS, sql::PRUNE_FORGOTTEN, sql::PRUNE_NOTICES] {
                execute(&tx, statement, &[]).await?;
            }
            self.db.commit(tx, turn).await?;
            if topics == 0 {
                return Ok(());
            }
        }
    }

    /// Begins a new run, if the server is not the one where the present one began.
    pub(crate) async fn look_at_server(&self) -> Result<(), BoxError> {
        let mut client = self.db.client().await?;
        let tx = begin(&mut client).await?;
        let turn = take_turn(&tx).await?;
        Ok(self.db.commit(tx, turn).await?)
    }

    async fn append_all(&self, records: &[Record]) -> Result<Outcomes, AppendError> {
        let mut client = self.db.client().await.map_err(AppendError::refused)?;
        // An error before the commit was sent takes everything back.
        let tx = begin(&mut client).await.map_err(AppendError::refused)?;
        let turn = take_turn(&tx).await.map_err(AppendError::refused)?;
        let outcomes = self.write(&tx, turn.newest, records).await.map_err(AppendError::refused)?;
        match self.db.commit(tx, turn).await {
            Ok(()) => Ok(outcomes),
            Err(error) if error.unknown => Err(AppendError::unknown(error)),
            Err(error) => Err(AppendError::refused(error)),
        }
    }

    /// Gives records the places after one.
    pub(crate) async fn write(
        &self,
        tx: &Transaction<'_>,
        after: Cursor,
        records: &[Record],
    ) -> Result<Outcomes, BoxError> {
        let topics: BTreeSet<_> = records.iter().map(topic).collect();
        let topics: Vec<_> = topics.into_iter().collect();
        let mut finished = BTreeSet::new();
        for row in query(tx, sql::FINISHED, &[&topics]).await? {
            finished.insert(row.try_get::<_, Vec<u8>>("topic")?);
        }
        let mut stored = duplicates(tx, records).await?;

        let mut batch = Batch::default();
        let (run, mut newest) = (after.run(), after.position());
        let mut outcomes = Outcomes::with_capacity(records.len());
        for record in records {
            let key = record.idempotency_key().map(|key| (topic(record).to_vec(), key.as_bytes().to_vec()));
            if let Some(first) = key.as_ref().and_then(|key| stored.get(key)) {
                outcomes.push(Err(Refused::Duplicate(run.at(*first))));
                continue;
            }
            if finished.contains(topic(record)) {
                outcomes.push(Err(Refused::Finished));
                continue;
            }
            newest += 1;
            if record.kind() == Kind::Finish {
                finished.insert(topic(record).to_vec());
            }
            stored.extend(key.map(|key| (key, newest)));
            batch.push(newest, record);
            outcomes.push(Ok(run.at(newest)));
        }
        if newest > after.position() {
            batch.write(tx, self.retention.keys_for).await?;
            if let Some(keep) = self.retention.events_per_topic {
                execute(tx, sql::EVICT, &[&topics, &count(keep)]).await?;
            }
            execute(tx, sql::ADVANCE, &[&signed(newest)]).await?;
        }
        Ok(outcomes)
    }

    async fn forget_topic(&self, topic: &[u8]) -> Result<(), BoxError> {
        let mut client = self.db.client().await?;
        let tx = begin(&mut client).await?;
        let turn = take_turn(&tx).await?;
        execute(&tx, sql::FORGET_FLOOR, &[&topic]).await?;
        execute(&tx, sql::FORGET_RECORDS, &[&topic]).await?;
        if execute(&tx, sql::FORGET_TOPIC, &[&topic]).await? > 0 {
            let place = signed(turn.newest.position() + 1);
            execute(&tx, sql::FORGOTTEN, &[&place, &topic]).await?;
            execute(&tx, sql::ADVANCE, &[&place]).await?;
        }
        Ok(self.db.commit(tx, turn).await?)
    }
}

impl ReplayStore for PostgresStore {
    async fn head(&self) -> Result<Cursor, ReadError> {
        loop {
            match self.db.head().await.map_err(ReadError::new)? {
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
            match self.db.page(&read).await.map_err(ReadError::new)? {
                Some(page) => return Ok(page),
                None => self.look_at_server().await.map_err(ReadError::new)?,
            }
        }
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.forget_topic(topic.as_key().as_bytes()).await.map_err(ReadError::new)
    }

    fn feed(&self, after: Cursor) -> Option<Feed> {
        Some(Follower::new(self.clone(), after).into_feed())
    }

    async fn notify(&self, notices: Vec<Notice>) -> Result<(), ReadError> {
        feed::notify(&self.db, &notices).await.map_err(ReadError::new)
    }
}

/// The idempotency keys of some records that are known, and where the records are that had them.
async fn duplicates(tx: &Transaction<'_>, records: &[Record]) -> Result<HashMap<(Vec<u8>, Vec<u8>), u64>, BoxError> {
    let with_key = records.iter().filter_map(|record| Some((topic(record), record.idempotency_key()?.as_bytes())));
    let (topics, keys): (Vec<_>, Vec<_>) = with_key.unzip();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = query(tx, sql::DUPLICATES, &[&topics, &keys]).await?;
    rows.iter().map(|row| Ok(((row.try_get("topic")?, row.try_get("key")?), position(row, "position")?))).collect()
}

/// What of a batch is stored, column by column, so that it takes as many statements however long it is.
#[derive(Default)]
struct Batch<'a> {
    rows: Vec<Option<(i64, &'a Record)>>,
    /// For each topic its end, if it is one of these, and how many rows it has.
    topics: BTreeMap<&'a [u8], (Option<i64>, i64)>,
    /// Where the newest of each key stands.
    newest: HashMap<(&'a [u8], &'a str), usize>,
    idempotency_keys: Vec<(i64, &'a [u8], &'a [u8])>,
}

impl<'a> Batch<'a> {
    fn push(&mut self, position: u64, record: &'a Record) {
        let position = signed(position);
        let of_topic = self.topics.entry(topic(record)).or_default();
        if record.kind() == Kind::Finish {
            of_topic.0 = Some(position);
        }
        of_topic.1 += 1;
        let replaced = record.replaces().and_then(|key| self.newest.insert((topic(record), key), self.rows.len()));
        if let Some(replaced) = replaced {
            self.rows[replaced] = None;
            of_topic.1 -= 1;
        }
        self.rows.push(Some((position, record)));
        let key = record.idempotency_key().map(|key| (position, topic(record), key.as_bytes()));
        self.idempotency_keys.extend(key);
    }

    async fn write(&self, tx: &Transaction<'_>, keys_for: Duration) -> Result<(), BoxError> {
        let (topics, of_topics): (Vec<_>, Vec<_>) = self.topics.iter().map(|(topic, of)| (*topic, *of)).unzip();
        let (ends, held): (Vec<_>, Vec<_>) = of_topics.into_iter().unzip();
        execute(tx, sql::COUNT, &[&topics, &ends, &held]).await?;
        if !self.newest.is_empty() {
            let keys = self.newest.keys().map(|(topic, key)| (*topic, key.as_bytes()));
            let (topics, keys): (Vec<_>, Vec<_>) = keys.unzip();
            execute(tx, sql::REPLACE, &[&topics, &keys]).await?;
        }
        let (positions, records): (Vec<_>, Vec<_>) = self.rows.iter().flatten().copied().unzip();
        let Columns { topics, kinds, bodies, times, keys, labels } = Columns::of(&records)?;
        execute(tx, sql::INSERT, &[&positions, &topics, &kinds, &bodies, &times, &keys, &labels]).await?;
        if !self.idempotency_keys.is_empty() {
            let column = |n: usize| self.idempotency_keys.iter().map(move |key| if n == 0 { key.1 } else { key.2 });
            let (topics, keys): (Vec<_>, Vec<_>) = (column(0).collect(), column(1).collect());
            let positions: Vec<_> = self.idempotency_keys.iter().map(|key| key.0).collect();
            execute(tx, sql::REMEMBER, &[&topics, &keys, &positions, &keys_for.as_secs_f64()]).await?;
        }
        Ok(())
    }
}

/// Some records, turned on their side.
pub(crate) struct Columns<'a> {
    pub(crate) topics: Vec<&'a [u8]>,
    pub(crate) kinds: Vec<&'static str>,
    pub(crate) bodies: Vec<&'a [u8]>,
    pub(crate) times: Vec<i64>,
    pub(crate) keys: Vec<Option<&'a [u8]>>,
    pub(crate) labels: Vec<String>,
}

impl<'a> Columns<'a> {
    fn of(records: &[&'a Record]) -> Result<Self, BoxError> {
        let labels = |record: &&Record| serde_json::to_string(&record.labels().collect::<Vec<_>>());
        Ok(Self {
            topics: records.iter().map(|record| topic(record)).collect(),
            kinds: records.iter().map(|record| record.kind().as_str()).collect(),
            bodies: records.iter().map(|record| &record.body()[..]).collect(),
            times: records.iter().map(|record| micros(record.time())).collect(),
            keys: records.iter().map(|record| record.key().map(str::as_bytes)).collect(),
            labels: records.iter().map(labels).collect::<Result<_, _>>()?,
        })
    }
}

/// As bytes: a text of `PostgreSQL`'s cannot have a NUL, and is compared as its collation says.
fn topic(record: &Record) -> &[u8] {
    record.topic().as_key().as_bytes()
}

pub(crate) fn micros(time: SystemTime) -> i64 {
    let micros = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    micros.try_into().unwrap_or(i64::MAX)
}
