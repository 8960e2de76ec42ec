//! A thousand clients, a hundred of which have stopped reading, a thousand events a second, and SIGTERM.
//!
//! `cargo test --release --test shutdown`: without optimisation, a thousand clients take what the server needs.

mod support;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::{net::SocketAddr, path::Path, time::Duration};
use support::{
    Client, Http,
    example::{self, Example},
    watched::{By, Stalled},
};
use tokio::{task::JoinSet, time::Instant, time::sleep};

const READING: usize = 900;
const STALLED: usize = 100;
const GRACE: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(2);
/// Clients come back within these, in milliseconds.
const RETRY: std::ops::RangeInclusive<u64> = 1000..=9000;

fn main() {
    let server = example::build("bench_server");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for via in ["hyper", "axum"] {
            for http in [Http::One, Http::Two] {
                shut_down(&server, via, http).await;
            }
        }
        everyone_comes_back(&server).await;
    });
}

async fn start(server: &Path, via: &str) -> Example {
    let retry = format!("{}-{}", RETRY.start(), RETRY.end());
    let arguments = ["--via", via, "--write-deadline-ms", "30000", "--grace-ms", "2000", "--deadline-ms", "2000"];
    Example::start(server, &[&arguments[..], &["--retry-ms", &retry]].concat()).await
}

async fn publish(address: SocketAddr, rate: u32) {
    let (_client, response) = Client::post(address, &format!("/publish?n=1000000&size=128&rate={rate}"), "").await;
    assert_eq!(response.status(), 202);
}

async fn shut_down(server: &Path, via: &str, http: Http) {
    let mut server = start(server, via).await;
    let address = server.address;
    let mut clients = connect(http, address, READING).await;
    let mut stalled = Vec::new();
    for n in 0..STALLED {
        // Over HTTP/2, half of them are held by its own flow control.
        let by = if n % 2 == 0 { By::Tcp } else { By::Http };
        stalled.push(Stalled::open(http, address, "/events", by).await);
    }
    publish(address, 1000).await;
    // Until nobody has room for more of them.
    let full = Instant::now() + Duration::from_secs(60);
    loop {
        let stats = stats(address).await;
        if stats["behind"] == STALLED {
            assert_eq!(stats["subscriptions"], READING + STALLED);
            break;
        }
        assert!(Instant::now() < full, "{stats}");
        sleep(Duration::from_millis(100)).await;
    }

    let told = Instant::now();
    let exit = server.terminate().await;
    let took = told.elapsed();
    assert!(exit.success(), "{exit}");
    assert!(took < GRACE + DEADLINE + Duration::from_millis(500), "{took:?}");
    let drained: serde_json::Value = serde_json::from_str(&server.line().await).unwrap();
    println!("{via}, {http:?}: {took:.2?} from SIGTERM to its exit, {drained}");
    assert_eq!((&drained["ended"], &drained["remaining"]), (&READING.into(), &STALLED.into()));
    let (mut least, mut most) = (usize::MAX, 0);
    while let Some(client) = clients.join_next().await {
        let read = client.unwrap();
        assert!(read.goodbye && RETRY.contains(&read.retry.unwrap()));
        (least, most) = (least.min(read.events), most.max(read.events));
    }
    println!("the others have {least} to {most} events, without a hole, and the goodbye");
    assert!(least > 1000);
    drop(stalled);
}

/// Clients that read until the end.
async fn connect(http: Http, address: SocketAddr, count: usize) -> JoinSet<Read> {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let (client, response) = Client::get(http, address, "/events", &[]).await;
        assert_eq!(response.status(), 200);
        clients.spawn(async move {
            let read = Read::to_the_end(response.into_body()).await;
            drop(client);
            read
        });
    }
    clients
}

async fn stats(address: SocketAddr) -> serde_json::Value {
    let (_client, response) = Client::get(Http::One, address, "/stats", &[]).await;
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

async fn everyone_comes_back(server: &Path) {
    let (mut first, second) = (start(server, "hyper").await, start(server, "hyper").await);
    let (address, next) = (first.address, second.address);
    let mut clients = connect(Http::One, address, READING + STALLED).await;
    publish(address, 100).await;
    let mut coming = JoinSet::new();
    let terminated = tokio::spawn(async move { first.terminate().await });
    while let Some(client) = clients.join_next().await {
        let retry = Duration::from_millis(client.unwrap().retry.unwrap());
        coming.spawn(async move {
            sleep(retry).await;
            let (_client, response) = Client::get(Http::One, next, "/events", &[]).await;
            assert_eq!(response.status(), 200);
            Instant::now()
        });
    }
    assert!(terminated.await.unwrap().success());
    let times = coming.join_all().await;
    let begin = times.iter().min().unwrap();
    let mut seconds = [0; 16];
    for time in &times {
        seconds[usize::try_from((*time - *begin).as_secs()).unwrap()] += 1;
    }
    let share = times.len() / usize::try_from((RETRY.end() - RETRY.start()) / 1000).unwrap();
    println!("they come back in each second: {seconds:?}; an even share of the range is {share}");
    assert!(seconds.iter().all(|count| *count <= 2 * share), "{seconds:?}");
}

/// What a client has read.
#[derive(Default)]
struct Read {
    line: Vec<u8>,
    last: Option<u64>,
    events: usize,
    goodbye: bool,
    retry: Option<u64>,
}

impl Read {
    async fn to_the_end(mut body: Incoming) -> Self {
        let mut read = Self::default();
        while let Some(frame) = body.frame().await {
            let data = frame.expect("the end should be clean").into_data().unwrap_or_default();
            read.take(&data);
        }
        read
    }

    fn take(&mut self, mut data: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', data) {
            self.line.extend_from_slice(&data[..end]);
            data = &data[end + 1..];
            let line = std::mem::take(&mut self.line);
            let line = std::str::from_utf8(&line).unwrap();
            if let Some(id) = line.strip_prefix("id: ") {
                assert!(!self.goodbye, "nothing comes after the goodbye");
                let position: u64 = id.split('.').next().unwrap().parse().unwrap();
                // The opening has an id, too.
                let expected = self.last.map_or(position, |last| last + 1);
                assert_eq!(position, expected, "an event is missing, or came twice");
                self.events += usize::from(self.last.replace(position).is_some());
            } else if let Some(retry) = line.strip_prefix("retry: ") {
                self.retry = Some(retry.parse().unwrap());
            }
            self.goodbye |= line == "event: goodbye";
        }
        self.line.extend_from_slice(data);
    }
}
