//! The example `resumable_answer` as its readers see it: in a process of its own, over real sockets.

mod support;

use http::StatusCode;
use hyper::body::Incoming;
use std::{future::Future, net::SocketAddr, path::PathBuf, sync::LazyLock, time::Duration};
use support::{
    Client, Http,
    example::{self, Example},
    network::Network,
};
use tidings::test_util::{EventReader, Received};

static EXECUTABLE: LazyLock<PathBuf> = LazyLock::new(|| example::build("resumable_answer"));

async fn start(arguments: &[&str]) -> Example {
    Example::start(&EXECUTABLE, arguments).await
}

/// Far more than anything here takes on a machine that is busy with something else.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it should come to this")
}

/// Asks, and returns where the events of the answer are.
async fn ask(address: SocketAddr, prompt: &str) -> String {
    let (_client, response) = Client::post(address, "/answers", prompt).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    response.headers()["location"].to_str().unwrap().to_owned()
}

async fn stop(address: SocketAddr, events: &str) -> StatusCode {
    let uri = events.replace("/events", "/stop");
    Client::post(address, &uri, "").await.1.status()
}

/// What a reader has of an answer.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    prompt: Option<String>,
    text: String,
    tokens: usize,
    end: Option<(String, String)>,
    last_event_id: String,
}

impl Answer {
    fn add(&mut self, event: Received) {
        assert_eq!(self.end, None, "nothing follows the end");
        assert_eq!(self.prompt.is_none(), event.event_type == "prompt", "the prompt comes first, and once");
        match event.event_type.as_str() {
            "prompt" => self.prompt = Some(event.data),
            "message" => {
                self.text += &event.data;
                self.tokens += 1;
            }
            _ => self.end = Some((event.event_type, event.data)),
        }
    }

    /// Goes on reading until it has the end, or as many tokens, or the connection is lost.
    async fn read(&mut self, address: SocketAddr, events: &str, tokens: usize) {
        let (_client, mut reader) = self.resume(address, events).await;
        while self.tokens < tokens {
            let event = in_time(reader.try_next()).await;
            reader.last_event_id().clone_into(&mut self.last_event_id);
            match event {
                Ok(Some(event)) => self.add(event),
                Ok(None) => assert_ne!(self.end, None, "only what has an end ends"),
                Err(_) => return,
            }
            if self.end.is_some() {
                return;
            }
        }
    }

    async fn resume(&self, address: SocketAddr, events: &str) -> (Client, EventReader<Incoming>) {
        let headers = [("last-event-id", self.last_event_id.as_str())];
        let (client, response) = Client::get(Http::One, address, events, &headers).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!response.headers().contains_key("tidings-gap"));
        (client, EventReader::new(response.into_body()))
    }

    /// Reads all of an answer over one connection, which must then end.
    async fn whole(address: SocketAddr, events: &str) -> Self {
        let mut answer = Self::default();
        let (_client, mut reader) = answer.resume(address, events).await;
        while let Some(event) = in_time(reader.next()).await {
            answer.add(event);
        }
        reader.last_event_id().clone_into(&mut answer.last_event_id);
        answer
    }

    fn end(&self) -> (&str, &str) {
        let (how, why) = self.end.as_ref().expect("it has an end");
        (how, why)
    }
}

#[tokio::test]
async fn a_reader_that_is_cut_again_and_again_has_the_same_text_as_one_that_reads_through() {
    let example = start(&["--pace-ms", "10"]).await;
    let network = Network::to(example.address).await;
    let events = ask(example.address, "  What is\n\na tide? 🌊 ").await;

    let mut cut = Answer::default();
    let reads_with_cuts = async {
        for round in 0.. {
            // At another place of some event each time, behind the head of the response.
            network.cut_after(400 + 41 * round);
            cut.read(network.address, &events, usize::MAX).await;
            if cut.end.is_some() {
                return round;
            }
        }
        unreachable!()
    };
    let (cuts, through) = tokio::join!(reads_with_cuts, Answer::whole(example.address, &events));
    assert!(cuts >= 5, "{cuts}");
    assert_eq!(through.prompt.as_deref(), Some("  What is\n\na tide? 🌊 "));
    assert!(through.text.starts_with("You asked “  What is”\n\nI am"), "{}", through.text);
    assert!(through.text.ends_with("À bientôt!\n"), "{}", through.text);
    assert_eq!(through.end(), ("done", ""));
    assert_eq!(cut, through);

    assert_eq!(Answer::whole(example.address, &events).await, through, "who comes late has everything, too");
    let headers = [("last-event-id", through.last_event_id.as_str())];
    let (_client, response) = Client::get(Http::One, example.address, &events, &headers).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(stop(example.address, &events).await, StatusCode::NOT_FOUND, "it is not being written any more");
}

#[tokio::test]
async fn any_reader_can_stop_it() {
    let example = start(&["--pace-ms", "50"]).await;
    let events = ask(example.address, "What is a tide?").await;
    let reads_and_stops = async {
        let mut answer = Answer::default();
        answer.read(example.address, &events, 5).await;
        assert_eq!(stop(example.address, &events).await, StatusCode::ACCEPTED);
        answer.read(example.address, &events, usize::MAX).await;
        answer
    };
    let (stopping, other) = tokio::join!(reads_and_stops, Answer::whole(example.address, &events));
    assert_eq!(other.end(), ("stopped", "a reader asked for it"));
    assert!(!other.text.ends_with("À bientôt!\n"));
    assert_eq!(stopping, other);
}

#[tokio::test]
async fn an_error_of_the_model_is_the_last_event() {
    let example = start(&["--pace-ms", "1"]).await;
    let events = ask(example.address, "Please fail").await;
    let answer = Answer::whole(example.address, &events).await;
    assert_eq!(answer.end(), ("failed", "the model is overloaded"));
    assert!(answer.tokens > 10);
}

#[tokio::test]
async fn a_panic_leaves_the_last_will() {
    let mut example = start(&["--pace-ms", "1"]).await;
    let events = ask(example.address, "Please panic").await;
    let answer = Answer::whole(example.address, &events).await;
    assert_eq!(answer.end(), ("failed", "the answer broke off"));
    assert!(answer.tokens > 10);

    let next = ask(example.address, "What is a tide?").await;
    assert_eq!(Answer::whole(example.address, &next).await.end(), ("done", ""));
    assert!(in_time(example.line()).await.ends_with(": done"));
}

#[tokio::test]
async fn there_is_no_answer_that_was_not_asked_for() {
    let example = start(&[]).await;
    for id in ["unknown", "00000000000000000000000000000000", "%00", "a%2Fb"] {
        let events = format!("/answers/{id}/events");
        let (_client, response) = Client::get(Http::One, example.address, &events, &[]).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{id}");
        assert_eq!(stop(example.address, &events).await, StatusCode::NOT_FOUND, "{id}");
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_abandoned_and_one_that_is_read_is_not() {
    let mut example = start(&["--pace-ms", "20", "--patience", "2"]).await;
    let events = ask(example.address, "What is a tide?").await;
    assert_eq!(Answer::whole(example.address, &events).await.end(), ("done", ""));
    assert!(in_time(example.line()).await.ends_with(": done"));

    // This one's reader goes away.
    let events = ask(example.address, "What is a tide?").await;
    let mut answer = Answer::default();
    answer.read(example.address, &events, 3).await;
    assert!(in_time(example.line()).await.ends_with(": abandoned"));
    answer.read(example.address, &events, usize::MAX).await;
    assert_eq!(answer.end(), ("abandoned", "nobody was reading"));
    assert_eq!(Answer::whole(example.address, &events).await, answer);
}

#[tokio::test]
async fn a_server_that_shuts_down_tells_the_readers() {
    let mut example = start(&["--pace-ms", "50"]).await;
    let events = ask(example.address, "What is a tide?").await;
    let mut answer = Answer::default();
    let (client, mut reader) = answer.resume(example.address, &events).await;
    for _ in 0..3 {
        answer.add(in_time(reader.next()).await.unwrap());
    }
    let reads_on = async {
        while let Some(event) = in_time(reader.next()).await {
            answer.add(event);
        }
        drop(client);
    };
    let (status, ()) = tokio::join!(in_time(example.interrupt()), reads_on);
    assert!(status.success());
    assert_eq!(answer.end(), ("failed", "the answer broke off"));
}
