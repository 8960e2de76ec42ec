//! Over real sockets, with axum and with bare hyper, HTTP/1.1 and HTTP/2.

mod support;

use futures_util::stream;
use http::{Request, StatusCode, request::Parts};
use http_body_util::Empty;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::time::Duration;
use support::{ALL, Client, Http, Server};
use tidings::{Event, Hub, Sse, Topic, Topics, test_util::EventReader};

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}

#[tokio::test]
async fn a_client_that_was_cut_resumes_where_it_was() {
    for (via, http) in ALL {
        let hub = Hub::new();
        let server = Server::start(via, hub.handler(|_| async { topic() })).await;
        let (client, response) = Client::get(http, server.address, "/events", &[]).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert!(!response.headers().contains_key("content-length"));
        let mut reader = EventReader::new(response.into_body());
        for n in 0..3 {
            hub.publish(topic(), text(n)).await.unwrap();
            assert_eq!(reader.next().await.unwrap().data, n.to_string());
        }
        let id = reader.last_event_id().to_owned();
        drop((client, reader));
        for n in 3..6 {
            hub.publish(topic(), text(n)).await.unwrap();
        }
        let (_client, response) = Client::get(http, server.address, "/events", &[("last-event-id", &id)]).await;
        assert!(!response.headers().contains_key("tidings-gap"));
        let mut reader = EventReader::new(response.into_body());
        for n in 3..6 {
            assert_eq!(reader.next().await.unwrap().data, n.to_string(), "{via:?} {http:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_subscription() {
    for (via, http) in ALL {
        let hub = Hub::new();
        let server = Server::start(via, hub.handler(|_| async { topic() })).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(Client::get(http, server.address, "/events", &[]).await);
        }
        assert!(format!("{hub:?}").contains("subscriptions: 20"), "{hub:?}");
        drop(clients);
        let gone = async {
            while !format!("{hub:?}").contains("subscriptions: 0") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("all subscriptions are freed");
    }
}

#[tokio::test]
async fn one_connection_follows_many_topics_in_the_order_of_the_log() {
    fn topics(parts: &Parts) -> Result<Topics, StatusCode> {
        let names = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("topic="));
        let topics: Result<Vec<_>, _> = names.map(Topic::new).collect();
        Topics::new(topics.map_err(|_| StatusCode::BAD_REQUEST)?).map_err(|_| StatusCode::BAD_REQUEST)
    }
    for (via, http) in ALL {
        let hub = Hub::new();
        let server = Server::start(via, hub.handler(|parts| async move { topics(&parts) })).await;
        let query = |count| (0..count).map(|n| format!("topic=t{n}")).collect::<Vec<_>>().join("&");
        let (_client, response) = Client::get(http, server.address, &format!("/?{}", query(64)), &[]).await;
        assert_eq!(response.status(), 200);
        let mut reader = EventReader::new(response.into_body());
        for n in 0..200 {
            let topic = Topic::new(format!("t{}", n * 7 % 100)).unwrap();
            hub.publish(topic, text(n)).await.unwrap();
        }
        for n in (0..200).filter(|n| n * 7 % 100 < 64) {
            assert_eq!(reader.next().await.unwrap().data, n.to_string());
        }
        let (_client, refused) = Client::get(http, server.address, &format!("/?{}", query(65)), &[]).await;
        assert_eq!(refused.status(), 400);
    }
}

#[tokio::test]
async fn two_hundred_and_four_stops_a_client_that_has_everything() {
    for (via, http) in ALL {
        let hub = Hub::new();
        let server = Server::start(via, hub.handler(|_| async { topic() })).await;
        let (_client, response) = Client::get(http, server.address, "/", &[]).await;
        hub.publish(topic(), text(1)).await.unwrap();
        hub.finish(topic(), Some(text(2))).await.unwrap();
        let mut reader = EventReader::new(response.into_body());
        assert_eq!(reader.next().await.unwrap().data, "1");
        assert_eq!(reader.next().await.unwrap().data, "2");
        assert_eq!(reader.next().await, None, "a clean end");
        let headers = [("last-event-id", reader.last_event_id())];
        let (_client, response) = Client::get(http, server.address, "/", &headers).await;
        assert_eq!(response.status(), 204);
    }
}

#[tokio::test]
async fn what_came_before_an_error_reaches_the_client_and_then_the_connection_fails() {
    let app = axum::Router::new().route(
        "/",
        axum::routing::get(|| async {
            let items = [Ok(text(1)), Ok(text(2)), Err(std::io::Error::other("disk"))];
            Sse::new(stream::iter(items)).on_error(|error| Some(text(error)))
        }),
    );
    let server = Server::router(app).await;
    for http in [Http::One, Http::Two] {
        let (_client, response) = Client::get(http, server.address, "/", &[]).await;
        let mut reader = EventReader::new(response.into_body());
        for expected in ["1", "2", "disk"] {
            assert_eq!(reader.next().await.unwrap().data, expected, "{http:?}");
        }
        assert!(reader.try_next().await.is_err(), "the end does not look clean");
    }
}

#[tokio::test]
async fn a_large_event_arrives_whole() {
    for (via, http) in ALL {
        let hub = Hub::new();
        let server = Server::start(via, hub.handler(|_| async { topic() })).await;
        let (_client, response) = Client::get(http, server.address, "/", &[]).await;
        let mut reader = EventReader::new(response.into_body());
        let large: String = (0..900_000).map(|n| if n % 1000 == 0 { '\n' } else { 'x' }).collect();
        hub.publish(topic(), text(&large)).await.unwrap();
        assert_eq!(reader.next().await.unwrap().data, large);
    }
}

/// That it compiles is half of the test: what is spawned has to be `Send`, whatever the handler is made of.
#[tokio::test]
async fn a_handler_is_a_service_of_hyper_as_it_is() {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let handler = Hub::new().handler_for(Topic::from_static("news"));
    let serving = tokio::spawn(async move {
        let http = auto::Builder::new(TokioExecutor::new());
        let _ = http.serve_connection(TokioIo::new(server), handler).await;
    });
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("/").header("host", "localhost").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    connection.abort();
    serving.await.unwrap();
}
