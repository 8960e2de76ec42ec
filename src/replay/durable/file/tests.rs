//! What a power cut leaves of a log that was acknowledged before it was synced.

use super::{super::Durable, *};
use crate::{
    Event, Topic,
    replay::{Cursor, Read, ReadFrom, Record, ReplayStore as _},
};

const T: Topic = Topic::from_static("t");

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn folder() -> Folder {
    Folder(std::env::temp_dir().join(format!("tidings-power-{}", Run::new_log().epoch)))
}

async fn append(log: &Durable, texts: std::ops::Range<u64>) -> Vec<Cursor> {
    let mut ids = Vec::new();
    for text in texts {
        let record = Record::new(T, Event::new().data(text.to_string()));
        ids.extend(log.append([record].into()).await.unwrap().remove(0));
    }
    ids
}

/// A log of twenty events of which the disk has some: as much of the write-ahead log as is said, and the mark that it had
/// at its beginning or its end.
async fn cut(sync_every: Option<Duration>, wal: f64, early_mark: bool, rebooted: bool) -> (Folder, Vec<Cursor>) {
    let (whole, left) = (folder(), folder());
    let builder = Durable::builder();
    let builder = if let Some(time) = sync_every { builder.sync_every(time) } else { builder };
    let log = builder.open(&whole.0).await.unwrap();
    let first = Mark::read(&whole.0).unwrap().unwrap();
    let ids = append(&log, 0..20).await;
    fs::create_dir(&left.0).unwrap();
    fs::copy(log_path(&whole.0), log_path(&left.0)).unwrap();
    let bytes = fs::read(whole.0.join("log.db-wal")).unwrap();
    let frames = bytes.len() / (4096 + 24);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
    let kept = (frames as f64 * wal) as usize;
    fs::write(left.0.join("log.db-wal"), &bytes[..32 + kept * (4096 + 24)]).unwrap();
    let mut mark = if early_mark { first } else { Mark::read(&whole.0).unwrap().unwrap() };
    if rebooted {
        mark.boot ^= 1;
    }
    MarkFile::create(&left.0, mark).unwrap();
    (left, ids)
}

const LATER: Option<Duration> = Some(Duration::from_secs(3600));

#[tokio::test]
async fn a_power_cut_within_the_window_is_told_to_all_who_come_back() {
    // Also where the disk has everything, or a mark that does not know of what is lost: nobody can tell.
    for (wal, early_mark) in [(0.5, false), (0.5, true), (0.9, true), (1.0, false)] {
        let (folder, ids) = cut(LATER, wal, early_mark, true).await;
        let log = Durable::open(&folder.0).await.unwrap();
        let head = log.head().await.unwrap();
        assert_eq!(head.run().epoch, ids[0].run().epoch);
        for id in [ids[0].before()].iter().chain(&ids) {
            let page = log.read(Read::new(T, ReadFrom::After(*id))).await.unwrap();
            assert!(page.foreign || page.floor > id.position(), "{id} in {head}");
        }
        // And what comes then is missed by nobody, though its places were given before.
        let next = append(&log, 20..25).await;
        let page = log.read(Read::new(T, ReadFrom::After(head))).await.unwrap();
        let places: Vec<_> = page.entries.iter().map(|entry| entry.cursor()).collect();
        assert_eq!((places, page.foreign), (next, false));
        assert!(page.floor <= head.position());
        // Once.
        drop(log);
        let log = Durable::open(&folder.0).await.unwrap();
        let page = log.read(Read::new(T, ReadFrom::After(head))).await.unwrap();
        assert_eq!((page.entries.len(), page.foreign, page.floor <= head.position()), (5, false, true));
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_within_the_window_and_nobody_is_told_of_a_gap() {
    let (folder, ids) = cut(LATER, 1.0, false, false).await;
    let log = Durable::open(&folder.0).await.unwrap();
    let page = log.read(Read::new(T, ReadFrom::After(ids[4]))).await.unwrap();
    assert_eq!((page.entries.len(), page.floor, page.foreign), (15, 0, false));
}

#[tokio::test]
async fn what_no_power_cut_explains_is_an_error() {
    // A process that was killed, and a disk that had said that it has it.
    for (sync_every, rebooted) in [(LATER, false), (None, true), (None, false)] {
        let (folder, _) = cut(sync_every, 0.5, false, rebooted).await;
        let error = Durable::open(&folder.0).await.unwrap_err();
        assert!(error.is_damaged(), "{error}");
    }
}
