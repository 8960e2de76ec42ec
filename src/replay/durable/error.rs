//! [`DurableError`]: why a log on disk could not be opened, copied or written, and what to do.
//!
//! Invariant: the engine's own error stays inside, as text.

use rusqlite::ErrorCode;
use std::{error::Error, fmt, io, path::PathBuf};

/// What to do once there is room where the log is open.
const GO_ON: &str = "go on without a restart";

/// Why a log on disk could not be used.
///
/// Its text says what was wrong and what to do.
#[derive(Debug)]
pub struct DurableError {
    kind: Kind,
    source: Option<Cause>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// An option has a value that cannot be right.
    Option(String),
    InUse(PathBuf),
    /// Written by a later version of this library, in this format.
    Newer(PathBuf, i64),
    /// There is something else at this place.
    Stranger(PathBuf),
    Damaged(PathBuf),
    /// What was acknowledged up to the first position is gone after the second.
    CutShort {
        path: PathBuf,
        acknowledged: i64,
        newest: i64,
    },
    NotWritable(PathBuf),
    /// And what to do once there is room.
    Full(PathBuf, &'static str),
    Exists(PathBuf),
    /// The disk fails.
    Io(PathBuf),
    /// What the system said of a path.
    System(PathBuf, String),
    NoRuntime,
    Closed,
}

impl DurableError {
    /// Another process, or another handle of this one, has the log open.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self.kind, Kind::InUse(_))
    }

    /// The log was written by a later version of this library.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        matches!(self.kind, Kind::Newer(..))
    }

    /// The log is damaged or not whole: it has to be restored from a copy, or given up.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        matches!(self.kind, Kind::Damaged(_) | Kind::CutShort { .. })
    }

    /// The folder or a file in it cannot be written.
    #[must_use]
    pub fn is_not_writable(&self) -> bool {
        matches!(self.kind, Kind::NotWritable(_))
    }

    /// There is no room on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.kind, Kind::Full(..))
    }

    /// An option has a value that cannot be right.
    #[must_use]
    pub fn is_option(&self) -> bool {
        matches!(self.kind, Kind::Option(_))
    }

    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, source: None }
    }

    /// The same for one more who waits.
    pub(super) fn again(&self) -> Self {
        Self { kind: self.kind.clone(), source: self.source.clone() }
    }

    pub(super) fn option(text: impl Into<String>) -> Self {
        Self::new(Kind::Option(text.into()))
    }

    /// What the engine said of the log at a path.
    pub(super) fn engine(path: impl Into<PathBuf>, error: &rusqlite::Error) -> Self {
        /// `SQLITE_IOERR_SHORT_READ`: the file ends before it should.
        const SHORT_READ: i32 = 522;
        /// `SQLITE_IOERR_SHMSIZE`: there is no room for the file beside the log that connections share.
        const SHARED_SIZE: i32 = 4874;
        let path = path.into();
        let kind = match error.sqlite_error_code() {
            Some(_) if extended(error) == Some(SHORT_READ) => Kind::Damaged(path),
            Some(_) if extended(error) == Some(SHARED_SIZE) => Kind::Full(path, GO_ON),
            Some(ErrorCode::DiskFull) => Kind::Full(path, GO_ON),
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Kind::NotWritable(path),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Kind::InUse(path),
            Some(ErrorCode::SystemIoFailure) => Kind::Io(path),
            // What is not an answer of the engine's is a value that is not what was written.
            _ => Kind::Damaged(path),
        };
        Self { kind, source: Some(Cause(error.to_string())) }
    }

    pub(super) fn damaged(path: impl Into<PathBuf>, found: impl fmt::Display) -> Self {
        Self { kind: Kind::Damaged(path.into()), source: Some(Cause(found.to_string())) }
    }

    pub(super) fn io(path: impl Into<PathBuf>, error: &io::Error) -> Self {
        let path = path.into();
        let kind = match error.kind() {
            io::ErrorKind::StorageFull => Kind::Full(path, GO_ON),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::NotWritable(path),
            _ if is_of_the_disk(error) => Kind::Io(path),
            // In its own words, which are then not those of a cause too.
            _ => return Self::new(Kind::System(path, error.to_string())),
        };
        Self { kind, source: Some(Cause(error.to_string())) }
    }

    /// The same, with what to do once there is room where the log is not open and so cannot go on.
    pub(super) fn when_there_is_room(mut self, todo: &'static str) -> Self {
        if let Kind::Full(_, then) = &mut self.kind {
            *then = todo;
        }
        self
    }
}

/// Whether it is the disk that fails, and not what was asked of it.
fn is_of_the_disk(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    const ENXIO: i32 = 6;
    const ENODEV: i32 = 19;
    /// Linux: what is on the disk makes no sense.
    const EUCLEAN: i32 = 117;
    cfg!(unix) && matches!(error.raw_os_error(), Some(EIO | ENXIO | ENODEV | EUCLEAN))
}

fn extended(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code)
}

impl fmt::Display for DurableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Option(text) => f.write_str(text),
            Kind::InUse(path) => write!(
                f,
                "the log in {} is open already, in this process or another: end that, wait until it has ended (`wait_for`), or use another folder",
                path.display()
            ),
            Kind::Newer(path, format) => write!(
                f,
                "the log in {} has format {format}, of a later version of this library: use that version, or another folder",
                path.display()
            ),
            Kind::Stranger(path) => {
                write!(f, "{} is not a log of this library: use another folder", path.display())
            }
            Kind::Damaged(path) => write!(
                f,
                "the log in {} is damaged: restore the folder from a copy, or move it away to begin a new log",
                path.display()
            ),
            Kind::CutShort { path, acknowledged, newest } => write!(
                f,
                "the log in {} has lost its end: it was acknowledged up to position {acknowledged}, and reaches {newest}. \
                 Restore the whole folder from a copy, or open it with `accept_loss`, which tells clients of a gap",
                path.display()
            ),
            Kind::NotWritable(path) => write!(
                f,
                "the log in {} cannot be written: give this process the right to write the folder and the files in it",
                path.display()
            ),
            Kind::Full(path, then) => {
                write!(f, "there is no room for the log in {}: make some, and {then}", path.display())
            }
            Kind::Exists(path) => write!(f, "{} has a log already: copy to another folder", path.display()),
            Kind::Io(path) => write!(
                f,
                "the disk with the log in {} does not do what it is asked: see to the disk, and open the log again",
                path.display()
            ),
            Kind::System(path, said) => write!(
                f,
                "the system does not do what is asked of the folder {:?}, and says: {said}. See to that, or use another folder",
                path.display()
            ),
            Kind::NoRuntime => f.write_str("a log on disk is opened within a tokio runtime"),
            Kind::Closed => f.write_str("the log was closed: open it again"),
        }
    }
}

impl Error for DurableError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|cause| cause as &(dyn Error + 'static))
    }
}

/// What the engine or the system said.
#[derive(Clone, Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Cause {}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_is_told_from_what_the_system_cannot_do() {
        let of = |number| DurableError::io("/log", &io::Error::from_raw_os_error(number));
        for (number, words) in [(5, "(os error 5)"), (19, "(os error 19)")] {
            let error = of(number);
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            assert!(error.to_string().contains("see to the disk") && cause.contains(words), "{error}: {cause}");
        }
        for (number, words) in [(2, "(os error 2)"), (22, "(os error 22)"), (24, "(os error 24)")] {
            let error = of(number);
            assert!(error.to_string().contains(words) && !error.to_string().contains("disk"), "{error}");
            assert!(error.source().is_none(), "it is said once");
        }
        assert!(of(28).is_full() && of(13).is_not_writable());
    }
}
