//! What a slow reader costs: the others nothing, the server little, and itself no event.
//!
//! ```sh
//! cargo bench --bench slow_reader                                  # takes 3 minutes
//! cargo bench --bench slow_reader -- --rounds 1 --seconds 5
//! ```
//!
//! | argument | default | |
//! | --- | --- | --- |
//! | `--rounds N` | 3 | of two runs each: without the slow reader, and with it |
//! | `--seconds S` | 20 | for how long is published |
//! | `--rate EVENTS` | 10000 | of some 150 bytes, published in a second |
//!
//! Each run has a new server in a process of its own: bare hyper, HTTP/1.1, a window of 256 events and a ring of 300,000.
//! This process is its clients, over real sockets: one hundred that read what comes and note how late it is, and the slow
//! reader, which takes ten events a second for as long as is published, and then what is left without a limit.
//!
//! The server's heap is measured three times when nothing is published and the hundred have everything: while the slow
//! reader is far behind, when it has caught up, and after its connection was closed. Less the last, that is what it costs
//! in the process, hyper's buffers included. What the kernel holds for it comes from `/proc/net/tcp`. Frames that were
//! joined while it caught up stay with the log for whoever comes next, up to 4 MiB: they count as its own while it catches
//! up, and against it while it is far behind.
//!
//! An event that is missing, repeated, out of order or replaced by a gap report fails the benchmark. No figure does.
//!
//! Without `--bench`, which `cargo bench` passes and `cargo test --benches` does not, two runs of a second check that it
//! works.

#[path = "slow_reader/reader.rs"]
mod reader;
#[path = "slow_reader/server.rs"]
mod server;

use crate::{
    reader::{Reader, Seen},
    server::Server,
};
use peak_alloc::PeakAlloc;
use std::{
    error::Error,
    fmt,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::{
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{interval, timeout},
};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Those who keep up.
const OTHERS: usize = 100;

/// How long the slow reader takes for an event.
const SLOW_PACE: Duration = Duration::from_millis(100);

/// The slow reader's `SO_RCVBUF`: what it does not read is to stay with the server.
const SLOW_BUFFER: u32 = 16 * 1024;

/// Who has not everything after so long waits for what was lost.
const PATIENCE: Duration = Duration::from_secs(60);

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match &args[..] {
        [arg] if arg == server::ARGUMENT => server::serve(),
        args => Options::parse(args).and_then(|options| bench(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow_reader: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    rounds: usize,
    seconds: u32,
    rate: u32,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, Failure> {
        if !args.iter().any(|arg| arg == "--bench") {
            return Ok(Self { rounds: 1, seconds: 1, rate: 2000 });
        }
        let mut options = Self { rounds: 3, seconds: 20, rate: 10_000 };
        let mut args = args.iter().filter(|arg| *arg != "--bench");
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--rounds" => options.rounds = value.parse()?,
                "--seconds" => options.seconds = value.parse()?,
                "--rate" => options.rate = value.parse()?,
                _ => return Err(format!("unknown argument {name:?}").into()),
            }
        }
        Ok(options)
    }

    fn events(&self) -> u32 {
        self.seconds.saturating_mul(self.rate)
    }
}

fn bench(options: &Options) -> Result<(), Failure> {
    println!("{} events/s for {} s to {OTHERS} subscribers,", options.rate, options.seconds);
    println!("without and with a slow reader; latencies in µs, memory in bytes\n\n{}", Run::HEAD);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        // What is second in one round is first in the next: a machine that is shared gets busier or quieter meanwhile.
        for with_slow in [round % 2 == 1, round % 2 == 0] {
            let run = runtime.block_on(run(options, with_slow))?;
            println!("{run}");
            run.check(options.events())?;
            if with_slow { &mut with } else { &mut without }.push(run);
        }
    }
    print_medians(&without, &with);
    Ok(())
}

/// What one run showed.
struct Run {
    /// At which was published, in events a second.
    rate: u32,
    /// Of all events to all others, in microseconds.
    p50: u32,
    p99: u32,
    max: u32,
    /// How many of the others had all events in order.
    others_right: usize,
    slow: Option<Slow>,
}

/// What the slow reader had, and what it cost in bytes.
struct Slow {
    /// Events that it took while it was slow.
    taken_slowly: u32,
    seen: Seen,
    catching_up: Duration,
    heap_behind: u64,
    /// The most while it was catching up.
    heap_peak: u64,
    heap_level: u64,
    kernel_behind: Option<u64>,
}

async fn run(options: &Options, with_slow: bool) -> Result<Run, Failure> {
    let events = options.events();
    let mut server = Server::start().await?;
    let mut others = JoinSet::new();
    for _ in 0..OTHERS {
        others.spawn(Reader::open(server.address, None).await?.read_and_time(events));
    }
    let slow = if with_slow { Some(SlowReader::start(&server).await?) } else { None };

    let rate = server.publish(options.seconds, options.rate).await?;
    // They stay connected until the slow reader's part of the heap is known.
    let others = patiently(async { others.join_all().await.into_iter().collect::<Result<Vec<_>, _>>() }).await?;
    let slow = match slow {
        Some(slow) => Some(patiently(slow.finish(&mut server, events)).await?),
        None => None,
    };

    let others_right = others.iter().filter(|(reader, _)| reader.seen.is_all(events)).count();
    let mut latencies: Vec<_> = others.into_iter().flat_map(|(_, latencies)| latencies).collect();
    latencies.sort_unstable();
    let percentile = |n: usize| latencies.get(latencies.len().saturating_sub(1) * n / 100).copied().unwrap_or_default();
    Ok(Run { rate, p50: percentile(50), p99: percentile(99), max: percentile(100), others_right, slow })
}

async fn patiently<T>(what: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(PATIENCE, what).await.map_err(|_| "not everything came, or not all of it was cleaned up")?
}

/// The slow reader while it is slow.
struct SlowReader {
    task: JoinHandle<Result<Reader, Failure>>,
    no_more_limit: oneshot::Sender<()>,
}

impl SlowReader {
    async fn start(server: &Server) -> Result<Self, Failure> {
        let mut reader = Reader::open(server.address, Some(SLOW_BUFFER)).await?;
        let (no_more_limit, mut limit_ends) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut pace = interval(SLOW_PACE);
            loop {
                tokio::select! {
                    _ = &mut limit_ends => return Ok(reader),
                    _ = pace.tick() => reader.next().await?,
                };
            }
        });
        Ok(Self { task, no_more_limit })
    }

    /// Lets it read what is left, and finds out what it costs on the way. Nothing else may go on in the server.
    async fn finish(self, server: &mut Server, events: u32) -> Result<Slow, Failure> {
        let behind = server.heap(OTHERS + 1).await?;
        let _ = self.no_more_limit.send(());
        let mut reader = self.task.await??;
        let (taken_slowly, kernel_behind) = (reader.seen.events, reader.held_by_kernel());

        let start = Instant::now();
        reader.read_to(events).await?;
        let catching_up = start.elapsed();
        let level = server.heap(OTHERS + 1).await?;
        if reader.has_more().await? {
            return Err("the slow reader got more than was published".into());
        }

        let seen = reader.seen;
        drop(reader);
        let without = server.heap(OTHERS).await?.live;
        let [heap_behind, heap_peak, heap_level] =
            [behind.live, level.peak, level.live].map(|with| with.saturating_sub(without));
        Ok(Slow { taken_slowly, seen, catching_up, heap_behind, heap_peak, heap_level, kernel_behind })
    }
}

impl Run {
    const HEAD: &str = concat!(
        "        publisher |    latency of others |    events of the slow reader |     its heap          | kernel | caught up\n",
        "run      events/s |  p50     p99     max | slowly    all in order gaps | behind at most  level | behind |   after s",
    );

    fn check(&self, events: u32) -> Result<(), Failure> {
        if self.others_right < OTHERS {
            return Err(format!("only {} of the others had all events in order", self.others_right).into());
        }
        match &self.slow {
            Some(slow) if !slow.seen.is_all(events) => Err("the slow reader did not have all events in order".into()),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.slow.is_some() { "with" } else { "without" };
        write!(f, "{name:<8} {:>8} | {:>4} {:>7} {:>7} |", self.rate, self.p50, self.p99, self.max)?;
        let Some(slow) = &self.slow else { return Ok(()) };
        let Seen { events, in_order, gaps, .. } = slow.seen;
        write!(f, " {:>6} {events:>6} {in_order:>8} {gaps:>4} |", slow.taken_slowly)?;
        write!(f, " {:>6} {:>7} {:>6} |", slow.heap_behind, slow.heap_peak, slow.heap_level)?;
        let kernel = slow.kernel_behind.map_or("-".into(), |bytes| bytes.to_string());
        write!(f, " {kernel:>6} | {:>9.2}", slow.catching_up.as_secs_f64())
    }
}

fn print_medians(without: &[Run], with: &[Run]) {
    println!("\nmedians    without      with  with/without");
    let print = |name, figure: fn(&Run) -> u32| {
        let [without, with] = [without, with].map(|runs| median(runs.iter().map(figure)));
        println!("{name:<9} {without:>8}  {with:>8}  {:>12.3}", f64::from(with) / f64::from(without));
    };
    print("events/s", |run| run.rate);
    print("p50", |run| run.p50);
    print("p99", |run| run.p99);
    let slow = |figure: fn(&Slow) -> u64| median(with.iter().filter_map(|run| run.slow.as_ref()).map(figure));
    let [behind, peak, level] = [slow(|it| it.heap_behind), slow(|it| it.heap_peak), slow(|it| it.heap_level)];
    println!("the slow reader's heap: {behind} behind, at most {peak} while it caught up, {level} level");
}

/// Of an even number, the greater of the two in the middle.
fn median<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
