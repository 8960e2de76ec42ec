//! [`Database`]: connections, the turn to write, and how a commit ended whose answer was lost.
//!
//! Invariants: whoever writes has the one row of `log` locked until its transaction ends, so positions are given in the
//! order in which they become readable. While it is not known how one of our commits ended, nothing is read or written.

use super::{BoxError, sql};
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts, Transaction};
use std::{
    error::Error,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tidings::replay::{Cursor, Run};
use tokio::time::timeout;
use tokio_postgres::{Config, IsolationLevel, NoTls, Row, types::ToSql};

/// How long the server may take before a connection is given up.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Database {
    pub(crate) config: Config,
    pool: Pool,
    /// Commits of which it is not known how they ended.
    doubts: Mutex<Vec<Doubt>>,
}

/// The log's row, locked until the transaction ends.
pub(crate) struct Turn {
    /// In the present run.
    pub(crate) newest: Cursor,
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

enum End {
    Committed,
    Aborted,
    /// The server is not the one that was asked to: what there is of it can be read.
    Elsewhere,
}

impl Database {
    pub(crate) fn new(mut config: Config, schema: &str) -> Result<Self, BoxError> {
        config
            .options(format!("-c search_path={schema}"))
            .connect_timeout(PATIENCE)
            .tcp_user_timeout(PATIENCE)
            .keepalives_idle(PATIENCE);
        // A connection that a server's restart has broken is found before it is used.
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let pool = Pool::builder(Manager::from_config(config.clone(), NoTls, recycling))
            .max_size(8)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: Some(PATIENCE), create: Some(PATIENCE), recycle: Some(PATIENCE) })
            .build()?;
        Ok(Self { config, pool, doubts: Mutex::default() })
    }

    /// A connection, once nothing is in doubt.
    pub(crate) async fn client(&self) -> Result<Object, BoxError> {
        loop {
            let Some(doubt) = self.doubts().first().cloned() else { return Ok(self.pool.get().await?) };
            self.resolve(&doubt).await?;
        }
    }

    fn doubts(&self) -> MutexGuard<'_, Vec<Doubt>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits, and does not take a broken connection for an answer.
    pub(crate) async fn commit(&self, tx: Transaction<'_>, turn: Turn) -> Result<(), CommitError> {
        let lost = match timeout(PATIENCE, tx.commit()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => BoxError::from(error),
            Err(late) => late.into(),
        };
        self.doubts().push(turn.doubt.clone());
        match self.resolve(&turn.doubt).await {
            Ok(End::Committed) => Ok(()),
            Ok(End::Aborted) => Err(CommitError { unknown: false, source: lost }),
            Ok(End::Elsewhere) | Err(_) => Err(CommitError { unknown: true, source: lost }),
        }
    }

    /// Waits until a transaction has ended, however it did: after that, nothing of it becomes readable.
    async fn resolve(&self, doubt: &Doubt) -> Result<End, BoxError> {
        let end = timeout(PATIENCE, self.fence(doubt)).await??;
        self.doubts().retain(|other| other != doubt);
        Ok(end)
    }

    async fn fence(&self, doubt: &Doubt) -> Result<End, BoxError> {
        let mut client = self.pool.get().await?;
        client.query(sql::TERMINATE, &[&doubt.pid, &doubt.xid, &doubt.server]).await?;
        let tx = begin(&mut client).await?;
        // It had the row locked before it was told to commit, so this waits for its end.
        if lock(&tx).await?.doubt.server != doubt.server {
            return Ok(End::Elsewhere);
        }
        let status: Option<String> = tx.query_one(sql::STATUS, &[&doubt.xid]).await?.try_get(0)?;
        match status.as_deref() {
            Some("committed") => Ok(End::Committed),
            Some("aborted") => Ok(End::Aborted),
            other => Err(format!("a transaction that has ended is said to be {other:?}").into()),
        }
    }
}

/// A transaction that writes. Each statement is to see what was committed before it: at a higher level, that would be what
/// was committed before the lock was asked for.
pub(crate) async fn begin(client: &mut Object) -> Result<Transaction<'_>, BoxError> {
    Ok(client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?)
}

/// The turn to write, in the present run: a new one, if the server is not the one where the last one began.
pub(crate) async fn take_turn(tx: &Transaction<'_>) -> Result<Turn, BoxError> {
    let mut turn = lock(tx).await?;
    if !turn.same_server {
        let number: i64 = tx.query_one(sql::BEGIN_RUN, &[]).await?.try_get(0)?;
        let run = Run { number: number.try_into()?, ..turn.newest.run() };
        turn.newest = run.at(turn.newest.position());
    }
    Ok(turn)
}

async fn lock(tx: &Transaction<'_>) -> Result<Turn, BoxError> {
    let row = tx.query_one(&tx.prepare_cached(sql::LOCK).await?, &[]).await?;
    let doubt = Doubt { pid: row.try_get("pid")?, xid: row.try_get("xid")?, server: row.try_get("server")? };
    let newest = present_run(&row)?.at(position(&row, "newest")?);
    Ok(Turn { newest, same_server: row.try_get("same_server")?, doubt })
}

pub(crate) fn present_run(row: &Row) -> Result<Run, BoxError> {
    let (epoch, number): (i64, i64) = (row.try_get("epoch")?, row.try_get("run")?);
    Ok(Run { epoch: u64::from_be_bytes(epoch.to_be_bytes()), number: number.try_into()? })
}

type Parameter<'a> = &'a (dyn ToSql + Sync);

pub(crate) async fn query(tx: &Transaction<'_>, sql: &str, with: &[Parameter<'_>]) -> Result<Vec<Row>, BoxError> {
    Ok(tx.query(&tx.prepare_cached(sql).await?, with).await?)
}

pub(crate) async fn execute(tx: &Transaction<'_>, sql: &str, with: &[Parameter<'_>]) -> Result<u64, BoxError> {
    Ok(tx.execute(&tx.prepare_cached(sql).await?, with).await?)
}

/// A number that is never negative.
pub(crate) fn position(row: &Row, column: &str) -> Result<u64, BoxError> {
    Ok(row.try_get::<_, i64>(column)?.try_into()?)
}

/// A position that is past all of the server's numbers is past the newest.
pub(crate) fn signed(position: u64) -> i64 {
    position.try_into().unwrap_or(i64::MAX)
}

/// A bound that is too large for any page is none.
pub(crate) fn count(bound: usize) -> i64 {
    i64::try_from(bound).unwrap_or(i64::MAX).min(1 << 40)
}

/// Why a transaction was not committed, or is not known to be.
#[derive(Debug)]
pub(crate) struct CommitError {
    pub(crate) unknown: bool,
    source: BoxError,
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.unknown { "the server did not say whether it committed" } else { "it was not committed" })
    }
}

impl Error for CommitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
