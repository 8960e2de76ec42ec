//! The server, in a process of its own so that its heap has nothing of the clients in it; and the clients' hold on it.
//!
//! It says its port, and then answers each line of its standard input with one line of numbers.

use crate::{Failure, HEAP};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::time::{ClockId, clock_gettime};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    time::Duration,
};
use tidings::{Event, Handler, Hub, SameTopics, Topic, replay::Ring};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpSocket},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, interval_at, sleep},
};

/// Makes this program the server.
pub(crate) const ARGUMENT: &str = "--serve";

const TOPIC: Topic = Topic::from_static("bench");

/// `SO_SNDBUF` of all connections: without it, Linux takes megabytes for a reader that takes nothing.
const SEND_BUFFER: u32 = 64 * 1024;

/// In the data of each event behind its number and its time, so that it has about 150 bytes on the wire.
const FILLER: &str = "................................................................................................";

const MILLISECOND: Duration = Duration::from_millis(1);

/// What does not change for so long is settled.
const SETTLING: Duration = Duration::from_millis(100);

/// The clock that is the same in all processes.
pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap_or_default()
}

pub(crate) fn serve() -> Result<(), Failure> {
    // The publisher and all connections share one thread, so that whoever holds it up holds up everyone.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let ring = Ring::new().events_per_topic(300_000).bytes_per_topic(usize::MAX).total_bytes(usize::MAX);
    let hub = Hub::builder().ring(ring).window_events(256).build();
    let _entered = runtime.enter();
    let listener = listen()?;
    println!("{}", listener.local_addr()?.port());
    tokio::spawn(accept(listener, hub.handler_for(TOPIC)));

    for line in io::stdin().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["publish", seconds, rate] => {
                let publishing = publish(hub.clone(), seconds.parse()?, rate.parse()?);
                println!("{}", runtime.block_on(tokio::spawn(publishing))??.as_nanos());
            }
            ["heap"] => {
                // All tasks but the one that accepts.
                let connections = runtime.metrics().num_alive_tasks() - 1;
                println!("{connections} {} {}", HEAP.current_usage(), HEAP.peak_usage());
                HEAP.reset_peak_usage();
            }
            _ => return Err(format!("what is {line:?}?").into()),
        }
    }
    Ok(())
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(128)
}

async fn accept(listener: TcpListener, handler: Handler<SameTopics>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), handler.clone()));
    }
}

/// Publishes what is due in each millisecond, and says how long all of it took.
async fn publish(hub: Hub, seconds: u32, rate: u32) -> Result<Duration, Failure> {
    let start = Instant::now();
    let mut ticks = interval_at(start + MILLISECOND, MILLISECOND);
    let mut published = 0;
    for tick in 1..=u64::from(seconds) * 1000 {
        ticks.tick().await;
        while published < tick * u64::from(rate) / 1000 {
            published += 1;
            let data = format!("{published} {} {FILLER}", monotonic().as_nanos());
            hub.publish_now(TOPIC, Event::new().data(data))?;
        }
    }
    Ok(start.elapsed())
}

/// A running server, which ends with its value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

/// Bytes on the heap: now, and the most since this was last asked.
pub(crate) struct Heap {
    pub(crate) live: u64,
    pub(crate) peak: u64,
}

impl Server {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let questions = process.stdin.take().ok_or("no standard input")?;
        let mut answers = BufReader::new(process.stdout.take().ok_or("no standard output")?).lines();
        let port: u16 = answers.next_line().await?.ok_or("the server does not start")?.parse()?;
        Ok(Self { address: (Ipv4Addr::LOCALHOST, port).into(), questions, answers, _process: process })
    }

    /// Publishes to everyone, and returns the rate that was achieved.
    pub(crate) async fn publish(&mut self, seconds: u32, rate: u32) -> Result<u32, Failure> {
        let [nanos] = self.ask(&format!("publish {seconds} {rate}\n")).await?;
        let events = u64::from(seconds) * u64::from(rate);
        Ok(u32::try_from(events * 1_000_000_000 / nanos.max(1))?)
    }

    /// The heap once it has settled and there are so many connections.
    pub(crate) async fn heap(&mut self, connections: usize) -> Result<Heap, Failure> {
        let (mut before, mut peak) = (0, 0);
        loop {
            let [open, live, most] = self.ask("heap\n").await?;
            peak = most.max(peak);
            let connected = open == u64::try_from(connections)?;
            if connected && live == before {
                return Ok(Heap { live, peak });
            }
            before = if connected { live } else { 0 };
            sleep(SETTLING).await;
        }
    }

    async fn ask<const N: usize>(&mut self, question: &str) -> Result<[u64; N], Failure> {
        self.questions.write_all(question.as_bytes()).await?;
        let answer = self.answers.next_line().await?.ok_or("the server is gone")?;
        let numbers = answer.split(' ').map(str::parse).collect::<Result<Vec<_>, _>>()?;
        numbers.try_into().map_err(|_| format!("not an answer: {answer:?}").into())
    }
}
