//! A log whose files were cut off or altered: everything that was acknowledged is there, or an error says what to do. It
//! never panics, and nothing is left out without a word.

#[path = "durable/folder.rs"]
mod folder;

use folder::Folder;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tidings::{
    Event, Topic, Topics,
    replay::{
        Cursor, Durable, DurableBuilder, DurableCheck, DurableError, Read, ReadError, ReadFrom, Record,
        ReplayStore as _,
    },
};

const TOPICS: [Topic; 3] = [Topic::from_static("a"), Topic::from_static("b"), Topic::from_static("c")];
const PAGE: usize = 4096;
const FRAME: usize = PAGE + 24;

fn topics() -> Topics {
    Topics::new(TOPICS).unwrap()
}

type Events = Vec<(u64, String)>;

/// Events of every size: of less than a page of the file, and of several.
async fn fill(log: &Durable, count: usize) -> Events {
    let mut events = Events::new();
    for n in 0..count {
        let length = if n % 7 == 0 { 13_000 } else { 40 * (n % 5) };
        let text = format!("{n} {}", "x".repeat(length));
        let record = Record::new(&TOPICS[n % 3], Event::new().data(&text));
        let cursor: Cursor = log.append([record].into()).await.unwrap().remove(0).unwrap();
        events.push((cursor.position(), text));
    }
    events
}

async fn events(log: &Durable) -> Result<Events, ReadError> {
    let mut all = Events::new();
    let mut from = ReadFrom::Earliest;
    loop {
        let page = log.read(Read::new(topics(), from)).await?;
        if page.entries.is_empty() {
            return Ok(all);
        }
        from = ReadFrom::After(page.through);
        all.extend(
            page.entries.iter().map(|entry| (entry.cursor().position(), entry.record().data().unwrap().into_owned())),
        );
    }
}

/// A log that was closed, or one as it is on the disk when its process is killed.
async fn left(folder: &Folder, closed: bool) -> (PathBuf, Events) {
    let (path, left) = (folder.another(), folder.another());
    // So that there is something in both files.
    let mut events = fill(&Durable::open(&path).await.unwrap(), 30).await;
    let log = Durable::open(&path).await.unwrap();
    events.extend(fill(&log, 30).await);
    fs::create_dir(&left).unwrap();
    if closed {
        drop(log);
    }
    for file in ["log.db", "log.db-wal", "mark"] {
        if path.join(file).exists() {
            fs::copy(path.join(file), left.join(file)).unwrap();
        }
    }
    assert_eq!(left.join("log.db-wal").exists(), !closed, "closing brings everything into one file");
    (left, events)
}

/// What becomes of a log with one file altered: how it is opened, and what it has then.
async fn reopened(
    folder: &Folder,
    left: &Path,
    file: &str,
    bytes: &[u8],
    builder: DurableBuilder,
) -> Result<Result<Events, ReadError>, DurableError> {
    let path = folder.another();
    folder::copy(left, &path);
    fs::write(path.join(file), bytes).unwrap();
    let opened = match builder.open(&path).await {
        Ok(log) => Ok(events(&log).await),
        Err(error) => Err(error),
    };
    fs::remove_dir_all(&path).unwrap();
    opened
}

/// Where it is cut: around pages and frames, everywhere in the first ones, and at random.
fn places(length: usize) -> BTreeSet<usize> {
    let around = |unit: usize, from: usize| {
        (0..=length / unit)
            .flat_map(move |n| [n * unit + from, (n * unit + from).saturating_sub(1), n * unit + from + 1])
    };
    let start = (0..length.min(200)).chain([511, 512, 1023, 1024]);
    let random = (0..40).map(|_| fastrand::usize(..length));
    let all = around(PAGE, 0).chain(around(FRAME, 32)).chain(start).chain(random);
    let mut all: Vec<usize> = all.filter(|place| *place < length).collect();
    fastrand::shuffle(&mut all);
    all.truncate(300);
    all.into_iter().collect()
}

fn seed() {
    let seed = std::env::var("TIDINGS_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    fastrand::seed(seed);
    println!("TIDINGS_SEED={seed}");
}

async fn cut_everywhere(closed: bool) {
    seed();
    let folder = Folder::new();
    let (left, all) = left(&folder, closed).await;
    let (mut whole, mut told) = (0, 0);
    for file in ["log.db", "log.db-wal", "mark"] {
        let Ok(bytes) = fs::read(left.join(file)) else { continue };
        for place in places(bytes.len()) {
            match reopened(&folder, &left, file, &bytes[..place], Durable::builder()).await {
                Ok(events) => {
                    assert_eq!(events.unwrap(), all, "{file} cut to {place} of {} bytes", bytes.len());
                    whole += 1;
                }
                Err(error) => {
                    assert!(error.is_damaged(), "{file} cut to {place}: {error:?}");
                    assert!(error.to_string().to_lowercase().contains("restore the"), "{error}");
                    assert_ne!(file, "mark", "nothing depends on it");
                    told += 1;
                }
            }
        }
    }
    println!("closed: {closed}; cut and whole: {whole}, told: {told}");
    assert!(whole > 0 && told > 0);
}

#[tokio::test]
async fn a_closed_log_that_was_cut_off_is_whole_or_an_error() {
    cut_everywhere(true).await;
}

#[tokio::test]
async fn a_killed_log_that_was_cut_off_is_whole_or_an_error() {
    cut_everywhere(false).await;
}

#[tokio::test]
async fn a_log_that_lost_a_file_is_an_error_and_is_not_begun_anew() {
    let folder = Folder::new();
    for closed in [true, false] {
        let (left, _) = left(&folder, closed).await;
        for file in if closed { &["log.db"][..] } else { &["log.db", "log.db-wal"] } {
            let path = folder.another();
            folder::copy(&left, &path);
            fs::remove_file(path.join(file)).unwrap();
            for _ in 0..2 {
                let error = Durable::open(&path).await.unwrap_err();
                assert!(error.is_damaged(), "without {file}: {error:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_loss_that_is_accepted_is_told_to_all_who_come_back() {
    let folder = Folder::new();
    let path = folder.another();
    let log = Durable::open(&path).await.unwrap();
    let all = fill(&log, 30).await;
    let ids = log.head().await.unwrap().run();
    let cut = folder.another();
    fs::create_dir(&cut).unwrap();
    for file in ["log.db", "mark"] {
        fs::copy(path.join(file), cut.join(file)).unwrap();
    }
    let wal = fs::read(path.join("log.db-wal")).unwrap();
    fs::write(cut.join("log.db-wal"), &wal[..wal.len() / 2]).unwrap();
    let error = Durable::open(&cut).await.unwrap_err();
    assert!(error.to_string().contains("lost its end") && error.to_string().contains("`accept_loss`"), "{error}");
    let log = Durable::builder().accept_loss().open(&cut).await.unwrap();
    let left = events(&log).await.unwrap();
    assert!(left.len() < all.len() && all.starts_with(&left));
    let newest = left.last().unwrap().0;
    for position in 0..=all.last().unwrap().0 {
        let page = log.read(Read::new(topics(), ReadFrom::After(ids.at(position)))).await.unwrap();
        assert!(page.foreign || page.floor > position, "after {position} of {newest}");
    }
    // Nobody is told again of the same.
    let next = fill(&log, 1).await[0].0;
    drop(log);
    let log = Durable::open(&cut).await.unwrap();
    let page = log.read(Read::new(topics(), ReadFrom::After(log.head().await.unwrap()))).await.unwrap();
    assert!(page.floor < next && !page.foreign);
}

#[tokio::test]
async fn altered_bytes_are_never_shown_and_are_found_by_a_check() {
    seed();
    let folder = Folder::new();
    let (left, all) = left(&folder, true).await;
    let bytes = fs::read(left.join("log.db")).unwrap();
    let (mut found, mut harmless) = (0, 0);
    for _ in 0..150 {
        let mut altered = bytes.clone();
        let place = fastrand::usize(..bytes.len());
        altered[place] ^= 1 << fastrand::u32(..8);
        let what = format!("byte {place} of {}", bytes.len());
        // What is shown is what was published, or an error.
        let unchecked = Durable::builder().check(DurableCheck::Never);
        if let Ok(Ok(shown)) = reopened(&folder, &left, "log.db", &altered, unchecked).await {
            assert!(shown.iter().all(|one| all.contains(one)), "{what}");
        }
        let checked = Durable::builder().check(DurableCheck::Always);
        match reopened(&folder, &left, "log.db", &altered, checked).await {
            Ok(events) => {
                assert_eq!(events.unwrap(), all, "{what}");
                harmless += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                found += 1;
            }
        }
    }
    println!("found: {found}, without effect on any event: {harmless}");
    assert!(found > 0);
}

#[tokio::test]
async fn files_full_of_anything_are_an_error() {
    let folder = Folder::new();
    for length in [0, 1, 100, 512, 4096, 10_000] {
        for fill in [0, b'S', 0xff] {
            let path = folder.another();
            fs::create_dir(&path).unwrap();
            for file in ["log.db", "log.db-wal", "mark", "lock"] {
                fs::write(path.join(file), vec![fill; length]).unwrap();
            }
            match Durable::open(&path).await {
                // There is nothing of a log in zeros where none was acknowledged, nor in empty files.
                Ok(log) => assert_eq!(events(&log).await.unwrap(), [], "{length} bytes of {fill}"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
    tokio::time::timeout(Duration::from_secs(60), Durable::open(folder.another())).await.unwrap().unwrap();
}
