//! A server as it could run in production: it says who is there and how it does, keeps to limits, and stops in time.
//!
//! ```text
//! cargo run --example operate                       # http://127.0.0.1:3000
//! cargo run --example operate -- --port 8080        # or another port; 0 picks a free one
//! ```
//!
//! `--grace-ms 10000` is over how long a time the streams are ended when it is to stop, and `--deadline-ms 5000` how long
//! after that it waits for those who do not read.
//!
//! ```text
//! curl -N 'http://127.0.0.1:3000/events?topic=news&user=ada'        # in one terminal
//! curl 'http://127.0.0.1:3000/publish?topic=news' -d 'Hello'        # in another; answers the event's id
//! curl 'http://127.0.0.1:3000/presence?topic=news'                  # who follows it
//! curl -X POST 'http://127.0.0.1:3000/logout?user=ada'              # ends her streams; an EventSource would come back
//! curl http://127.0.0.1:3000/metrics                                # for Prometheus
//! curl -i http://127.0.0.1:3000/healthz                             # 503 once it is to stop
//! kill -TERM "$(pgrep -x operate)"                                  # or ctrl-c
//! ```
//!
//! Who comes and goes is on stderr; `RUST_LOG=warn` leaves only what goes wrong.
//!
//! The words of a query stand in for what an application knows of its users: here anybody can be anybody. All but the
//! events is for those who operate it, and belongs on an address of its own, or behind authentication.

use axum::{
    Json, Router,
    extract::{ConnectInfo, Query, State},
    http::{StatusCode, header, request::Parts},
    response::IntoResponse,
    routing::{get, post},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, env, error::Error, io, net::SocketAddr, process::ExitCode, time::Duration};
use tidings::{
    Drain, EndReason, Event, EventType, Hub, Limit, Refusal, Subscription, Topic, TopicError,
    net::{Connections, MakeWithPeer},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

const LOGGED_OUT: EndReason = EndReason::application("logged-out");
const GOODBYE: EventType = EventType::from_static("goodbye");

#[derive(Clone)]
struct App {
    hub: Hub,
    prometheus: PrometheusHandle,
}

impl App {
    fn new(prometheus: PrometheusHandle) -> Self {
        let hub = Hub::builder()
            // What there is memory and file descriptors for.
            .max_subscriptions(10_000)
            // Everybody is authorised anew within the hour, and may come to another server.
            .max_lifetime(Duration::from_secs(60 * 60))
            // Pages close their EventSource when they hear that it was replaced or logged out.
            .announce_ends()
            .build();
        Self { hub, prometheus }
    }

    fn router(self) -> Router {
        let hub = self.hub.clone();
        let events = self.hub.handler(move |request| {
            let subscription = subscribe(&hub, &request);
            async move { subscription }
        });
        Router::new()
            .route_service("/events", events)
            .route("/publish", post(publish))
            .route("/presence", get(presence))
            .route("/logout", post(log_out))
            .route("/metrics", get(metrics))
            .route("/healthz", get(health))
            .with_state(self)
    }
}

#[derive(Deserialize)]
struct Follows {
    topic: String,
    user: String,
}

/// Who follows what, and whether there is room.
fn subscribe(hub: &Hub, request: &Parts) -> Result<Subscription, Refusal> {
    let Query(Follows { topic, user }) = Query::try_from_uri(&request.uri).map_err(|_| StatusCode::BAD_REQUEST)?;
    // Behind a proxy, this is the proxy's address: take the client's from the header that it sets.
    let client = request.extensions.get::<ConnectInfo<SocketAddr>>().ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    let address = client.0.ip();
    Ok(hub
        .subscribe(Topic::new(topic)?)
        .label("user", &user)
        // Three devices, or tabs: a fourth takes the place of the oldest.
        .limit(Limit::per(format!("user {user}"), 3).newest_wins())
        // There may be many users behind one address, but not any number.
        .limit(Limit::per(format!("address {address}"), 20)))
}

#[derive(Deserialize)]
struct Of {
    topic: String,
}

fn no_topic(error: TopicError) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, format!("{error}\n"))
}

/// Publishes the body of the request as one event, and answers its id.
async fn publish(
    State(app): State<App>,
    Query(Of { topic }): Query<Of>,
    text: String,
) -> Result<String, (StatusCode, String)> {
    let topic = Topic::new(topic).map_err(no_topic)?;
    match app.hub.publish(topic, Event::new().data(text)).await {
        Ok(id) => Ok(format!("{id}\n")),
        Err(error) if error.is_too_large() => Err((StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n"))),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))),
    }
}

#[derive(Serialize)]
struct Present {
    count: usize,
    /// The labels of each.
    subscribers: Vec<BTreeMap<String, String>>,
}

/// Who follows a topic.
async fn presence(
    State(app): State<App>,
    Query(Of { topic }): Query<Of>,
) -> Result<Json<Present>, (StatusCode, String)> {
    let there = app.hub.presence(Topic::new(topic).map_err(no_topic)?).subscribers();
    let labels = there.iter().map(|one| one.labels().map(|(name, value)| (name.into(), value.into())).collect());
    Ok(Json(Present { count: there.len(), subscribers: labels.collect() }))
}

#[derive(Deserialize)]
struct Who {
    user: String,
}

/// Ends all streams of a user, and answers how many there were.
async fn log_out(State(app): State<App>, Query(Who { user }): Query<Who>) -> String {
    let ended = app.hub.end_where(|subscriber| subscriber.label("user") == Some(&user), LOGGED_OUT);
    format!("{ended}\n")
}

/// What Prometheus asks for. The hub's numbers are looked at now, and not wherever one changes.
async fn metrics(State(app): State<App>) -> impl IntoResponse {
    app.hub.stats().record();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.prometheus.render())
}

/// For the load balancer: while streams are being ended, nobody new is to come here.
async fn health(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.hub.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "it is about to stop\n");
    }
    (StatusCode::OK, "ok\n")
}

/// Waits until somebody wants the server to stop.
async fn told_to_stop() -> io::Result<()> {
    // What Kubernetes, systemd and Docker send.
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}

struct Options {
    port: u16,
    grace: Duration,
    deadline: Duration,
}

impl Options {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        let mut options = Self { port: 3000, grace: Duration::from_secs(10), deadline: Duration::from_secs(5) };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().unwrap_or_default();
            let wrong = |error| format!("{name} {value}: {error}");
            match name.as_str() {
                "--port" => options.port = value.parse().map_err(wrong)?,
                "--grace-ms" => options.grace = Duration::from_millis(value.parse().map_err(wrong)?),
                "--deadline-ms" => options.deadline = Duration::from_millis(value.parse().map_err(wrong)?),
                _ => return Err("usage: operate [--port PORT] [--grace-ms MS] [--deadline-ms MS]".into()),
            }
        }
        Ok(options)
    }

    fn drain(&self) -> Drain {
        Drain::new()
            .grace(self.grace)
            .deadline(self.deadline)
            .goodbye(Event::new().event_type(GOODBYE).data("this server is about to stop"))
            .retry(Duration::from_secs(1)..=Duration::from_secs(10))
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let filter = env::var("RUST_LOG").unwrap_or_else(|_| "info,tidings=debug,operate=debug".to_owned());
    let stderr = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(stderr).with(filter.parse::<Targets>()?).init();
    let app = App::new(PrometheusBuilder::new().install_recorder()?);

    let listener = TcpListener::bind(("127.0.0.1", options.port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{}: {error}", options.port))?;
    println!("http://{}", listener.local_addr()?);
    // Without them, one client that has stopped reading would hold up the end, and one that vanished would stay for long.
    let connections = Connections::new();
    let listener = connections.listen(listener)?;

    let hub = app.hub.clone();
    let drained = async move {
        if let Err(error) = told_to_stop().await {
            tracing::error!(%error, "signals cannot be heard");
        }
        tracing::info!(subscriptions = hub.stats().subscriptions, "stopping");
        let drained = connections.drain(&hub, options.drain()).await;
        tracing::info!(ended = drained.ended, cut = drained.remaining, "all streams have ended");
    };
    let router = app.router().into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, MakeWithPeer::new(router)).with_graceful_shutdown(drained).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = serve().await {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
