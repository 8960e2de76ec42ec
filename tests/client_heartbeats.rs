//! Clients that say that they are there, on real bodies and over real sockets; and strangers who say so.

mod support;

use futures_util::{FutureExt as _, StreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use std::{collections::HashSet, time::Duration};
use support::Client;
use tidings::{
    EndReason, Event, HeartbeatHandler, Hub, KeepAlive, LeaveReason, SubscriptionBody, Topic,
    test_util::{EventReader, next_event},
};
use tokio::time::{Instant, sleep};
use tower_service::Service;

const T: Topic = Topic::from_static("t");
const TIMEOUT: Duration = Duration::from_secs(30);

fn hub() -> Hub {
    Hub::builder().client_heartbeats(TIMEOUT).announce_ends().keep_alive(KeepAlive::off()).build()
}

/// A client that knows its token.
async fn client(hub: &Hub) -> (EventReader<SubscriptionBody>, String) {
    let mut reader = EventReader::new(hub.subscribe(T).into_http_response().into_body());
    let token = token(&mut reader).await;
    (reader, token)
}

async fn token<B>(reader: &mut EventReader<B>) -> String
where
    B: http_body::Body<Data: Send + 'static, Error: std::fmt::Display>,
{
    let session = reader.next().await.unwrap();
    assert_eq!(session.event_type, "tidings-session");
    let session: serde_json::Value = serde_json::from_str(&session.data).unwrap();
    assert_eq!(session["interval"].as_u64().unwrap(), session["timeout"].as_u64().unwrap().div_ceil(2));
    session["token"].as_str().unwrap().to_owned()
}

async fn post(handler: &HeartbeatHandler, body: impl Into<bytes::Bytes>) -> StatusCode {
    let request = Request::post("/").body(Full::new(body.into())).unwrap();
    Service::call(&mut handler.clone(), request).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn each_heartbeat_is_answered_on_the_stream_and_keeps_it() {
    let hub = hub();
    let handler = hub.heartbeat_handler();
    let (mut reader, token) = client(&hub).await;
    let id = hub.publish(T, Event::new().data("between")).await.unwrap();
    assert_eq!(reader.next().await.unwrap().data, "between");
    for n in 1..=20 {
        sleep(TIMEOUT / 2).await;
        assert_eq!(post(&handler, token.clone()).await, StatusCode::NO_CONTENT);
        let pong = reader.next().await.unwrap();
        assert_eq!((pong.event_type.as_str(), pong.data), ("tidings-pong", n.to_string()));
        assert_eq!(pong.last_event_id, id.to_string(), "it has no id of its own");
    }
    // Those that come before an answer are answered together.
    for _ in 0..1000 {
        assert!(hub.heartbeat(&token));
    }
    assert_eq!(reader.next().await.unwrap().data, "1020");
    assert!(reader.next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn one_that_stays_silent_is_ended_and_its_owner_told() {
    let hub = hub();
    let subscription = hub.subscribe(T).label("user", "ada");
    let owner = subscription.subscriber();
    let mut reader = EventReader::new(subscription.into_http_response().into_body());
    let token = token(&mut reader).await;
    sleep(TIMEOUT / 2).await;
    assert!(hub.heartbeat(&token));
    assert_eq!(reader.next().await.unwrap().event_type, "tidings-pong");
    let heard = Instant::now();
    let end = reader.next().await.unwrap();
    assert_eq!((end.data.as_str(), heard.elapsed()), (r#"{"reason":"silent"}"#, TIMEOUT));
    assert!(!hub.heartbeat(&token), "a session that has ended is unknown");
    assert!(reader.next().await.is_none());
    assert_eq!(owner.left().await.0, LeaveReason::Ended(EndReason::Silent));
    assert_eq!(hub.stats().left.silent, 1);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_does_not_save_one_that_does_not_read_beyond_its_time() {
    let hub = hub();
    let (reader, token) = client(&hub).await;
    sleep(TIMEOUT).await;
    assert!(!hub.heartbeat(&token));
    let owner = hub.presence(T).subscribers()[0].clone();
    drop(reader);
    assert_eq!(owner.left().await.0, LeaveReason::Ended(EndReason::Silent));
}

#[tokio::test(start_paused = true)]
async fn only_those_who_are_asked_have_sessions_and_streams_have_none() {
    let hub = hub();
    let mut stream = hub.subscribe(T);
    assert!(stream.next().now_or_never().is_none());
    sleep(TIMEOUT * 10).await;
    hub.publish(T, Event::new().data("1")).await.unwrap();
    assert_eq!(next_event(&mut stream).await.record().data().unwrap(), "1");

    let plain = Hub::new();
    let mut asked = EventReader::new(plain.subscribe(T).client_heartbeats(TIMEOUT).into_http_response().into_body());
    assert!(plain.heartbeat(token(&mut asked).await));
    assert_eq!(asked.next().await.unwrap().event_type, "tidings-pong");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_guesses_end_and_reveal_nothing() {
    let hub = hub();
    let handler = hub.heartbeat_handler();
    let (mut reader, token) = client(&hub).await;
    let mut bytes = [0; 24];
    for n in 0..100_000 {
        getrandom::fill(&mut bytes).unwrap();
        let mut guess = bytes.map(|byte| format!("{byte:02x}")).concat();
        if n % 2 == 0 {
            // Half of them know the half by which the session is found.
            guess.replace_range(..16, &token[..16]);
        }
        assert_eq!(post(&handler, guess).await, StatusCode::NOT_FOUND);
    }
    // And those that are near to it.
    let mut near = HashSet::from([String::new(), token.repeat(2), token[1..].to_owned(), format!("{token}0")]);
    for at in 0..token.len() {
        for digit in ["0", "f", "+", "\0", "g"] {
            let mut other = token.clone();
            other.replace_range(at..=at, digit);
            near.insert(other);
        }
    }
    near.remove(&token);
    for near in near {
        assert_eq!(post(&handler, near.clone()).await, StatusCode::NOT_FOUND, "{near:?}");
    }
    assert_eq!(post(&handler, vec![0xff; 48]).await, StatusCode::NOT_FOUND);
    assert_eq!(post(&handler, vec![b'a'; 1 << 20]).await, StatusCode::NOT_FOUND);
    assert!(reader.next().now_or_never().is_none(), "its stream is as it was");
    assert_eq!(post(&handler, token).await, StatusCode::NO_CONTENT);
    assert_eq!(reader.next().await.unwrap().data, "1", "and none of them counted");
}

#[tokio::test(start_paused = true)]
async fn no_two_sessions_share_a_token() {
    let hub = hub();
    let mut tokens = HashSet::new();
    for _ in 0..20_000 {
        let (_reader, token) = client(&hub).await;
        assert!(token.len() == 48 && token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        // Neither the part by which it is found, nor the rest.
        assert!(tokens.insert(token[..16].to_owned()) && tokens.insert(token[16..].to_owned()));
    }
    for token in tokens {
        assert!(!hub.heartbeat(token));
    }
}

#[tokio::test(start_paused = true)]
async fn other_methods_are_told_which_one() {
    let handler = hub().heartbeat_handler();
    for method in [Method::GET, Method::PUT, Method::HEAD] {
        let request = Request::builder().method(method).body(Full::new(bytes::Bytes::new())).unwrap();
        let response = Service::call(&mut handler.clone(), request).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn it_works_over_sockets() {
    let hub = Hub::builder().client_heartbeats(Duration::from_millis(600)).build();
    let app = axum::Router::new()
        .route_service("/events", hub.handler_for(T))
        .route_service("/heartbeat", hub.heartbeat_handler());
    let server = support::Server::router(app).await;
    let (_client, response) = Client::get(support::Http::One, server.address, "/events", &[]).await;
    let mut reader = EventReader::new(response.into_body());
    let token = token(&mut reader).await;
    for n in 1..=5 {
        let (_client, response) = Client::post(server.address, "/heartbeat", &token).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert_eq!(reader.next().await.unwrap().data, n.to_string());
        sleep(Duration::from_millis(300)).await;
    }
    let (_client, response) = Client::post(server.address, "/heartbeat", &"0".repeat(48)).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(reader.next().await.is_none(), "and then it is silent");
}
