//! Opening a log that another one still has open, as while a server is deployed anew; and paths that are no good.

#[path = "durable/folder.rs"]
mod folder;

use folder::Folder;
use futures_util::FutureExt as _;
use std::{
    path::Path,
    pin::pin,
    sync::mpsc,
    time::{Duration, Instant},
};
use tidings::{Event, Hub, Start, Topic, replay::Durable, test_util::next_event};

const T: Topic = Topic::from_static("t");
const HOUR: Duration = Duration::from_secs(3600);
/// What takes so long does not end.
const LONG: Duration = Duration::from_secs(60);

async fn expect(hub: &Hub, text: &str) {
    let mut subscription = hub.subscribe(T).start(Start::Earliest);
    assert_eq!(next_event(&mut subscription).await.record().data().unwrap(), text);
}

/// The old server drains while the new one waits for it.
#[tokio::test]
async fn who_waits_gets_the_log_once_the_hub_and_every_subscription_are_gone() {
    let folder = Folder::new();
    for wait in [HOUR, Duration::MAX] {
        let path = folder.another();
        let old = Hub::builder().open(Durable::open(&path).await.unwrap()).await.unwrap();
        let mut waits = pin!(Durable::builder().wait_for(wait).open(&path));
        assert!(waits.as_mut().now_or_never().is_none());
        let client = old.subscribe(T).start(Start::Now).opened().await.unwrap();
        old.publish(T, Event::new().data("1")).await.unwrap();
        old.close();
        drop(old);
        // What holds it is the subscription: however often it is looked.
        for _ in 0..20 {
            assert!(Durable::open(&path).await.unwrap_err().is_in_use());
            assert!(waits.as_mut().now_or_never().is_none());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(client);
        let new = Hub::builder().open(waits.await.unwrap()).await.unwrap();
        expect(&new, "1").await;
    }
}

#[tokio::test]
async fn who_waits_in_vain_is_told_so_when_the_time_is_up() {
    let folder = Folder::new();
    let _log = Durable::open(folder.path()).await.unwrap();
    let (began, wait) = (Instant::now(), Duration::from_millis(120));
    let error = Durable::builder().wait_for(wait).open(folder.path()).await.unwrap_err();
    assert!(error.is_in_use() && error.to_string().contains("`wait_for`"), "{error}");
    assert!(began.elapsed() >= wait);
}

#[tokio::test]
async fn only_another_opener_is_waited_for() {
    let folder = Folder::new();
    std::fs::write(folder.path().join("log.db"), "x".repeat(5000)).unwrap();
    let open = Durable::builder().wait_for(HOUR).open(folder.path());
    assert!(tokio::time::timeout(LONG, open).await.unwrap().unwrap_err().is_damaged());
}

/// Nothing goes on waiting in the runtime, whose end would wait for it.
#[test]
fn who_gives_up_waits_no_longer() {
    let folder = Folder::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let log = runtime.block_on(Durable::open(folder.path())).unwrap();
    runtime.block_on(async {
        let waits = pin!(Durable::builder().wait_for(HOUR).open(folder.path()));
        assert!(waits.now_or_never().is_none());
    });
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        drop(runtime);
        ended.send(())
    });
    end.recv_timeout(LONG).unwrap();
    drop(log);
}

/// What the system says, and of which path: it is not the disk.
#[tokio::test]
async fn a_path_that_is_no_good_is_refused_in_the_words_of_the_system() {
    let folder = Folder::new();
    let (log, file, below) = (folder.another(), folder.path().join("file"), folder.path().join("file/below"));
    std::fs::write(&file, "text").unwrap();
    let log = Durable::open(log).await.unwrap();
    for (path, words) in [
        (Path::new("/proc/nope"), "No such file or directory"),
        (&below, "Not a directory"),
        (&below.join("deeper"), "Not a directory"),
        (Path::new("a\0b"), "NUL byte"),
        (Path::new(&"x".repeat(300)), "File name too long"),
    ] {
        for error in [Durable::open(path).await.unwrap_err(), log.copy_to(path).await.unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains(words) && text.contains(&format!("{path:?}")), "{text}");
            assert!(!text.contains("disk"), "{text}");
        }
    }
    let error = log.copy_to(&file).await.unwrap_err().to_string();
    assert!(error.contains("File exists") && !error.contains("disk"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"text");
}

/// It is not the folder that the process happens to run in.
#[tokio::test]
async fn no_path_is_no_folder() {
    let folder = Folder::new();
    let log = Durable::open(folder.path()).await.unwrap();
    for error in [Durable::open("").await.unwrap_err(), log.copy_to("").await.unwrap_err()] {
        assert!(error.to_string().contains("path is empty"), "{error}");
    }
    for name in ["lock", "log.db", "mark"] {
        assert!(!Path::new(name).exists(), "{name}");
    }
}

/// Such as what a file system of its own has at its root.
#[tokio::test]
async fn a_folder_may_have_other_files() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    std::fs::write(folder.path().join("notes"), "text").unwrap();
    for _ in 0..2 {
        drop(Durable::open(folder.path()).await.unwrap());
    }
    assert!(folder.path().join("lost+found").is_dir());
    assert_eq!(std::fs::read(folder.path().join("notes")).unwrap(), b"text");
}
