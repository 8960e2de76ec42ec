//! A server for load tests: it publishes timestamped events at a given pace to everyone who listens.
//!
//! ```sh
//! cargo run --release --example bench_server -- --port 3000
//! curl -N 'localhost:3000/events?topic=bench'
//! curl -X POST 'localhost:3000/publish?n=1000&size=128&rate=50'
//! curl localhost:3000/stats
//! ```
//!
//! | argument | default | |
//! | --- | --- | --- |
//! | `--host ADDRESS` | 127.0.0.1 | where to listen |
//! | `--port PORT` | 3000 | 0 takes a free one |
//! | `--via hyper\|axum` | hyper | what serves HTTP; both take HTTP/1.1, and HTTP/2 with prior knowledge |
//! | `--store ring\|durable\|redis` | ring | what keeps the log |
//! | `--path DIR` | none | with `durable`: its folder |
//! | `--sync-ms MS` | 0 | with `durable`: how often it syncs what is acknowledged; 0 is before it is |
//! | `--redis-url URL` | `redis://127.0.0.1/` | with `redis`: where; its log is called `bench`, and shared by all that are given the same |
//! | `--window EVENTS` | 1024 | kept ready to be sent, for each topic |
//! | `--retain EVENTS` | 10000 | kept for those who come back, for each topic |
//! | `--keep-alive-ms MS` | 15000 | the heartbeats' interval; 0 for none |
//! | `--gap report\|snapshot\|end` | report | what becomes of a subscription after a gap; a snapshot is one event of type `snapshot` |
//! | `--lag-budget EVENTS` | none | how far a subscription may fall behind before it is ended |
//! | `--write-deadline-ms MS` | none | connections are served through `tidings::net`, and lose a client that takes nothing for so long |
//! | `--dead-peer-ms MS` | 30000 | with it: how long a client may leave unanswered what it is sent |
//! | `--max SUBSCRIPTIONS` | none | how many there may be |
//! | `--lifetime-ms MS` | none | how long each may stay, of which 80 to 100 % are drawn |
//! | `--grace-ms MS` | 2000 | over how long a time the streams are ended after SIGTERM |
//! | `--deadline-ms MS` | 2000 | how long after that the last ones are waited for, and their connections cut where there is a write deadline |
//! | `--retry-ms LEAST-MOST` | 1000-10000 | after how long the clients come back then |
//! | `--workers THREADS` | 1 | of the runtime |
//!
//! After SIGTERM, streams get an event of type `goodbye`, and what became of them is printed as JSON.
//!
//! | request | |
//! | --- | --- |
//! | `GET /events` | the events of `topic` (any number of times; default: `bench`); with `replay=all`, a client that has no last id begins with all that is held |
//! | `POST /publish` | publishes the body to `topic` as one event of type `update`, and answers its id |
//! | `POST /publish?n=N` | publishes N events of `size` bytes (default: 128) in the background, `rate` a second (default: 0, as fast as it goes), `burst` at a time (default: 1); their data begins with `CLOCK_MONOTONIC` in nanoseconds, as 16 hexadecimal digits |
//! | `POST /finish` | finishes `topic`, and answers the id of the end |
//! | `GET /stats` | what is known, as JSON |

use axum::{
    Router,
    routing::{any, get, post},
    serve::ListenerExt as _,
};
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts};
use http_body_util::{BodyExt as _, Either, Limited};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::{http1, http2},
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::graceful::{GracefulShutdown, Watcher},
};
use percent_encoding::percent_decode_str;
use pin_project_lite::pin_project;
use rustix::time::{ClockId, clock_gettime};
use std::{
    borrow::Cow,
    convert::Infallible,
    error::Error,
    fmt,
    future::{Ready, ready},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU64, NonZeroUsize},
    ops::RangeInclusive,
    path::PathBuf,
    pin::{Pin, pin},
    process::ExitCode,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tidings::{
    Drain, Event, EventType, GapPolicy, HandlerBody, Hub, KeepAlive, LagBudget, PublishError, Refusal, Snapshots,
    Start, Stats, Subscription, Topic, Topics,
    net::{Connections, MakeWithPeer},
    replay::{Cursor, Durable, RedisStore, Ring},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

const DEFAULT_TOPIC: Topic = Topic::from_static("bench");

/// Load tests connect thousands at once; the kernel may have a lower limit of its own.
const BACKLOG: u32 = 4096;

/// The data of one event. The hub refuses events of more than 1 MiB, of which a little is not data.
const SIZES: RangeInclusive<usize> = 16..=1_000_000;

/// One event a nanosecond.
const MAX_RATE: u64 = 1_000_000_000;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bench_server: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(options.workers.get()).enable_all().build()?;
    runtime.block_on(async {
        let listener = options.listen()?;
        println!("listening on http://{}", listener.local_addr()?);
        let bench = Arc::new(Bench::new(options).await?);
        let draining = Draining::new(options, bench.hub.clone());
        // On a worker, not on this thread: what is allocated for a connection then comes from one heap.
        let served = match options.via {
            Via::Hyper => tokio::spawn(serve_with_hyper(bench, listener, draining)),
            Via::Axum => tokio::spawn(serve_with_axum(bench, listener, draining)),
        };
        served.await?
    })
}

struct Options {
    host: IpAddr,
    port: u16,
    via: Via,
    store: Store,
    path: Option<PathBuf>,
    sync: Duration,
    redis_url: String,
    window: usize,
    retain: usize,
    keep_alive: Duration,
    gap: OnGap,
    lag_budget: Option<u64>,
    write_deadline: Option<Duration>,
    dead_peer: Duration,
    max: Option<usize>,
    lifetime: Option<Duration>,
    drain: Drain,
    workers: NonZeroUsize,
}

#[derive(Clone, Copy)]
enum Via {
    Hyper,
    Axum,
}

#[derive(Clone, Copy)]
enum OnGap {
    Report,
    Snapshot,
    End,
}

#[derive(Clone, Copy)]
enum Store {
    Ring,
    Durable,
    Redis,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 3000,
            via: Via::Hyper,
            store: Store::Ring,
            path: None,
            sync: Duration::ZERO,
            redis_url: "redis://127.0.0.1/".to_owned(),
            window: 1024,
            retain: 10_000,
            keep_alive: Duration::from_secs(15),
            gap: OnGap::Report,
            lag_budget: None,
            write_deadline: None,
            dead_peer: Duration::from_secs(30),
            max: None,
            lifetime: None,
            drain: Drain::new()
                .grace(Duration::from_secs(2))
                .deadline(Duration::from_secs(2))
                .goodbye(Event::new().event_type(EventType::from_static("goodbye")).data("")),
            workers: NonZeroUsize::MIN,
        };
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--host" => options.host = parsed(&name, &value()?)?,
                "--port" => options.port = parsed(&name, &value()?)?,
                "--via" => options.via = one_of(&name, &value()?, &[("hyper", Via::Hyper), ("axum", Via::Axum)])?,
                "--store" => {
                    let choices = [("ring", Store::Ring), ("durable", Store::Durable), ("redis", Store::Redis)];
                    options.store = one_of(&name, &value()?, &choices)?;
                }
                "--path" => options.path = Some(value()?.into()),
                "--sync-ms" => options.sync = ms(&name, &value()?)?,
                "--redis-url" => options.redis_url = value()?,
                "--window" => options.window = parsed(&name, &value()?)?,
                "--retain" => options.retain = parsed(&name, &value()?)?,
                "--keep-alive-ms" => options.keep_alive = ms(&name, &value()?)?,
                "--gap" => {
                    let choices = [("report", OnGap::Report), ("snapshot", OnGap::Snapshot), ("end", OnGap::End)];
                    options.gap = one_of(&name, &value()?, &choices)?;
                }
                "--lag-budget" => options.lag_budget = Some(parsed(&name, &value()?)?),
                "--write-deadline-ms" => options.write_deadline = Some(ms(&name, &value()?)?),
                "--dead-peer-ms" => options.dead_peer = ms(&name, &value()?)?,
                "--max" => options.max = Some(parsed(&name, &value()?)?),
                "--lifetime-ms" => options.lifetime = Some(ms(&name, &value()?)?),
                "--grace-ms" => options.drain = options.drain.grace(ms(&name, &value()?)?),
                "--deadline-ms" => options.drain = options.drain.deadline(ms(&name, &value()?)?),
                "--retry-ms" => {
                    let range = value()?;
                    let (least, most) =
                        range.split_once('-').ok_or_else(|| format!("{name} {range:?}: expected A-B"))?;
                    options.drain = options.drain.retry(ms(&name, least)?..=ms(&name, most)?);
                }
                "--workers" => options.workers = parsed(&name, &value()?)?,
                _ => return Err(format!("unknown argument {name:?}")),
            }
        }
        Ok(options)
    }

    async fn hub(&self) -> io::Result<Hub> {
        let keep_alive = match self.keep_alive {
            Duration::ZERO => KeepAlive::off(),
            interval => KeepAlive::new().interval(interval),
        };
        // Only the counts are to bound what is kept.
        let mut hub = Hub::builder().window_events(self.window).window_bytes(usize::MAX).keep_alive(keep_alive);
        hub = hub.on_gap(match self.gap {
            OnGap::Report => GapPolicy::Report,
            OnGap::Snapshot => GapPolicy::Snapshot(Snapshots::new(|_| async { Ok::<_, Infallible>(vec![snapshot()]) })),
            OnGap::End => GapPolicy::End,
        });
        if let Some(events) = self.lag_budget {
            hub = hub.lag_budget(LagBudget::new().events(events));
        }
        if let Some(most) = self.max {
            hub = hub.max_subscriptions(most);
        }
        if let Some(lifetime) = self.lifetime {
            hub = hub.max_lifetime(lifetime);
        }
        match self.store {
            Store::Ring => {
                let ring = Ring::new().events_per_topic(self.retain);
                Ok(hub.ring(ring.bytes_per_topic(usize::MAX).total_bytes(usize::MAX).max_age(Duration::MAX)).build())
            }
            Store::Durable => {
                let path = self.path.as_ref().ok_or_else(|| io::Error::other("--store durable needs --path"))?;
                let log = Durable::builder().events_per_topic(self.retain).max_age(Duration::MAX);
                let mut log = log.bytes_per_topic(usize::MAX).total_bytes(usize::MAX);
                if !self.sync.is_zero() {
                    log = log.sync_every(self.sync);
                }
                let log = log.open(path).await.map_err(io::Error::other)?;
                hub.open(log).await.map_err(io::Error::other)
            }
            Store::Redis => {
                let store = RedisStore::builder(&self.redis_url).name("bench").events_per_topic(self.retain);
                let store = store.bytes_per_topic(usize::MAX).total_bytes(usize::MAX).max_age(Duration::MAX);
                let opened = async { hub.open(store.open().await?).await };
                opened.await.map_err(|error| {
                    io::Error::other(format!(
                        "{error}: {}",
                        error.source().map(ToString::to_string).unwrap_or_default()
                    ))
                })
            }
        }
    }

    fn connections(&self) -> Option<Connections> {
        let connections = Connections::new().write_deadline(self.write_deadline?);
        Some(connections.dead_peer_timeout(self.dead_peer))
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let socket = if self.host.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(self.host, self.port))?;
        socket.listen(BACKLOG)
    }
}

fn parsed<T: FromStr<Err: fmt::Display>>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("{name} {value:?}: {error}"))
}

fn ms(name: &str, value: &str) -> Result<Duration, String> {
    parsed(name, value).map(Duration::from_millis)
}

fn one_of<T: Copy>(name: &str, value: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let chosen = choices.iter().find(|(choice, _)| *choice == value);
    chosen.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let choices: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
        format!("{name} {value:?}: expected {}", choices.join(" or "))
    })
}

async fn serve_with_hyper(bench: Arc<Bench>, listener: TcpListener, draining: Draining) -> io::Result<()> {
    let events = bench.hub.handler(bench.subscriptions());
    // hyper keeps the room of the future that answers for as long as the connection lives: so it is boxed. The handler is
    // called at once, because hyper needs another buffer if the request is still there when it reads on.
    let service = Arc::new(service_fn(move |request: Request<Incoming>| {
        let bench = Arc::clone(&bench);
        if request.uri().path() == "/events" {
            let events = events.call(request);
            return Box::pin(async move {
                let Ok(response) = events.await;
                Ok(response.map(|body| Either::Left(bench.counted(body))))
            }) as Answer;
        }
        Box::pin(async move {
            let response = match (request.method(), request.uri().path()) {
                (&Method::POST, "/publish") => bench.publish(request).await,
                (&Method::POST, "/finish") => bench.finish(request.uri()).await,
                (&Method::GET, "/stats") => bench.stats(),
                (_, "/publish" | "/finish" | "/stats") => text(StatusCode::METHOD_NOT_ALLOWED, ""),
                _ => text(StatusCode::NOT_FOUND, ""),
            };
            Ok(response.map(Either::Right))
        })
    }));
    let graceful = GracefulShutdown::new();
    let connections = draining.connections.clone();
    let mut drained = pin!(draining.drained());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut drained => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("bench_server: accept: {error}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (service, watcher, connections) = (Arc::clone(&service), graceful.watcher(), connections.clone());
        tokio::spawn(async move {
            // hyper-util's `auto` would do, but the read with which it finds out costs each connection 8 KiB for good.
            let mut start = [0; 3];
            let http2 = matches!(stream.peek(&mut start).await, Ok(3)) && start == *b"PRI";
            match connections {
                Some(connections) => {
                    let Ok(connection) = connections.accept(stream) else { return };
                    let service = connection.with_peer(service);
                    serve_connection(connection, service, http2, watcher).await;
                }
                None => serve_connection(stream, service, http2, watcher).await,
            }
        });
    }
    graceful.shutdown().await;
    Ok(())
}

/// It fails when its client goes away. Boxed as it is made: the future of an `async fn` would have room for it twice.
fn serve_connection<IO, S>(io: IO, service: S, http2: bool, watcher: Watcher) -> BoxFuture<'static, ()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Either<Counted<HandlerBody>, String>>,
            Error = Infallible,
            Future: Send,
        > + Send
        + 'static,
{
    let io = TokioIo::new(io);
    if http2 {
        let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        watcher.watch(connection).map(drop).boxed()
    } else {
        watcher.watch(http1::Builder::new().serve_connection(io, service)).map(drop).boxed()
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Either<Counted<HandlerBody>, String>>, Infallible>> + Send>>;

async fn serve_with_axum(bench: Arc<Bench>, listener: TcpListener, draining: Draining) -> io::Result<()> {
    let events = bench.hub.handler(bench.subscriptions());
    let (opening, publishing, finishing) = (Arc::clone(&bench), Arc::clone(&bench), Arc::clone(&bench));
    let app = Router::new()
        .route(
            "/events",
            any(async move |request: axum::extract::Request| {
                let Ok(response) = events.call(request).await;
                response.map(|body| opening.counted(body))
            }),
        )
        .route("/publish", post(async move |request: axum::extract::Request| publishing.publish(request).await))
        .route("/finish", post(async move |uri: Uri| finishing.finish(&uri).await))
        .route("/stats", get(async move || bench.stats()));
    if let Some(connections) = draining.connections.clone() {
        let listener = connections.listen(listener)?;
        return axum::serve(listener, MakeWithPeer::new(app)).with_graceful_shutdown(draining.drained()).await;
    }
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).with_graceful_shutdown(draining.drained()).await
}

/// What happens after SIGTERM.
struct Draining {
    hub: Hub,
    drain: Drain,
    connections: Option<Connections>,
}

impl Draining {
    fn new(options: &Options, hub: Hub) -> Self {
        Self { hub, drain: options.drain.clone(), connections: options.connections() }
    }

    /// Waits for SIGTERM, and until the streams are ended.
    async fn drained(self) {
        let Self { hub, drain, connections } = self;
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => drop(terminated.recv().await),
            // Then it ends as it would without this.
            Err(_) => std::future::pending().await,
        }
        let begun = Instant::now();
        let drained = match &connections {
            Some(connections) => connections.drain(&hub, drain).await,
            None => hub.drain(drain).await,
        };
        let (ended, remaining, seconds) = (drained.ended, drained.remaining, begun.elapsed().as_secs_f64());
        println!(
            r#"{{"ended":{ended},"remaining":{remaining},"seconds":{seconds:.3},"left":{{{}}}}}"#,
            left(&hub.stats())
        );
    }
}

struct Bench {
    hub: Hub,
    started: Instant,
    published: AtomicU64,
    /// Held once here and once by each open body.
    open: Arc<()>,
}

impl Bench {
    async fn new(options: &Options) -> io::Result<Self> {
        let hub = options.hub().await?;
        Ok(Self { hub, started: Instant::now(), published: AtomicU64::new(0), open: Arc::new(()) })
    }

    /// What a request for events is to follow.
    fn subscriptions(&self) -> impl Fn(Parts) -> Ready<Result<Subscription, Refusal>> + Send + Sync + use<> {
        let hub = self.hub.clone();
        move |parts| ready(subscription(&hub, &parts.uri).map_err(|error| text(StatusCode::BAD_REQUEST, error).into()))
    }

    fn counted<B>(&self, body: B) -> Counted<B> {
        Counted { body, open: Arc::clone(&self.open) }
    }

    async fn publish<B>(self: &Arc<Self>, request: Request<B>) -> Response<String>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let (topic, load) = match publication(request.uri()) {
            Ok(publication) => publication,
            Err(error) => return text(StatusCode::BAD_REQUEST, error),
        };
        if let Some(load) = load {
            tokio::spawn(load.run(Arc::clone(self), topic));
            return text(StatusCode::ACCEPTED, "");
        }
        let body = match Limited::new(request.into_body(), *SIZES.end()).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
        };
        let Ok(data) = std::str::from_utf8(&body) else {
            return text(StatusCode::BAD_REQUEST, "the body is not UTF-8");
        };
        match self.publish_update(&topic, data).await {
            Ok(id) => text(StatusCode::OK, id.to_string()),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }

    async fn finish(&self, uri: &Uri) -> Response<String> {
        let topic = match publication(uri) {
            Ok((topic, None)) => topic,
            Ok((_, Some(_))) => return text(StatusCode::BAD_REQUEST, "only topic goes here"),
            Err(error) => return text(StatusCode::BAD_REQUEST, error),
        };
        match self.hub.finish(topic, None).await {
            Ok(id) => text(StatusCode::OK, id.to_string()),
            Err(error) if error.is_finished() => text(StatusCode::CONFLICT, error.to_string()),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }

    async fn publish_update(&self, topic: &Topic, data: &str) -> Result<Cursor, PublishError> {
        let event = Event::new().event_type(EventType::from_static("update")).data(data);
        let id = self.hub.publish(topic, event).await?;
        self.published.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    }

    fn stats(&self) -> Response<String> {
        let uptime = self.started.elapsed().as_secs_f64();
        let published = self.published.load(Ordering::Relaxed);
        let open = Arc::strong_count(&self.open) - 1;
        let stats = self.hub.stats();
        let json = format!(
            r#"{{"uptime_s":{uptime:.3},"published":{published},"open":{open},"subscriptions":{},"delivered":{},"refused":{},"lag":{},"behind":{},"left":{{{}}}}}"#,
            stats.subscriptions,
            stats.delivered.events,
            stats.refused.over_limit + stats.refused.draining,
            stats.lag.max,
            // By more than a thousand events.
            stats.lag.subscriptions[4..].iter().sum::<usize>(),
            left(&stats),
        );
        let mut response = text(StatusCode::OK, json);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// How subscriptions have left, as the inside of a JSON object.
fn left(stats: &Stats) -> String {
    stats.left.iter().map(|(reason, count)| format!(r#""{reason}":{count}"#)).collect::<Vec<_>>().join(",")
}

/// There is no state behind these events: this stands for it.
fn snapshot() -> Event {
    Event::new().event_type(EventType::from_static("snapshot")).data("")
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<String> {
    let mut text = text.into();
    if !text.is_empty() {
        text.push('\n');
    }
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
}

fn subscription(hub: &Hub, uri: &Uri) -> Result<Subscription, String> {
    let mut topics = Vec::new();
    let mut start = Start::Now;
    for (name, value) in parameters(uri)? {
        match name.as_str() {
            "topic" => topics.push(parsed(&name, &value)?),
            "replay" => start = one_of(&name, &value, &[("all", Start::Earliest)])?,
            // The handler reads it.
            "lastEventId" => {}
            _ => return Err(format!("unknown parameter {name:?}")),
        }
    }
    let topics = if topics.is_empty() { vec![DEFAULT_TOPIC] } else { topics };
    let topics = Topics::new(topics).map_err(|error| error.to_string())?;
    Ok(hub.subscribe(topics).start(start))
}

fn publication(uri: &Uri) -> Result<(Topic, Option<Load>), String> {
    let mut topic = None;
    let (mut n, mut size, mut rate, mut burst) = (None, None, None, None);
    for (name, value) in parameters(uri)? {
        match name.as_str() {
            "topic" => topic = Some(parsed(&name, &value)?),
            "n" => n = Some(parsed(&name, &value)?),
            "size" => size = Some(parsed(&name, &value)?),
            "rate" => rate = Some(parsed(&name, &value)?),
            "burst" => burst = Some(parsed::<NonZeroU64>(&name, &value)?),
            _ => return Err(format!("unknown parameter {name:?}")),
        }
    }
    let topic = topic.unwrap_or(DEFAULT_TOPIC);
    let Some(n) = n else {
        let only_body = size.is_none() && rate.is_none() && burst.is_none();
        return if only_body { Ok((topic, None)) } else { Err("size, rate and burst go with n".into()) };
    };
    let load = Load { n, size: size.unwrap_or(128), rate: rate.unwrap_or(0), burst: burst.map_or(1, NonZeroU64::get) };
    if !SIZES.contains(&load.size) {
        return Err(format!("size {}: expected {} to {}", load.size, SIZES.start(), SIZES.end()));
    }
    if load.rate > MAX_RATE {
        return Err(format!("rate {}: expected at most {MAX_RATE}", load.rate));
    }
    Ok((topic, Some(load)))
}

fn parameters(uri: &Uri) -> Result<Vec<(String, String)>, String> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8().map(Cow::into_owned).map_err(|_| format!("{text:?} is not UTF-8"))
    };
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| Ok((decoded(k)?, decoded(v)?))).collect()
}

/// Events to be published in the background.
struct Load {
    n: u64,
    size: usize,
    rate: u64,
    burst: u64,
}

impl Load {
    async fn run(self, bench: Arc<Bench>, topic: Topic) {
        let filler = "x".repeat(self.size - SIZES.start());
        let start = Instant::now();
        let mut next = 0;
        while next < self.n {
            match next.checked_div(self.rate) {
                Some(seconds) => {
                    let nanos = next % self.rate * MAX_RATE / self.rate;
                    sleep_until(start + Duration::from_secs(seconds) + Duration::from_nanos(nanos)).await;
                }
                // Publishing to the ring never waits, and would keep the subscribers' thread to itself.
                None => tokio::task::yield_now().await,
            }
            let end = self.n.min(next.saturating_add(self.burst));
            for _ in next..end {
                let data = format!("{:016x}{filler}", monotonic().as_nanos());
                if let Err(error) = bench.publish_update(&topic, &data).await {
                    eprintln!("bench_server: publish: {error}");
                    return;
                }
            }
            next = end;
        }
    }
}

/// The clock that a client on the same machine can read too.
fn monotonic() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap_or_default()
}

pin_project! {
    /// A body that counts as open until it is dropped.
    struct Counted<B> {
        #[pin]
        body: B,
        open: Arc<()>,
    }
}

impl<B: Body> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
