//! The example `operate` as those see it who use and operate it: in a process of its own, over real sockets.

mod support;

use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustix::process::Signal;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, Instant},
};
use support::{
    Client, Http,
    example::{self, Example},
};
use tidings::test_util::EventReader;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

static EXECUTABLE: LazyLock<PathBuf> = LazyLock::new(|| example::build("operate"));

async fn start(arguments: &[&str]) -> Example {
    Example::start(&EXECUTABLE, arguments).await
}

/// Far more than anything here takes on a machine that is busy with something else.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it should come to this")
}

struct Stream {
    reader: EventReader<Incoming>,
    _client: Client,
}

impl Stream {
    /// Whether it is let in or not: for an `EventSource` both are 200.
    async fn open(address: SocketAddr, topic: &str, user: &str) -> Self {
        let uri = format!("/events?topic={topic}&user={user}");
        let (client, response) = Client::get(Http::One, address, &uri, &[]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { reader: EventReader::new(response.into_body()), _client: client }
    }

    /// The type and data of what comes until the end.
    async fn rest(&mut self) -> Vec<(String, String)> {
        let mut events = Vec::new();
        while let Some(event) = in_time(self.reader.next()).await {
            events.push((event.event_type, event.data));
        }
        events
    }

    async fn is_turned_away(&mut self) -> bool {
        // It would wait for ever if it were let in.
        let end = tokio::time::timeout(Duration::from_secs(2), self.reader.next()).await;
        end.is_ok_and(|event| event.is_none()) && self.reader.retry_ms().is_some_and(|retry| retry >= 500)
    }
}

async fn text(response: http::Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

async fn get(address: SocketAddr, uri: &str) -> (StatusCode, String) {
    let (_client, response) = Client::get(Http::One, address, uri, &[]).await;
    (response.status(), text(response).await)
}

async fn post(address: SocketAddr, uri: &str, body: &str) -> String {
    let (_client, response) = Client::post(address, uri, body).await;
    assert_eq!(response.status(), StatusCode::OK);
    text(response).await
}

/// How many follow a topic, and who.
async fn presence(address: SocketAddr, topic: &str) -> (usize, Vec<String>) {
    let (status, json) = get(address, &format!("/presence?topic={topic}")).await;
    assert_eq!(status, StatusCode::OK);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let subscribers = json["subscribers"].as_array().unwrap();
    let mut users: Vec<_> = subscribers.iter().map(|one| one["user"].as_str().unwrap().to_owned()).collect();
    users.sort();
    (serde_json::from_value(json["count"].clone()).unwrap(), users)
}

/// Waits until there are as many as that, because a server sees a client's end when its turn comes.
async fn until_there_are(count: usize, address: SocketAddr, topic: &str) {
    in_time(async {
        while presence(address, topic).await.0 != count {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn metrics(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let value = |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    lines.map(|line| value(line).expect(line)).collect()
}

#[tokio::test]
async fn the_metrics_are_those_that_are_documented_and_what_has_happened() {
    let example = start(&[]).await;
    let address = example.address;
    let mut stream = Stream::open(address, "news", "ada").await;
    for data in ["one", "two", "three"] {
        post(address, "/publish?topic=news", data).await;
        assert_eq!(in_time(stream.reader.next()).await.unwrap().data, data);
    }
    let rows = include_str!("../src/metrics.rs").lines().filter_map(|line| line.trim().strip_prefix("/// | `"));
    // Those of a log that is shared are there only where one is.
    let rows = rows.filter(|row| !row.starts_with("tidings_feed_"));
    let documented: BTreeSet<_> = rows.map(|row| row.split('`').next().unwrap()).collect();
    let series = metrics(address).await;
    let names: BTreeSet<_> = series.keys().map(|name| name.split('{').next().unwrap()).collect();
    assert_eq!(names, documented);
    for (name, value) in [
        ("tidings_events_published_total", 3.0),
        ("tidings_events_delivered_total", 3.0),
        ("tidings_subscriptions", 1.0),
        ("tidings_topics", 1.0),
        (r#"tidings_subscriptions_opened_total{outcome="fresh"}"#, 1.0),
        (r#"tidings_subscriptions_left_total{reason="application"}"#, 0.0),
        (r#"tidings_lag_subscriptions{le="0"}"#, 1.0),
        (r#"tidings_lag_subscriptions{le="+Inf"}"#, 1.0),
    ] {
        assert!((series[name] - value).abs() < 0.1, "{name}: {}", series[name]);
    }
    assert!(series["tidings_published_bytes_total"] > 3.0 * 20.0);

    drop(stream);
    until_there_are(0, address, "news").await;
    let series = metrics(address).await;
    let left = series[r#"tidings_subscriptions_left_total{reason="disconnected"}"#];
    assert!((left - 1.0).abs() < 0.1 && series["tidings_subscriptions"] < 0.1, "{series:?}");
}

#[tokio::test]
async fn it_keeps_to_its_limits() {
    let example = start(&[]).await;
    let address = example.address;
    // A fourth device of one user takes the place of the first.
    let mut devices = Vec::new();
    for _ in 0..4 {
        devices.push(Stream::open(address, "news", "ada").await);
    }
    let replaced = devices.remove(0).rest().await;
    assert_eq!(replaced, [("tidings-end".to_owned(), r#"{"reason":"replaced"}"#.to_owned())]);
    until_there_are(3, address, "news").await;

    // Of one address there may be twenty, whoever they are.
    for n in 0..17 {
        devices.push(Stream::open(address, "news", &format!("user-{n}")).await);
    }
    assert_eq!(presence(address, "news").await.0, 20);
    assert!(Stream::open(address, "news", "eve").await.is_turned_away().await);
    let refused = metrics(address).await[r#"tidings_subscriptions_refused_total{reason="over_limit"}"#];
    assert!((refused - 1.0).abs() < 0.1, "{refused}");
    devices.pop();
    until_there_are(19, address, "news").await;
    let mut eve = Stream::open(address, "news", "eve").await;
    post(address, "/publish?topic=news", "hello").await;
    assert_eq!(in_time(eve.reader.next()).await.unwrap().data, "hello");

    assert_eq!(get(address, "/events?topic=news").await.0, StatusCode::BAD_REQUEST, "nobody");
    assert_eq!(get(address, "/events?topic=&user=ada").await.0, StatusCode::BAD_REQUEST, "no topic");
}

#[tokio::test]
async fn it_says_who_is_there_and_logs_out_whom_it_is_told() {
    let example = start(&[]).await;
    let address = example.address;
    let mut ada = [Stream::open(address, "news", "ada").await, Stream::open(address, "prices", "ada").await];
    let mut bob = Stream::open(address, "news", "bob").await;
    assert_eq!(presence(address, "news").await, (2, vec!["ada".to_owned(), "bob".to_owned()]));
    assert_eq!(presence(address, "prices").await, (1, vec!["ada".to_owned()]));
    assert_eq!(presence(address, "weather").await, (0, vec![]));

    assert_eq!(post(address, "/logout?user=ada", "").await, "2\n");
    for stream in &mut ada {
        assert_eq!(stream.rest().await, [("tidings-end".to_owned(), r#"{"reason":"logged-out"}"#.to_owned())]);
    }
    until_there_are(1, address, "news").await;
    assert_eq!(post(address, "/logout?user=ada", "").await, "0\n");
    post(address, "/publish?topic=news", "still here").await;
    assert_eq!(in_time(bob.reader.next()).await.unwrap().data, "still here");
}

/// A client that has read the head of its response, and reads no more.
async fn stalled(address: SocketAddr, topic: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let request = format!("GET /events?topic={topic}&user=mallory HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 64];
    stream.read_exact(&mut head).await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200 OK"));
    stream
}

#[tokio::test]
async fn told_to_stop_it_says_goodbye_and_does_not_wait_for_who_does_not_read() {
    let (grace, deadline) = (Duration::from_secs(2), Duration::from_secs(1));
    let mut example = start(&["--grace-ms", "2000", "--deadline-ms", "1000"]).await;
    let address = example.address;
    let mut mallory = stalled(address, "much").await;
    for _ in 0..16 {
        post(address, "/publish?topic=much", &"x".repeat(256 * 1024)).await;
    }
    let mut streams = Vec::new();
    for n in 0..10 {
        streams.push(Stream::open(address, "news", &format!("user-{n}")).await);
    }
    assert_eq!(get(address, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    let start = Instant::now();
    example.tell(Signal::TERM);

    // While the streams are being ended, it answers everybody, but lets nobody in.
    let unhealthy = async {
        while get(address, "/healthz").await.0 != StatusCode::SERVICE_UNAVAILABLE {
            assert!(start.elapsed() < grace, "it should know");
        }
        assert!(Stream::open(address, "news", "late").await.is_turned_away().await);
    };
    let all_end = async {
        let mut ends = Vec::new();
        for stream in &mut streams {
            let [goodbye, end] = &stream.rest().await[..] else { panic!("a goodbye and the end") };
            assert_eq!((goodbye.0.as_str(), goodbye.1.as_str()), ("goodbye", "this server is about to stop"));
            assert_eq!((end.0.as_str(), end.1.as_str()), ("tidings-end", r#"{"reason":"drained"}"#));
            let retry = stream.reader.retry_ms().unwrap();
            assert!((1_000..=10_000).contains(&retry), "{retry}");
            ends.push(start.elapsed());
        }
        assert!(ends.iter().max().unwrap() > &(grace / 2), "they should not all go at once: {ends:?}");
    };
    let (status, (), ()) = tokio::join!(in_time(example.exited()), unhealthy, all_end);
    let took = start.elapsed();
    assert!(status.success());
    // With what a busy machine takes to end a process.
    let longest = grace + deadline + Duration::from_secs(1);
    assert!(took >= grace && took <= longest, "it took {took:?}");
    println!("it took {took:?} of at most {:?}", grace + deadline);

    // The one that did not read has what the kernel had for it, and not the end.
    let mut rest = Vec::new();
    let _ = in_time(mallory.read_to_end(&mut rest)).await;
    assert!(rest.len() < 1024 * 1024 && !rest.windows(7).any(|text| text == b"goodbye"), "{}", rest.len());
}

#[tokio::test]
async fn with_nobody_there_it_stops_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut example = start(&[]).await;
        assert_eq!(get(example.address, "/healthz").await.0, StatusCode::OK);
        let start = Instant::now();
        example.tell(signal);
        assert!(in_time(example.exited()).await.success());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
