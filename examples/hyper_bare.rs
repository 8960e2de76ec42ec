//! A hub on bare hyper, without axum: what is published to one topic is streamed to everyone who asks.
//!
//! ```sh
//! cargo run --example hyper_bare --no-default-features
//! curl -N localhost:3000/events                             # stays open; shows an id with every event
//! curl -d 'hello' localhost:3000/publish                    # answers the id of the event
//! curl -d 'world' localhost:3000/publish
//! curl -N -H 'Last-Event-ID: <id>' localhost:3000/events    # what was published after that id, then what follows
//! curl -N --http2-prior-knowledge localhost:3000/events
//! ```
//!
//! `--port` chooses another port; 0 takes a free one.

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Limited};
use hyper::{
    body::Incoming,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{convert::Infallible, error::Error, time::Duration};
use tidings::{Event, Hub, Topic};
use tokio::net::TcpListener;

const NEWS: Topic = Topic::from_static("news");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(("127.0.0.1", port()?)).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let hub = Hub::new();
    // With `hub.handler(..)`, an application looks at the request and says what its client may follow.
    let events = hub.handler_for(NEWS);
    let service = service_fn(move |request: Request<Incoming>| {
        let (hub, events) = (hub.clone(), events.clone());
        async move {
            let response = match (request.method(), request.uri().path()) {
                (_, "/events") => {
                    let Ok(response) = events.call(request).await;
                    response.map(Either::Left)
                }
                (&Method::POST, "/publish") => publish(&hub, request).await.map(Either::Right),
                _ => status(StatusCode::NOT_FOUND).map(Either::Right),
            };
            Ok::<_, Infallible>(response)
        }
    });

    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Most often too many open files: some will be closed.
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Without this the kernel holds back an event until the client has acknowledged the one before.
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        tokio::spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new());
            // It fails when a client goes away, which clients do.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Publishes the body as one event, and answers its id.
async fn publish(hub: &Hub, request: Request<Incoming>) -> Response<String> {
    let Ok(body) = Limited::new(request.into_body(), 64 * 1024).collect().await else {
        return status(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let body = body.to_bytes();
    let Ok(text) = std::str::from_utf8(&body) else { return status(StatusCode::BAD_REQUEST) };
    match hub.publish(NEWS, Event::new().data(text)).await {
        Ok(id) => Response::new(format!("{id}\n")),
        Err(_) => status(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn status(status: StatusCode) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = status;
    response
}

fn port() -> Result<u16, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [] => Ok(3000),
        [flag, port] if flag == "--port" => port.parse().map_err(|error| format!("--port {port:?}: {error}").into()),
        _ => Err("usage: hyper_bare [--port PORT]".into()),
    }
}
