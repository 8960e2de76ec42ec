//! What the logs do: how many events a second are acknowledged in memory, on disk for each way to sync, and in Redis, with one
//! publisher and with 64; how many are delivered. And of the log on disk, how many are read, and how long it takes to open it
//! after a crash.
//!
//! ```sh
//! cargo bench --bench stores                   # takes some minutes, in the directory for temporary files
//! cargo bench --bench stores -- --path DIR     # on another disk
//! ```
//!
//! Redis is one of its own, if `redis-server` is installed.
//!
//! Events of some 200 bytes, to 50 topics. No figure fails. A line with plain appends to a file, synced one by one, says what
//! the disk itself does. Without `--bench`, which `cargo bench` passes and `cargo test --benches` does not, little of it is
//! done.

use http_body_util::BodyExt as _;
use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tidings::{
    Event, Hub, Topic,
    replay::{Durable, DurableCheck, Read, ReadFrom, Record, RedisStore, ReplayStore as _},
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
    println!("| log | publishers | subscribers | acknowledged/s | median | 99 % | delivered/s |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let later = |ms| Durable::builder().sync_every(Duration::from_millis(ms));
    let policies = [("each batch", Durable::builder()), ("every 10 ms", later(10)), ("every second", later(1000))];
    // Two subscribers for each topic.
    let sizes = [(1, 0), (64, 0), (1, 100), (64, 100)];
    for size in sizes {
        publish(Hub::new(), "`Ring`", size, time).await?;
    }
    for (name, builder) in policies {
        for size in sizes {
            let path = folder.join(format!("{}-{}-{}", name.replace(' ', "-"), size.0, size.1));
            let hub = Hub::builder().open(builder.clone().open(&path).await?).await?;
            publish(hub, &format!("`Durable`, synced {name}"), size, time).await?;
            remove(&path);
        }
    }
    let servers = [
        ("`RedisStore`, in memory", &["--appendonly", "no"][..]),
        ("`RedisStore`, `appendfsync everysec`", &["--appendonly", "yes"]),
        ("`RedisStore`, `appendfsync always`", &["--appendonly", "yes", "--appendfsync", "always"]),
    ];
    for (name, options) in servers {
        let folder = folder.join(name.replace([' ', ',', '`'], ""));
        fs::create_dir_all(&folder)?;
        let Some(server) = Server::start(&folder, options).await? else {
            println!("redis-server is not installed");
            break;
        };
        for size in sizes {
            let store = RedisStore::open(&server.url, format!("{}-{}", size.0, size.1)).await?;
            publish(Hub::builder().open(store).await?, name, size, time).await?;
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

/// Publishes for some time, and says how many were acknowledged; with subscribers, also how many they were sent.
async fn publish(
    hub: Hub,
    name: &str,
    (publishers, subscribers): (usize, usize),
    time: Duration,
) -> Result<(), Failure> {
    let mut readers = JoinSet::new();
    for n in 0..subscribers {
        let mut body = Box::pin(hub.subscribe(topic(n)?).into_http_response().into_body());
        // So that it is there before the first event.
        body.frame().await.ok_or("a subscription ended")??;
        readers.spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
    }
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
                // Over the ring, publishing never waits: the others have their turn.
                tokio::task::consume_budget().await;
            }
            Ok::<_, Failure>(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    #[expect(clippy::cast_precision_loss, reason = "no count is that large")]
    let per_second = |count: u64| count as f64 / begun.elapsed().as_secs_f64();
    let acknowledged = per_second(latencies.len() as u64);
    // Those who are behind have their rest.
    hub.close();
    readers.join_all().await;
    let delivered = per_second(hub.stats().delivered.events);
    latencies.sort_unstable();
    let part = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    let gaps = match hub.stats().gaps.reports {
        0 => String::new(),
        gaps => format!(" ({gaps} gaps)"),
    };
    println!(
        "| {name} | {publishers} | {subscribers} | {acknowledged:.0} | {:.2?} | {:.2?} | {delivered:.0}{gaps} |",
        part(50),
        part(99)
    );
    Ok(())
}

/// A Redis of our own, that keeps what it has on disk or not; none if that is not installed.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    async fn start(folder: &Path, options: &[&str]) -> Result<Option<Self>, Failure> {
        // The port is free now, and nobody else wants it in the meantime.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let spawned = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
            .arg(folder)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match spawned {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            spawned => spawned?,
        };
        let server = Self { process, url: format!("redis://127.0.0.1:{port}/") };
        // Opening waits for a server that is not there yet.
        RedisStore::open(&server.url, "first").await?;
        Ok(Some(server))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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
