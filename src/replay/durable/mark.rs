//! [`Mark`]: how far a log was acknowledged, in a file beside it, so that a log that lost its end is recognised.
//!
//! The engine takes the end of its write-ahead log for what a crash left, and drops without a word what is cut off.
//!
//! Invariant: a mark is never ahead of what the log had on disk, or in the relaxed policy in the hands of the system. It
//! may be behind: it is written after each commit and synced only when the log is opened and closed.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
};

const NAME: &str = "mark";
const MAGIC: &[u8; 8] = b"tidings1";
/// Magic, epoch, newest, boot, flags, checksum.
const LEN: usize = 8 + 8 + 8 + 8 + 1 + 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) epoch: u64,
    /// The newest position that was acknowledged.
    pub(super) newest: i64,
    /// Since when the machine runs: a number of its own for each time that it was started; 0 if that is not known.
    pub(super) boot: u64,
    /// Whether the log was closed after the last append.
    pub(super) closed: bool,
    /// Whether events were acknowledged before they were synced.
    pub(super) relaxed: bool,
}

impl Mark {
    /// The mark in a folder, if there is a whole one.
    pub(super) fn read(folder: &Path) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        match File::open(folder.join(NAME)) {
            Ok(file) => file.take(LEN as u64 + 1).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Self::from_bytes(&bytes))
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (bytes, sum) = bytes.split_last_chunk::<4>()?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (newest, rest) = rest.split_first_chunk::<8>()?;
        let (boot, rest) = rest.split_first_chunk::<8>()?;
        let [flags] = rest else { return None };
        let whole = magic == MAGIC && crc32fast::hash(bytes).to_be_bytes() == *sum;
        whole.then(|| Self {
            epoch: u64::from_be_bytes(*epoch),
            newest: i64::from_be_bytes(*newest),
            boot: u64::from_be_bytes(*boot),
            closed: flags & 1 != 0,
            relaxed: flags & 2 != 0,
        })
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.epoch.to_be_bytes());
        bytes.extend_from_slice(&self.newest.to_be_bytes());
        bytes.extend_from_slice(&self.boot.to_be_bytes());
        bytes.push(u8::from(self.closed) | u8::from(self.relaxed) << 1);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        bytes
    }
}

/// Where the mark of an open log is written.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    mark: Mark,
}

impl MarkFile {
    /// Writes and syncs a first mark, that says that the log is open.
    pub(super) fn create(folder: &Path, mark: Mark) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(NAME))?;
        let mut this = Self { file, mark };
        this.write()?;
        this.file.set_len(LEN as u64)?;
        this.file.sync_all()?;
        Ok(this)
    }

    /// Takes in that the log was acknowledged up to a position.
    pub(super) fn advance(&mut self, newest: i64) {
        self.mark.newest = newest;
        // One that is behind recognises less, and nothing depends on it while all is well.
        let _ = self.write();
    }

    /// Says that all is on disk and nothing more comes.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.mark.closed = true;
        self.write()?;
        self.file.sync_all()
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(&self.mark.to_bytes())
    }
}

/// Since when the machine runs, as a number of its own; 0 where that is not known.
pub(super) fn boot() -> u64 {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_whole_or_not_at_all() {
        for (closed, relaxed) in [(false, false), (true, false), (false, true), (true, true)] {
            let mark = Mark { epoch: u64::MAX - 7, newest: 1 << 40, boot: 77, closed, relaxed };
            let bytes = mark.to_bytes();
            assert_eq!((bytes.len(), Mark::from_bytes(&bytes)), (LEN, Some(mark)));
            for end in 0..bytes.len() {
                assert_eq!(Mark::from_bytes(&bytes[..end]), None);
            }
            for bit in 0..bytes.len() * 8 {
                let mut altered = bytes.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Mark::from_bytes(&altered), None, "bit {bit}");
            }
        }
    }
}
