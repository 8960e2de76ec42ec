//! Two nodes on one Redis, and a page that goes on at the other when one is killed.
//!
//! ```text
//! redis-server --save ''                               # or: docker run -p 6379:6379 redis
//! cargo run --example multi_node                       # in another terminal: http://127.0.0.1:3000
//! ```
//!
//! `--redis redis://user:password@host:6379/` is another server, and `--port 8080` another port; 0 picks a free one.
//!
//! Open the address in a browser. The page follows one of the nodes, and shows who published what. Publish at either, kill
//! the one that the page follows (`kill -9`), publish at the other: the page goes on there, with every event once.
//!
//! Each node is a process of its own, as it would be on a machine of its own. This one starts them, and serves the page: it
//! stands in for whatever does that where they run.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::Html,
    routing::{get, post},
};
use serde::Serialize;
use std::{
    env,
    error::Error,
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};
use tidings::{CursorMoves, Event, EventType, Hub, KeepAlive, Topic, replay::RedisStore};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::Mutex,
};
use tower_http::cors::CorsLayer;

type BoxError = Box<dyn Error + Send + Sync>;

const NEWS: Topic = Topic::from_static("news");

#[derive(Clone)]
struct Node {
    name: String,
    hub: Hub,
}

impl Node {
    /// What every node does: the same log under the same name, a hub over it, and a handler.
    async fn open(name: String, redis: &str) -> Result<Self, BoxError> {
        let store = RedisStore::open(redis, "multi_node").await?;
        let hub = Hub::builder()
            // Both are short for the demonstration: the defaults are 15 and 3 seconds.
            .keep_alive(KeepAlive::new().interval(Duration::from_secs(2)))
            .retry(Duration::from_secs(1))
            // Scripts cannot see the default, a block with nothing but an id, and this page makes a new `EventSource`.
            .cursor_moves(CursorMoves::Named(EventType::from_static("cursor")))
            .open(store)
            .await?;
        Ok(Self { name, hub })
    }

    fn app(self) -> Router {
        Router::new()
            .route_service("/events", self.hub.handler_for(NEWS))
            .route("/publish", post(publish))
            .route("/status", get(status))
            // The page is of another origin.
            .layer(CorsLayer::permissive())
            .with_state(self)
    }
}

#[derive(Serialize)]
struct News {
    node: String,
    text: String,
}

/// Publishes the body of the request as one event, and answers its id.
async fn publish(State(node): State<Node>, text: String) -> Result<String, (StatusCode, String)> {
    let internal = |error: &dyn Error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
    let news = Event::new().json(&News { node: node.name, text }).map_err(|error| internal(&error))?;
    match node.hub.publish(NEWS, news).await {
        Ok(id) => Ok(format!("{id}\n")),
        // Redis is away, and was waited for.
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))),
    }
}

#[derive(Serialize)]
struct Status {
    name: String,
    process: u32,
    subscriptions: usize,
    /// Whether it hears what the others publish.
    connected: bool,
}

async fn status(State(node): State<Node>) -> Json<Status> {
    let stats = node.hub.stats();
    let connected = stats.feed.is_some_and(|feed| feed.connected);
    Json(Status { name: node.name, process: std::process::id(), subscriptions: stats.subscriptions, connected })
}

/// A node's process; it ends with its value.
struct Running {
    name: &'static str,
    port: u16,
    process: Child,
}

impl Running {
    async fn start(name: &'static str, port: u16, redis: &str) -> Result<Self, BoxError> {
        let mut process = Command::new(env::current_exe()?)
            .args(["--node", name, "--port", &port.to_string(), "--redis", redis])
            // By its end, the node knows that nobody needs it any more.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("no output")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let url = line.ok_or_else(|| format!("node {name} did not start"))?;
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok()).ok_or("no port")?;
        Ok(Self { name, port, process })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

#[derive(Clone)]
struct Demonstration {
    redis: Arc<str>,
    nodes: Arc<[Mutex<Running>; 2]>,
}

impl Demonstration {
    async fn page(State(this): State<Self>) -> Html<String> {
        let [one, two] = &*this.nodes;
        let urls = [one.lock().await.url(), two.lock().await.url()];
        Html(include_str!("multi_node.html").replace("[\"NODES\"]", &serde_json::json!(urls).to_string()))
    }

    /// Without a word, as a machine that fails.
    async fn kill(State(this): State<Self>, Path(number): Path<usize>) -> Result<(), StatusCode> {
        let mut node = this.nodes.get(number).ok_or(StatusCode::NOT_FOUND)?.lock().await;
        node.process.kill().await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    }

    async fn start(State(this): State<Self>, Path(number): Path<usize>) -> Result<(), (StatusCode, String)> {
        let mut node = this.nodes.get(number).ok_or((StatusCode::NOT_FOUND, String::new()))?.lock().await;
        let failed = |error: BoxError| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
        // One that is still there has its port.
        let _ = node.process.kill().await;
        *node = Running::start(node.name, node.port, &this.redis).await.map_err(failed)?;
        Ok(())
    }
}

struct Arguments {
    port: u16,
    redis: String,
    node: Option<String>,
}

fn arguments() -> Result<Arguments, BoxError> {
    let mut found = Arguments { port: 3000, redis: "redis://127.0.0.1:6379/".to_owned(), node: None };
    let mut arguments = env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--port" => found.port = value?.parse()?,
            "--redis" => found.redis = value?,
            // How it starts itself.
            "--node" => found.node = Some(value?),
            _ => return Err("usage: multi_node [--port PORT] [--redis URL]".into()),
        }
    }
    Ok(found)
}

async fn serve() -> Result<(), BoxError> {
    let Arguments { port, redis, node } = arguments()?;
    let is_node = node.is_some();
    let app = if let Some(name) = node {
        Node::open(name, &redis).await?.app()
    } else {
        let (one, two) = (Running::start("one", 0, &redis).await?, Running::start("two", 0, &redis).await?);
        let nodes = Arc::new([Mutex::new(one), Mutex::new(two)]);
        Router::new()
            .route("/", get(Demonstration::page))
            .route("/kill/{node}", post(Demonstration::kill))
            .route("/start/{node}", post(Demonstration::start))
            .with_state(Demonstration { redis: redis.into(), nodes })
    };
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{port}: {error}"))?;
    println!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, app) => Ok(served?),
        () = nobody_needs_it(), if is_node => Ok(()),
    }
}

/// Whoever started it is gone.
async fn nobody_needs_it() {
    let _ = tokio::io::stdin().read(&mut [0]).await;
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = serve().await else { return ExitCode::SUCCESS };
    eprint!("{error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}
