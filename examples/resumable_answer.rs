//! Answers of a language model that outlive their readers: one topic for each answer, in memory, with axum.
//!
//! ```text
//! cargo run --example resumable_answer                    # http://127.0.0.1:3000
//! cargo run --example resumable_answer -- --port 8080     # or another port; 0 picks a free one
//! ```
//!
//! `--pace-ms 60` is the time that the model takes for a token, and `--patience 60` how many seconds an answer that nobody
//! reads is worked on.
//!
//! Open the address in a browser: ask, and while the answer is being written, reload the page, cut the connection, open a
//! second reader, stop. Or use curl:
//!
//! ```text
//! curl -i http://127.0.0.1:3000/answers -d 'What is a tide?'        # says where the answer's events are
//! curl -N http://127.0.0.1:3000/answers/<answer>/events             # all of it, from its first token, and goes on
//! curl -N http://127.0.0.1:3000/answers/<answer>/events -H 'Last-Event-ID: <id>'      # what came after that event
//! curl -X POST http://127.0.0.1:3000/answers/<answer>/stop
//! ```
//!
//! With the word `fail` in the prompt, the model fails half-way; with the word `panic`, so does the program around it.
//!
//! | event | its data |
//! | --- | --- |
//! | `prompt`, always the first | what was asked |
//! | `message` | the next token of the answer |
//! | `done`, `stopped`, `failed` or `abandoned`, always the last | why, if there is something to say |

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt as _,
};
use futures_util::{StreamExt as _, stream};
use std::{env, error::Error, pin::pin, process::ExitCode, sync::Arc, time::Duration};
use tidings::{Event, EventType, Hub, LastEventId, Producer, PublishError, Start, Subscription, Topic, replay::Ring};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    task::JoinSet,
};

const PROMPT: EventType = EventType::from_static("prompt");
const DONE: EventType = EventType::from_static("done");
const STOPPED: EventType = EventType::from_static("stopped");
// Not `error`: that is the name of what an EventSource dispatches by itself when it loses its connection.
const FAILED: EventType = EventType::from_static("failed");
const ABANDONED: EventType = EventType::from_static("abandoned");

#[derive(Clone)]
struct App {
    hub: Hub,
    /// The answers that are being written.
    writers: Arc<Mutex<JoinSet<()>>>,
    /// How long the model takes for a token.
    pace: Duration,
    /// How long an answer is worked on that nobody reads.
    patience: Duration,
    cuts: watch::Sender<()>,
}

impl App {
    fn new(options: &Options) -> Self {
        // An answer is of use only as a whole: so there is room for the longest, of which a token takes about 400 bytes,
        // and time for everyone who may come for it.
        let ring = Ring::new()
            .events_per_topic(50_000)
            .bytes_per_topic(32 * 1024 * 1024)
            .total_bytes(1024 * 1024 * 1024)
            .max_age(Duration::from_secs(60 * 60));
        let hub = Hub::builder()
            .ring(ring)
            // Who asks for an answer that there is not gets 404, and not a stream on which nothing will ever come.
            .explicit_topics()
            // Short for the demonstration: the default is 3 seconds.
            .retry(Duration::from_secs(1))
            .build();
        let (pace, patience) = (options.pace, options.patience);
        Self { hub, writers: Arc::default(), pace, patience, cuts: watch::Sender::new(()) }
    }

    fn router(self) -> Router {
        Router::new()
            .route("/answers/{id}/events", get(read))
            .route_layer(middleware::from_fn_with_state(self.clone(), cuttable))
            .route("/", get(Html(include_str!("resumable_answer.html"))))
            .route("/answers", post(ask).layer(DefaultBodyLimit::max(64 * 1024)))
            .route("/answers/{id}/stop", post(stop))
            .route("/cut", post(cut))
            .with_state(self)
    }

    /// Ends every answer and every stream.
    async fn shut_down(&self) {
        // Held until the end, so that none begins in between.
        let mut writers = self.writers.lock().await;
        // A writer that is aborted leaves its last will, which its readers get before the hub ends their streams.
        writers.shutdown().await;
        self.hub.close();
    }
}

/// Begins an answer to the prompt in the body, and says where it can be read.
async fn ask(State(app): State<App>, prompt: String) -> Result<impl IntoResponse, StatusCode> {
    let id = unguessable_id().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    // From here on the answer exists: no reader can come too early. If its writer panics or is aborted, the last will
    // tells the readers, who would otherwise wait for ever.
    let broken_off = Event::new().event_type(FAILED).data("the answer broke off");
    let producer = app.hub.producer(topic_of(&id)?).last_will(broken_off);

    // Enough to tell it from others: who sees the log is not to read the answer.
    let name = id[..8].to_owned();
    let mut writers = app.writers.lock().await;
    while writers.try_join_next().is_some() {}
    writers.spawn(async move {
        match write(producer, &prompt, app.pace, app.patience).await {
            Ok(how) => println!("answer {name}: {how}"),
            // Such as a token that is too large. Here, too, the readers are told the last will.
            Err(error) => eprintln!("answer {name}: {error}"),
        }
    });
    let events = format!("/answers/{id}/events");
    Ok((StatusCode::CREATED, [(header::LOCATION, events)], format!("{id}\n")))
}

/// Publishes an answer token by token, whoever may be reading it, and then how it ended.
async fn write(
    producer: Producer,
    prompt: &str,
    pace: Duration,
    patience: Duration,
) -> Result<EventType, PublishError> {
    producer.publish(Event::new().event_type(PROMPT).data(prompt)).await?;
    let mut tokens = pin!(model::answer(prompt, pace));
    let (how, why) = loop {
        tokio::select! {
            token = tokens.next() => match token {
                // As it is, and not as JSON: any text can be data, leading spaces and line breaks included, and a page
                // appends `event.data` as it comes. JSON is for tokens with more to them than their text, or where a
                // carriage return must not arrive as a line feed.
                Some(Ok(token)) => drop(producer.publish(Event::new().data(token)).await?),
                Some(Err(error)) => break (FAILED, error.to_string()),
                None => break (DONE, String::new()),
            },
            () = producer.stopped() => break (STOPPED, "a reader asked for it".to_owned()),
            () = producer.abandoned(patience) => break (ABANDONED, "nobody was reading".to_owned()),
        }
    };
    // By its last event a page knows that it is to close its EventSource. One that comes back all the same is answered
    // 204, which stops it.
    producer.finish(Some(Event::new().event_type(how.clone()).data(why))).await?;
    Ok(how)
}

/// The events of an answer: all of them, or what came after the last one that the reader has.
async fn read(State(app): State<App>, Path(id): Path<String>, last: LastEventId) -> Result<Subscription, StatusCode> {
    Ok(app.hub.subscribe(topic_of(&id)?).start(Start::Earliest).resume(last))
}

/// Asks the writer of an answer to stop. What comes of it, the readers are told by its last event.
async fn stop(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, StatusCode> {
    let is_being_written = app.hub.stop(topic_of(&id)?);
    Ok(if is_being_written { StatusCode::ACCEPTED } else { StatusCode::NOT_FOUND })
}

/// Whoever knows the id of an answer may read and stop it. An application that knows its users also asks whose it is.
fn topic_of(id: &str) -> Result<Topic, StatusCode> {
    Topic::scoped("answer", id).map_err(|_| StatusCode::NOT_FOUND)
}

fn unguessable_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Stands in for a language model. The client of yours goes here: any stream of tokens will do, that ends its request when
/// it is dropped.
mod model {
    use futures_util::{Stream, StreamExt as _, stream};
    use std::{io, time::Duration};
    use tokio::time::sleep;

    const TEXT: &str = "\
I am only a stand-in for a language model. But while I write this, you can see what becomes of an answer whose reader goes \
away:

  1. Reload the page. It has the whole answer again, and goes on.
  2. Cut the connection. I write on, and the page gets what it missed, once.
  3. Open a second reader. Both have the same text.
  4. Close them all. If nobody comes back in time, I give up.
  5. Or stop me, from any of them.

The server's part of it is small:

    while let Some(token) = tokens.next().await {
        producer.publish(token).await?;
    }

And that is all there is to it. À bientôt!
";

    pub(super) fn answer(prompt: &str, pace: Duration) -> impl Stream<Item = io::Result<String>> + use<> {
        let (fails, panics) = (prompt.contains("fail"), prompt.contains("panic"));
        let tokens = tokens(prompt);
        let half = tokens.len() / 2;
        stream::iter(tokens).enumerate().then(move |(n, token)| async move {
            sleep(pace).await;
            if fails && n == half {
                return Err(io::Error::other("the model is overloaded"));
            }
            assert!(!(panics && n == half), "the prompt asked for this panic");
            Ok(token)
        })
    }

    /// Pieces of four characters, with spaces and line breaks in all places.
    fn tokens(prompt: &str) -> Vec<String> {
        let subject = prompt.lines().next().unwrap_or_default();
        let text: Vec<char> = format!("You asked “{subject}”\n\n{TEXT}").chars().collect();
        text.chunks(4).map(String::from_iter).collect()
    }
}

/// Only for the demonstration: cuts the connections of all readers.
async fn cut(State(app): State<App>) {
    app.cuts.send_replace(());
}

/// Only for the demonstration: a body that fails in the middle is, for the client, a connection that was lost.
async fn cuttable(State(app): State<App>, request: Request, next: Next) -> Response {
    let cuts = app.cuts.subscribe();
    next.run(request).await.map(|body| {
        let frames = stream::unfold((body.into_data_stream(), cuts), |(mut body, mut cuts)| async move {
            let frame = tokio::select! {
                frame = body.next() => frame?,
                _ = cuts.changed() => Err(axum::Error::new("the connection was cut")),
            };
            Some((frame, (body, cuts)))
        });
        Body::from_stream(frames)
    })
}

struct Options {
    port: u16,
    pace: Duration,
    patience: Duration,
}

impl Options {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        let mut options = Self { port: 3000, pace: Duration::from_millis(60), patience: Duration::from_secs(60) };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().unwrap_or_default();
            let wrong = |error| format!("{name} {value}: {error}");
            match name.as_str() {
                "--port" => options.port = value.parse().map_err(wrong)?,
                "--pace-ms" => options.pace = Duration::from_millis(value.parse().map_err(wrong)?),
                "--patience" => options.patience = Duration::from_secs(value.parse().map_err(wrong)?),
                _ => return Err("usage: resumable_answer [--port PORT] [--pace-ms MS] [--patience SECONDS]".into()),
            }
        }
        Ok(options)
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let listener = TcpListener::bind(("127.0.0.1", options.port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{}: {error}", options.port))?;
    println!("http://{}", listener.local_addr()?);
    // Otherwise the kernel may hold a token back until the one before was acknowledged.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));

    let app = App::new(&options);
    let router = app.clone().router();
    let shutdown = async move {
        let _ = tokio::signal::ctrl_c().await;
        app.shut_down().await; // a server waits for its open responses
    };
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await?;
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
