//! A store of your own: the log in a `PostgreSQL` database that you have.
//!
//! ```text
//! cargo run --example postgres_store -- --url postgres://user:password@localhost/app   # [--port PORT] [--check]
//!
//! curl -N localhost:3000/events                          # in a second terminal: follow
//! curl localhost:3000/publish -d 'first'                 # in a third: publish; the answer is the event's id
//! ```
//!
//! Then restart this process, or `PostgreSQL`, publish, and follow with the last id that you saw:
//! `curl -N localhost:3000/events -H 'last-event-id: ID'`.
//!
//! `--port 0` takes a free port. `--check` only runs the conformance suite, in schemas of its own that it removes. What
//! the store does and why stands in the crate's page on writing a store.

#[path = "postgres_store/mod.rs"]
mod postgres_store;

use crate::postgres_store::{BoxError, PostgresStore, Retention, check::check};
use axum::{Router, extract::State, http::StatusCode, routing::post};
use std::{future::ready, time::Duration};
use tidings::{Event, Hub, Topic};
use tokio_postgres::Config;

/// Where the log is.
const SCHEMA: &str = "tidings";
const AGE: Duration = Duration::from_secs(24 * 3600);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (mut port, mut url, mut check_only) = (3000, "postgres://postgres@localhost/postgres".to_owned(), false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or("the option needs a value");
        match arg.as_str() {
            "--port" => port = value()?.parse()?,
            "--url" => url = value()?,
            "--check" => check_only = true,
            _ => return Err("usage: postgres_store [--port PORT] [--url URL] [--check]".into()),
        }
    }
    let config: Config = url.parse()?;
    if check_only {
        Box::pin(check(&config)).await?;
        println!("the store passes the conformance suite");
        Ok(())
    } else {
        serve(port, config).await
    }
}

async fn serve(port: u16, config: Config) -> Result<(), BoxError> {
    let retention = Retention { events_per_topic: Some(10_000), ..Retention::default() };
    let store = PostgresStore::open(config, SCHEMA, retention).await?;
    let hub = Hub::builder().open(store.clone()).await?;
    let topic = Topic::new("news")?;

    let followed = topic.clone();
    let events = hub.handler(move |_| ready(followed.clone()));
    let app = Router::new().route_service("/events", events).route("/publish", post(publish)).with_state((hub, topic));

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}");
    println!("the log is in the schema {SCHEMA}");
    println!("follow:  curl -N http://{address}/events");
    println!("publish: curl http://{address}/publish -d 'some text'");
    tokio::select! {
        served = axum::serve(listener, app) => Ok(served?),
        () = prune(&store) => Ok(()),
    }
}

/// Removes what is too old, for as long as it is polled.
async fn prune(store: &PostgresStore) {
    let mut every = tokio::time::interval(Duration::from_secs(60));
    loop {
        every.tick().await;
        if let Err(error) = store.prune(AGE).await {
            eprintln!("nothing was pruned: {error}");
        }
    }
}

async fn publish(State((hub, topic)): State<(Hub, Topic)>, text: String) -> (StatusCode, String) {
    match hub.publish(&topic, Event::new().data(text)).await {
        Ok(id) => (StatusCode::OK, format!("{id}\n")),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
