//! The files of a log: how they are locked, made, opened and checked.
//!
//! A folder has `log.db` with the engine's own files beside it, `mark` and `lock`. The engine is `SQLite` with a
//! write-ahead log: one connection writes, others read, each from a view of its own.
//!
//! Invariants: `log.db` is opened by nobody but the engine while it is in use, because closing it any other way drops the
//! engine's locks. A log that is not whole is an error, not a shorter log. No number is given to two runs.

use super::{
    builder::{DurableCheck, Options},
    error::{DurableError, Kind},
    mark::{self, Mark, MarkFile},
};
use crate::replay::Run;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior::Immediate, config::DbConfig};
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// In the file's head, for tools that ask what it is.
const APPLICATION: i64 = 0x7469_6469;
/// A change of what is below changes it, and brings a step that upgrades an older file.
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE log (
        id            INTEGER PRIMARY KEY CHECK (id = 1),
        epoch         INTEGER NOT NULL,
        newest        INTEGER NOT NULL,  -- never falls, whatever is removed
        base          INTEGER NOT NULL,  -- the one floor of all topics that have no row
        clock         INTEGER NOT NULL,  -- the latest time that was seen, in milliseconds: it never goes back
        bytes         INTEGER NOT NULL,  -- of all records
        lasting_bytes INTEGER NOT NULL,  -- of those that are state
        fence         INTEGER NOT NULL,  -- written to see whether anything can be written
        copied        INTEGER NOT NULL   -- whether this is a copy that was not opened since
    ) STRICT;
    CREATE TABLE runs (
        seq           INTEGER PRIMARY KEY,
        number        INTEGER NOT NULL UNIQUE,
        began         INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE topics (
        id            INTEGER PRIMARY KEY,
        name          TEXT NOT NULL UNIQUE,
        floor         INTEGER NOT NULL,
        events        INTEGER NOT NULL,
        bytes         INTEGER NOT NULL,
        ended         INTEGER,           -- where it was finished
        ended_at      INTEGER
    ) STRICT;
    CREATE INDEX ends ON topics (ended_at) WHERE ended IS NOT NULL AND events = 0;
    CREATE TABLE records (
        position      INTEGER PRIMARY KEY,
        topic         INTEGER NOT NULL,
        lasting       INTEGER NOT NULL,  -- 1 for state, which does not go by its age
        at            INTEGER NOT NULL,
        cost          INTEGER NOT NULL,
        key           TEXT,              -- only of what takes the place of others
        data          BLOB NOT NULL,
        sum           INTEGER NOT NULL   -- the checksum of position and data
    ) STRICT;
    CREATE INDEX by_topic ON records (topic);
    CREATE INDEX by_age ON records (lasting, at);
    CREATE UNIQUE INDEX by_key ON records (topic, key) WHERE key IS NOT NULL;
    CREATE TABLE keys (
        seq           INTEGER PRIMARY KEY,
        topic         TEXT NOT NULL,
        key           TEXT NOT NULL,
        position      INTEGER NOT NULL,
        at            INTEGER NOT NULL,
        UNIQUE (topic, key)
    ) STRICT;
";

/// How many runs are remembered: a client of one before has been away over as many restarts, and is told of a gap.
const RUNS: i64 = 10_000;

/// A log whose files are open, and nobody else's.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) folder: PathBuf,
    pub(super) db: Connection,
    pub(super) mark: MarkFile,
    pub(super) run: Run,
    /// Dropped last.
    _lock: Connection,
}

impl Files {
    /// Opens or makes the log in a folder, and begins a run.
    pub(super) fn open(folder: &Path, options: &Options) -> Result<Self, DurableError> {
        make_folder(folder).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => DurableError::new(Kind::Stranger(folder.into())),
            _ => DurableError::io(folder, &error),
        })?;
        let engine = |error: rusqlite::Error| DurableError::engine(folder, &error);
        let lock = lock(folder)?;
        let mark = Mark::read(folder).map_err(|error| DurableError::io(folder, &error))?;
        let path = log_path(folder);
        // Where there was a log, none is made in its place.
        let was = mark.filter(|_| !options.accept_loss).map(|mark| mark.newest);
        if let (Some(acknowledged), true) = (was, fs::metadata(&path).map_or(true, |file| file.len() == 0)) {
            return Err(DurableError::new(Kind::CutShort { path: folder.into(), acknowledged, newest: 0 }));
        }
        let mut db = connect(&path, false).map_err(engine)?;
        let is_new = make(&mut db, was, folder)?;
        if mark.is_some_and(|mark| mark.closed) {
            // The engine does not notice that a part of the last page is missing. After a crash that is as it should be.
            let whole = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
            let whole: i64 = db.query_row(whole, [], |row| row.get(0)).map_err(engine)?;
            let found = fs::metadata(&path).map_err(|error| DurableError::io(folder, &error))?.len();
            if u64::try_from(whole).is_ok_and(|whole| found < whole) {
                return Err(DurableError::damaged(folder, format_args!("log.db has {found} of its {whole} bytes")));
            }
        }
        if !is_new && needs_check(options.check, mark) {
            check(&db, folder)?;
        }
        let run = begin(&mut db, mark, options.accept_loss, folder)?;
        let newest = db.query_row("SELECT newest FROM log", [], |row| row.get(0)).map_err(engine)?;
        // What was there before the file was: the names of the files.
        sync_folder(folder).map_err(|error| DurableError::io(folder, &error))?;
        let relaxed = options.sync_every.is_some();
        let mark = Mark { epoch: run.epoch, newest, boot: mark::boot(), closed: false, relaxed };
        let mark = MarkFile::create(folder, mark).map_err(|error| DurableError::io(folder, &error))?;
        Ok(Self { folder: folder.into(), db, mark, run, _lock: lock })
    }

    /// Brings to the disk what was committed. What is no longer in the write-ahead log was synced when it left it.
    pub(super) fn sync(&self) -> io::Result<()> {
        // This file has none of the engine's locks.
        fs::OpenOptions::new().write(true).open(self.folder.join("log.db-wal"))?.sync_data()
    }

    /// Brings everything into `log.db`, and says that it is whole.
    pub(super) fn close(mut self) {
        // What fails here is found when the log is opened again.
        let moved: rusqlite::Result<i64> = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
        if moved == Ok(0) && self.db.close().is_ok() {
            let _ = self.mark.close();
        }
    }
}

/// For the system, no path is where the process happens to run.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is empty"));
    }
    fs::create_dir_all(folder)
}

fn needs_check(check: DurableCheck, mark: Option<Mark>) -> bool {
    match check {
        DurableCheck::Always => true,
        DurableCheck::Never => false,
        DurableCheck::AfterCrash => mark.is_none_or(|mark| !mark.closed),
    }
}

/// Whether the system may not have brought to the disk what was acknowledged: what a process wrote outlives it, what the
/// system had not yet synced does not outlive the system.
fn may_have_lost(mark: Mark) -> bool {
    let boot = mark::boot();
    mark.relaxed && !mark.closed && (boot == 0 || boot != mark.boot)
}

pub(super) fn log_path(folder: &Path) -> PathBuf {
    folder.join("log.db")
}

/// Takes a lock that ends with the process, however that ends.
fn lock(folder: &Path) -> Result<Connection, DurableError> {
    let take = || {
        let lock = Connection::open(folder.join("lock"))?;
        lock.busy_timeout(Duration::ZERO)?;
        lock.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")?;
        Ok(lock)
    };
    take().map_err(|error| DurableError::engine(folder, &error))
}

/// A connection to a log: to write it, or one that cannot.
pub(super) fn connect(path: &Path, reads_only: bool) -> rusqlite::Result<Connection> {
    let access = if reads_only {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    } else {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    };
    let db = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Tools that look into the file may hold a lock for a moment.
    db.busy_timeout(Duration::from_secs(2))?;
    db.set_prepared_statement_cache_capacity(64);
    if reads_only {
        // Moving the write-ahead log is for the one that writes.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    } else {
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864")?;
    }
    Ok(db)
}

/// Makes what a log has in a new file; or sees whether there is one, of this format. Says which.
fn make(db: &mut Connection, was: Option<i64>, folder: &Path) -> Result<bool, DurableError> {
    let engine = |error: rusqlite::Error| DurableError::engine(folder, &error);
    let tx = db.transaction_with_behavior(Immediate).map_err(engine)?;
    let number = |sql| tx.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(engine);
    let (application, format) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    if number("SELECT count(*) FROM sqlite_schema")? > 0 {
        return match (application, format) {
            (APPLICATION, FORMAT) => Ok(false),
            (APPLICATION, later) if later > FORMAT => Err(DurableError::new(Kind::Newer(folder.into(), later))),
            _ => Err(DurableError::new(Kind::Stranger(log_path(folder)))),
        };
    }
    if let Some(acknowledged) = was {
        return Err(DurableError::new(Kind::CutShort { path: folder.into(), acknowledged, newest: 0 }));
    }
    tx.execute_batch(SCHEMA).map_err(engine)?;
    tx.execute_batch(&format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}"))
        .map_err(engine)?;
    let epoch = i64::from_ne_bytes(Run::new_log().epoch.to_ne_bytes());
    tx.execute("INSERT INTO log VALUES (1, ?1, 0, 0, 0, 0, 0, 0, 0)", [epoch]).map_err(engine)?;
    tx.commit().map_err(engine)?;
    Ok(true)
}

/// Begins a run, with a gap for everyone before it if something may be lost.
fn begin(db: &mut Connection, mark: Option<Mark>, accept_loss: bool, folder: &Path) -> Result<Run, DurableError> {
    let begin = |db: &mut Connection| -> rusqlite::Result<Result<Run, Kind>> {
        let tx = db.transaction_with_behavior(Immediate)?;
        let (epoch, newest, copied): (i64, i64, bool) =
            tx.query_row("SELECT epoch, newest, copied FROM log", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        let epoch = u64::from_ne_bytes(epoch.to_ne_bytes());
        // That of another log says nothing of this one.
        let mark = mark.filter(|mark| mark.epoch == epoch);
        let may_have_lost = mark.is_some_and(may_have_lost);
        let acknowledged = mark.map_or(0, |mark| mark.newest);
        let lost = acknowledged > newest;
        if lost && !may_have_lost && !accept_loss {
            return Ok(Err(Kind::CutShort { path: folder.into(), acknowledged, newest }));
        }
        // A number that is drawn, and not taken from the clock, is another one also if the clock stands, or goes back; also if
        // it was another copy of the log that was opened in between, whose runs are not known here.
        let mut number = draw();
        let known = "SELECT 1 FROM runs WHERE number = ?1";
        while tx.query_row(known, [number], |_| Ok(())).optional()?.is_some() {
            number = draw();
        }
        tx.execute("INSERT INTO runs (number, began) VALUES (?1, ?2)", (number, newest))?;
        tx.execute("DELETE FROM runs WHERE seq <= (SELECT max(seq) FROM runs) - ?1", [RUNS])?;
        if lost || copied || may_have_lost {
            // A place that nobody can have seen is below every floor: who comes from before it has missed something.
            tx.execute("UPDATE log SET newest = newest + 1, base = newest + 1, copied = 0", [])?;
            tx.execute("UPDATE topics SET floor = ?1 + 1", [newest])?;
        }
        tx.commit()?;
        Ok(Ok(Run { epoch, number }))
    };
    begin(db).map_err(|error| DurableError::engine(folder, &error))?.map_err(DurableError::new)
}

fn draw() -> u32 {
    let [a, b, c, d, ..] = Run::new_log().epoch.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Reads all of a log, and compares it with what it says of itself.
fn check(db: &Connection, folder: &Path) -> Result<(), DurableError> {
    let engine = |error: rusqlite::Error| DurableError::engine(folder, &error);
    let verdict: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(engine)?;
    if verdict != "ok" {
        return Err(DurableError::damaged(folder, verdict));
    }
    let (topics, newest) = check_records(db, folder)?;
    let mut select = db.prepare("SELECT id, events, bytes, floor FROM topics").map_err(engine)?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?), row.get(3)?)));
    let rows = rows.and_then(Iterator::collect::<rusqlite::Result<Vec<(i64, Held, i64)>>>).map_err(engine)?;
    let head: (i64, i64, i64, i64) = db
        .query_row("SELECT newest, base, bytes, lasting_bytes FROM log", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .map_err(engine)?;
    let floors = rows.iter().map(|(.., floor)| *floor).chain([head.1]);
    let is_true = floors.chain([newest]).all(|position| (0..=head.0).contains(&position))
        && rows.iter().all(|(id, held, _)| topics.get(id).copied().unwrap_or_default() == *held)
        && topics.len() == rows.iter().filter(|(_, held, _)| held.0 > 0).count()
        && head.2 == rows.iter().map(|(_, held, _)| held.1).sum::<i64>();
    if is_true { Ok(()) } else { Err(DurableError::damaged(folder, "what it says of its events is not what it has")) }
}

/// How many events a topic has, and their bytes.
type Held = (i64, i64);

/// Compares each record with its checksum. What each topic has, and the newest position.
fn check_records(db: &Connection, folder: &Path) -> Result<(HashMap<i64, Held>, i64), DurableError> {
    let engine = |error: rusqlite::Error| DurableError::engine(folder, &error);
    let mut select = db.prepare("SELECT position, topic, cost, data, sum FROM records").map_err(engine)?;
    let mut rows = select.query([]).map_err(engine)?;
    let (mut topics, mut newest) = (HashMap::<i64, Held>::new(), 0);
    while let Some(row) = rows.next().map_err(engine)? {
        let whole = || -> rusqlite::Result<(i64, i64, i64, bool)> {
            let position = row.get(0)?;
            let data = row.get_ref(3)?.as_blob().unwrap_or_default();
            Ok((position, row.get(1)?, row.get(2)?, sum(position, data) == row.get::<_, i64>(4)?))
        };
        let (position, topic, cost, is_whole) = whole().map_err(engine)?;
        if !is_whole {
            return Err(DurableError::damaged(folder, format_args!("the checksum of position {position} is wrong")));
        }
        let held = topics.entry(topic).or_default();
        *held = (held.0 + 1, held.1 + cost);
        newest = newest.max(position);
    }
    Ok((topics, newest))
}

/// The checksum of a record, which is good only at its own position.
pub(super) fn sum(position: i64, data: &[u8]) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&position.to_be_bytes());
    hasher.update(data);
    hasher.finalize().into()
}

/// Makes a copy of an open log in another folder: one moment of it, whole.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), DurableError> {
    let system = |error: io::Error| DurableError::io(to, &error);
    make_folder(to).map_err(system)?;
    let target = log_path(to);
    if target.try_exists().map_err(system)? {
        return Err(DurableError::new(Kind::Exists(to.into())));
    }
    // Written under another name, so that what has the right one is whole.
    let part = to.join("log.db.part");
    let Some(name) = part.to_str() else {
        return Err(DurableError::option(format!(
            "{}: the name of the folder for a copy has to be UTF-8",
            to.display()
        )));
    };
    let remove = || match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system(error)),
        _ => Ok(()),
    };
    let write = || {
        let source = connect(&log_path(from), true).map_err(|error| DurableError::engine(from, &error))?;
        let engine = |error: rusqlite::Error| DurableError::engine(to, &error);
        source.execute("VACUUM INTO ?1", [name]).map_err(engine)?;
        let copy = Connection::open(&part).map_err(engine)?;
        copy.execute("UPDATE log SET copied = 1", []).map_err(engine)?;
        copy.close().map_err(|(_, error)| engine(error))?;
        File::open(&part).and_then(|file| file.sync_all()).map_err(system)
    };
    // Of one that was interrupted.
    remove()?;
    if let Err(error) = write() {
        remove()?;
        return Err(error);
    }
    fs::rename(&part, &target).and_then(|()| sync_folder(to)).map_err(system)
}

/// Brings the names of the files to the disk.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests;
