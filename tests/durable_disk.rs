//! A disk that is full, and one that cannot be written.
//!
//! `cargo test --test durable_disk`, as root: it mounts small disks in memory.

#[path = "durable/folder.rs"]
mod folder;

use folder::Folder;
use futures_util::{FutureExt as _, StreamExt as _};
use std::{error::Error, path::Path, process::Command, time::Duration};
use tidings::{
    Event, Hub, PublishError, Start, Subscription, Topic,
    replay::{Durable, DurableBuilder},
    test_util::next_event,
};

const T: Topic = Topic::from_static("t");
const SYNC: Duration = Duration::from_millis(10);
/// So that it is not always the same write for which there is no room.
const SIZES: [&str; 12] =
    ["3000k", "3004k", "3008k", "3012k", "3016k", "3020k", "3024k", "3028k", "3032k", "3036k", "3040k", "3044k"];

/// A disk of its own, until it is dropped.
struct Disk(Folder);

impl Disk {
    fn new(size: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts small disks: run it as root");
        let disk = Self(Folder::new());
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], disk.0.path());
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn make_read_only(&self) {
        mount(&["-o", "remount,ro"], self.path());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn mount(arguments: &[&str], on: &Path) {
    let status = Command::new("mount").args(arguments).arg(on).status().expect("this test needs `mount`");
    assert!(status.success(), "mount {arguments:?}: this test needs root, and a system that lets it mount");
}

/// An event of some size of its own.
async fn publish(hub: &Hub, n: usize) -> Result<(), PublishError> {
    hub.publish(T, Event::new().data(format!("{n} {}", "x".repeat(n * 37 % 4000)))).await.map(drop)
}

async fn expect(subscription: &mut Subscription, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let entry = next_event(subscription).await;
        let data = entry.record().data().unwrap().into_owned();
        assert_eq!(data.split(' ').next().unwrap(), n.to_string());
    }
}

fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

async fn fill_and_make_room(builder: DurableBuilder, size: &str) {
    let disk = Disk::new(size);
    let (path, ballast) = (disk.path().join("log"), disk.path().join("ballast"));
    std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    // So that whoever is behind reads from the disk.
    let hub = Hub::builder().window_events(4).open(builder.clone().open(&path).await.unwrap()).await.unwrap();
    let mut live = hub.subscribe(T).start(Start::Earliest);
    let mut acknowledged = 0;
    let error = loop {
        match publish(&hub, acknowledged).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        expect(&mut live, acknowledged - 1..acknowledged).await;
    };
    assert!(acknowledged > 50, "{acknowledged}");
    let text = whole(&error);
    assert!(!error.is_unknown() && text.contains("no room") && text.contains("without a restart"), "{text}");
    for _ in 0..20 {
        let error = hub.publish(T, Event::new().data("x".repeat(200_000))).await.unwrap_err();
        assert!(!error.is_unknown(), "{}", whole(&error));
    }
    assert!(live.next().now_or_never().is_none(), "nobody is shown what was refused");
    // Those who read go on, also after what was acknowledged before was to be synced.
    tokio::time::sleep(3 * SYNC).await;
    let mut late = hub.subscribe(T).start(Start::Earliest);
    expect(&mut late, 0..acknowledged).await;
    assert!(late.next().now_or_never().is_none());
    assert!(builder.clone().open(disk.path().join("another")).await.unwrap_err().is_full());

    std::fs::remove_file(&ballast).unwrap();
    for n in acknowledged..acknowledged + 20 {
        publish(&hub, n).await.unwrap();
        expect(&mut live, n..n + 1).await;
    }
    expect(&mut late, acknowledged..acknowledged + 20).await;
    let last = live.cursor().unwrap();
    drop((live, late, hub));

    let hub = Hub::builder().open(builder.open(&path).await.unwrap()).await.unwrap();
    let mut again = hub.subscribe(T).start(Start::Earliest);
    expect(&mut again, 0..acknowledged + 20).await;
    assert_eq!(again.cursor().unwrap().position(), last.position());
    assert!(again.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_full_disk_refuses_publishers_and_nobody_else_and_goes_on_when_there_is_room() {
    for size in SIZES {
        fill_and_make_room(Durable::builder(), size).await;
    }
}

#[tokio::test]
async fn a_full_disk_does_the_same_when_it_is_synced_later() {
    for size in SIZES {
        fill_and_make_room(Durable::builder().sync_every(SYNC), size).await;
    }
}

/// What is left of a process that was killed is on a disk that has no room, when it is started anew.
#[tokio::test]
async fn a_full_disk_is_not_opened_and_says_what_to_do() {
    let [synced, later] = [Durable::builder(), Durable::builder().sync_every(SYNC)];
    for (builder, shared_is_left) in [(&synced, true), (&synced, false), (&later, true), (&later, false)] {
        let (folder, disk) = (Folder::new(), Disk::new("3m"));
        let (killed, path, ballast) = (folder.another(), disk.path().join("log"), disk.path().join("ballast"));
        let hub = Hub::builder().open(builder.clone().open(&killed).await.unwrap()).await.unwrap();
        for n in 0..20 {
            publish(&hub, n).await.unwrap();
        }
        folder::copy(&killed, &path);
        if !shared_is_left {
            // So that there is no room for this either.
            std::fs::remove_file(path.join("log.db-shm")).unwrap();
        }
        std::fs::write(&ballast, vec![1; 3 << 20]).unwrap_err();
        let error = builder.clone().open(&path).await.unwrap_err();
        let text = whole(&error);
        assert!(error.is_full() && text.contains("make some, and open it again"), "{text}");
        assert!(!text.contains("without a restart"), "{text}");
        // A copy finds no room either.
        let log = Durable::open(folder.another()).await.unwrap();
        let error = log.copy_to(disk.path().join("copy")).await.unwrap_err();
        let text = whole(&error);
        assert!(error.is_full() && text.contains("make some, and copy again"), "{text}");

        std::fs::remove_file(&ballast).unwrap();
        let hub = Hub::builder().open(builder.clone().open(&path).await.unwrap()).await.unwrap();
        expect(&mut hub.subscribe(T).start(Start::Earliest), 0..20).await;
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_not_opened_and_says_why() {
    let disk = Disk::new("3m");
    let log = disk.path().join("log");
    let hub = Hub::builder().open(Durable::open(&log).await.unwrap()).await.unwrap();
    publish(&hub, 0).await.unwrap();
    drop(hub);
    // The task that published lets go of the store a moment after its answer.
    while Durable::open(&log).await.is_err_and(|error| error.is_in_use()) {
        tokio::task::yield_now().await;
    }
    disk.make_read_only();
    for path in [log, disk.path().join("another")] {
        let error = Durable::open(&path).await.unwrap_err();
        assert!(error.is_not_writable() && error.to_string().contains("the right to write"), "{}", whole(&error));
    }
}
