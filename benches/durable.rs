//! What the log on disk does: how many events a second are acknowledged, for each way to sync, with one publisher and with
//! 64; how many are read; and how long it takes to open it after a crash.
//!
//! ```sh
//! cargo bench --bench durable                  # takes a minute, in the directory for temporary files
//! cargo bench --bench durable -- --path DIR    # on another disk
//! ```
//!
//! Events of some 200 bytes, to 50 topics. No figure fails. A line with plain appends to a file, synced one by one, says what
//! the disk itself does. Without `--bench`, which `cargo bench` passes and `cargo test --benches` does not, little of it is
//! done.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tidings::{
    Event, Hub, Topic,
    replay::{Durable, DurableBuilder, DurableCheck, Read, ReadFrom, Record, ReplayStore as _},
};
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (mut time, mut path, mut load) = (Duration::from_millis(50), std::env::temp_dir(), 20_000);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => (time, load) = (Duration::from_secs(5), 1_000_000),
            "--path" => path = args.next().ok_or("--path needs a value")?.into(),
            _ => return Err(format!("unknown argument {arg:?}").into()),
        }
    }
    let folder = Folder(path.join(format!("tidings-bench-{}", std::process::id())));
    fs::create_dir_all(&folder.0)?;
    bench(&folder.0, time, load).await
}

async fn bench(folder: &Path, time: Duration, load: usize) -> Result<(), Failure> {
    disk(folder, time)?;
    let later = |ms| Durable::builder().sync_every(Duration::from_millis(ms));
    let policies = [("each batch", Durable::builder()), ("every 10 ms", later(10)), ("every second", later(1000))];
    for (name, builder) in policies {
        for publishers in [1, 64] {
            publish(folder, name, builder.clone(), publishers, time).await?;
        }
    }
    read_and_open(folder, load).await
}

fn disk(folder: &Path, time: Duration) -> Result<(), Failure> {
    let mut file = File::create(folder.join("plain"))?;
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        count += 1;
    }
    println!("the disk: {:.0} synced appends a second", f64::from(count) / begun.elapsed().as_secs_f64());
    Ok(())
}

fn topic(n: usize) -> Result<Topic, Failure> {
    Ok(Topic::new(format!("topic {}", n % 50))?)
}

fn event() -> Event {
    Event::new().data("x".repeat(190))
}

async fn publish(
    folder: &Path,
    name: &str,
    builder: DurableBuilder,
    publishers: usize,
    time: Duration,
) -> Result<(), Failure> {
    let path = folder.join(format!("{} {publishers}", name.replace(' ', "-")));
    let hub = Hub::builder().open(builder.open(&path).await?).await?;
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..publishers {
        let hub = hub.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            for m in 0.. {
                let asked = Instant::now();
                if asked.duration_since(begun) >= time {
                    break;
                }
                hub.publish(topic(n + m)?, event()).await?;
                latencies.push(asked.elapsed());
            }
            Ok::<_, Failure>(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let rate = f64::from(u32::try_from(latencies.len())?) / begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let part = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    println!(
        "synced {name:12}  {publishers:2} publishers: {rate:8.0} acknowledged a second, each within {:.2?} (median), {:.2?} (99 %)",
        part(50),
        part(99)
    );
    drop(hub);
    remove(&path);
    Ok(())
}

/// What a crash leaves of so many events, and what it is to read them.
async fn read_and_open(folder: &Path, load: usize) -> Result<(), Failure> {
    let (path, left) = (folder.join("load"), folder.join("left"));
    let builder = || Durable::builder().sync_every(Duration::from_secs(60));
    let log = builder().open(&path).await?;
    for begin in (0..load).step_by(1000) {
        let records: Vec<Record> =
            (begin..begin + 1000).map(|n| Ok(Record::new(topic(n)?, event()))).collect::<Result<_, Failure>>()?;
        log.append(records.into()).await?;
    }
    let (begun, mut count) = (Instant::now(), 0);
    for n in 0..50 {
        let mut from = ReadFrom::Earliest;
        loop {
            let page = log.read(Read::new(topic(n)?, from)).await?;
            if page.entries.is_empty() {
                break;
            }
            count += page.entries.len();
            from = ReadFrom::After(page.through);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("pages of 256 of one topic: {:.0} events read a second", f64::from(u32::try_from(count)?) / seconds);
    drop(log);
    fs::create_dir_all(&left)?;
    // Without its mark, it is taken for one that was not closed.
    fs::copy(path.join("log.db"), left.join("log.db"))?;
    let size = fs::metadata(left.join("log.db"))?.len() / 1_000_000;
    let begun = Instant::now();
    drop(builder().open(&left).await?);
    println!("{load} events, {size} MB: opened and checked after a crash in {:.2?}", begun.elapsed());
    let begun = Instant::now();
    let log = builder().check(DurableCheck::Never).open(&path).await?;
    println!("opened after it was closed in {:.2?}", begun.elapsed());
    drop(log);
    Ok(())
}

fn remove(path: &Path) {
    // The task that published last lets go of the log a moment later, and then it is gone too.
    let _ = fs::remove_dir_all(path);
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.0);
    }
}
