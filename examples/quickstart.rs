//! A page that follows a topic, and never misses an event: in memory, with axum.
//!
//! ```text
//! cargo run --example quickstart                    # http://127.0.0.1:3000
//! cargo run --example quickstart -- --port 8080     # or another port; 0 picks a free one
//! ```
//!
//! Open the address in a browser: publish, cut the connection, publish on, and watch the page catch up. Or use curl:
//!
//! ```text
//! curl -N http://127.0.0.1:3000/events
//! curl http://127.0.0.1:3000/publish -d 'Hello'     # in another terminal; answers the event's id
//! curl -N -H 'Last-Event-ID: <id>' http://127.0.0.1:3000/events     # what came after that event, and goes on
//! ```

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{Html, Response},
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use std::{env, error::Error, future::ready, process::ExitCode, time::Duration};
use tidings::{CursorMoves, Event, EventType, Hub, KeepAlive, Topic};
use tokio::{net::TcpListener, sync::watch, time::Instant};

const NEWS: Topic = Topic::from_static("news");

#[derive(Clone)]
struct App {
    hub: Hub,
    outage: watch::Sender<Instant>,
}

fn app() -> Router {
    let hub = Hub::builder()
        // Both are short for the demonstration: the defaults are 15 and 3 seconds.
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(2)).event(EventType::from_static("heartbeat")))
        .retry(Duration::from_secs(1))
        // Scripts cannot see the default, a block with nothing but an id. This page's watchdog must always know the id.
        .cursor_moves(CursorMoves::Named(EventType::from_static("cursor")))
        // The page says that it is there, and is ended if it does not (feature `client-heartbeats`). Hidden pages run their
        // timers once a minute, so a shorter time than this ends them again and again.
        .client_heartbeats(Duration::from_secs(150))
        .build();
    let outage = watch::Sender::new(Instant::now());
    let heartbeats = hub.heartbeat_handler();

    // Everyone may follow the news. With `hub.handler(..)`, an application looks at the request and says who may follow
    // what.
    Router::new()
        .route_service("/events", hub.handler_for(NEWS))
        .route_layer(middleware::from_fn_with_state(outage.clone(), cuttable))
        .route_service("/heartbeat", heartbeats)
        .route("/", get(Html(include_str!("quickstart.html"))))
        .route("/publish", post(publish))
        .route("/cut", post(cut))
        .with_state(App { hub, outage })
}

/// Publishes the body of the request as one event, and answers its id.
async fn publish(State(app): State<App>, text: String) -> Result<String, (StatusCode, String)> {
    match app.hub.publish(NEWS, Event::new().data(text)).await {
        Ok(id) => Ok(format!("{id}\n")),
        Err(error) if error.is_too_large() => Err((StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n"))),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))),
    }
}

#[derive(Deserialize)]
struct Cut {
    #[serde(default)]
    seconds: u8,
}

/// Only for the demonstration: cuts the connections of all who follow, and lets nobody back for some seconds.
async fn cut(State(app): State<App>, Query(Cut { seconds }): Query<Cut>) {
    app.outage.send_replace(Instant::now() + Duration::from_secs(seconds.into()));
}

/// Only for the demonstration: a body that fails in the middle is, for the client, a connection that was lost.
async fn cuttable(State(outage): State<watch::Sender<Instant>>, request: Request, next: Next) -> Response {
    let mut outage = outage.subscribe();
    let lost = async move {
        if *outage.borrow_and_update() <= Instant::now() {
            let _ = outage.changed().await;
        }
    };
    let failure = stream::once(ready(Err(axum::Error::new("the connection was cut"))));
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(lost).chain(failure)))
}

fn port() -> Result<u16, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(3000),
        ["--port", port] => port.parse().map_err(|_| format!("not a port: {port}").into()),
        _ => Err("usage: quickstart [--port PORT]".into()),
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{port}: {error}"))?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app()).await?;
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
