//! The guarantee behind a real nginx, with the configuration of the page on deploying.
//!
//! Needs Debian's `nginx`, and is run by name: `cargo test --test nginx`.

#[path = "nginx/proxy.rs"]
mod proxy;
mod support;

use crate::{
    proxy::Nginx,
    support::{Client, Http, Server, Via, network::Network},
};
use bytes::Bytes;
use flate2::write::GzDecoder;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    collections::BTreeSet,
    io::Write as _,
    pin::pin,
    time::{Duration, Instant},
};
use tidings::{
    Event, Hub, HubBuilder, KeepAlive, Topic,
    replay::Ring,
    test_util::{EventReader, decode},
};
use tokio::{net::TcpStream, time::timeout};

const HTTP: [Http; 2] = [Http::One, Http::Two];

/// Far more than anything here takes on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(30);

/// Long enough for an event to come through a hundred times, if nothing holds it back.
const HELD_BACK: Duration = Duration::from_secs(1);

const TOPIC: Topic = Topic::from_static("t");

/// A hub behind nginx, and the networks on both sides of it.
struct Served {
    hub: Hub,
    outside: [Network; 2],
    inside: Network,
    nginx: Nginx,
    _server: Server,
}

impl Served {
    async fn start(hub: HubBuilder, directives: &[&str]) -> Self {
        let hub = hub.build();
        let server = Server::start(Via::Axum, hub.handler_for(TOPIC)).await;
        let inside = Network::to(server.address).await;
        let nginx = Nginx::start(inside.address, directives).await;
        let outside = [Network::to(nginx.address(Http::One)).await, Network::to(nginx.address(Http::Two)).await];
        Self { hub, outside, inside, nginx, _server: server }
    }

    fn outside(&self, http: Http) -> &Network {
        match http {
            Http::One => &self.outside[0],
            Http::Two => &self.outside[1],
        }
    }

    async fn publish(&self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.hub.publish(TOPIC, Event::new().data(number.to_string())).await.unwrap();
        }
    }

    async fn get(&self, http: Http, headers: &[(&str, &str)]) -> (Client, Response<Incoming>) {
        let get = Client::get(http, self.outside(http).address, "/events", headers);
        timeout(DEADLINE, get).await.expect("nginx should answer")
    }

    async fn follow(&self, http: Http, last: &str) -> (Client, EventReader<Incoming>) {
        let headers = [("last-event-id", last)];
        let (client, response) = self.get(http, if last.is_empty() { &[] } else { &headers }).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert!(!response.headers().contains_key("tidings-gap"));
        (client, EventReader::new(response.into_body()))
    }

    /// As [`follow`](Self::follow), for a client that may be cut before it has the response.
    async fn come_back(&self, http: Http, last: &str) -> (Client, EventReader<Incoming>) {
        let headers = [("last-event-id", last)];
        loop {
            let get = Client::try_get(http, self.outside(http).address, "/events", &headers);
            let Some((client, response)) = timeout(DEADLINE, get).await.expect("an answer, or a cut") else { continue };
            assert_eq!(response.status(), StatusCode::OK);
            assert!(!response.headers().contains_key("tidings-gap"));
            return (client, EventReader::new(response.into_body()));
        }
    }

    async fn subscriptions(&self, count: usize) {
        let expected = format!("subscriptions: {count}");
        let counted = async {
            while !format!("{:?}", self.hub).contains(&expected) {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, counted).await.unwrap_or_else(|_| panic!("{expected}: {:?}", self.hub));
    }
}

async fn next(reader: &mut EventReader<Incoming>) -> String {
    timeout(DEADLINE, reader.next()).await.expect("an event should come").expect("the stream should go on").data
}

#[tokio::test]
async fn every_event_comes_through_at_once_though_nginx_buffers_other_responses() {
    for http in HTTP {
        let served = Served::start(Hub::builder(), &["proxy_buffering on;"]).await;
        let (_client, response) = served.get(http, &[]).await;
        assert!(!response.headers().contains_key("x-accel-buffering"), "nginx keeps it for itself");
        assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
        let mut reader = EventReader::new(response.into_body());
        for number in 0..50 {
            // One is published when the one before it has arrived: none waits for another.
            served.publish([number]).await;
            assert_eq!(next(&mut reader).await, number.to_string(), "{http:?}");
        }
    }
}

#[tokio::test]
async fn without_our_header_nginx_holds_back_even_the_head_of_the_response() {
    let gzip = ["gzip on;", "gzip_types text/event-stream;"];
    let ignored = "proxy_ignore_headers X-Accel-Buffering;";
    // Whether we send it, and what makes no use of it.
    let cases = [
        (false, vec!["proxy_http_version 1.0;"]),
        (true, vec!["proxy_http_version 1.0;", ignored]),
        (false, gzip.to_vec()),
        (true, [&gzip[..], &[ignored]].concat()),
    ];
    for (sent, directives) in cases {
        let hub = || if sent { Hub::builder() } else { Hub::builder().allow_accel_buffering() };
        let served = Served::start(hub(), &directives).await;
        let mut get = pin!(served.get(Http::One, &[("accept-encoding", "gzip")]));
        assert!(timeout(HELD_BACK, &mut get).await.is_err(), "{directives:?}");
        served.publish(0..3).await;
        assert!(timeout(HELD_BACK, &mut get).await.is_err(), "{directives:?}");
        // What ends the wait is the end of the stream.
        served.hub.finish(TOPIC, None).await.unwrap();
        let (_client, response) = get.await;
        assert_eq!(response.status(), StatusCode::OK);

        // Over HTTP/2 the head comes, and no event.
        let served = Served::start(hub(), &directives).await;
        let (_client, response) = served.get(Http::Two, &[("accept-encoding", "gzip")]).await;
        let mut body = response.into_body();
        served.publish(0..3).await;
        assert!(timeout(HELD_BACK, body.frame()).await.is_err(), "{directives:?}");
        served.hub.finish(TOPIC, None).await.unwrap();
        assert!(!timeout(DEADLINE, body.collect()).await.unwrap().unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn hiding_our_header_from_clients_does_not_hide_it_from_nginx() {
    for http in HTTP {
        let directives = ["proxy_http_version 1.0;", "proxy_hide_header X-Accel-Buffering;"];
        let served = Served::start(Hub::builder(), &directives).await;
        let (_client, mut reader) = served.follow(http, "").await;
        served.publish([0]).await;
        assert_eq!(next(&mut reader).await, "0");
    }
}

#[tokio::test]
async fn over_http_1_1_events_come_through_without_our_header_too() {
    for http in HTTP {
        let served = Served::start(Hub::builder().allow_accel_buffering(), &["proxy_buffering on;"]).await;
        let (_client, mut reader) = served.follow(http, "").await;
        for number in 0..50 {
            served.publish([number]).await;
            assert_eq!(next(&mut reader).await, number.to_string(), "{http:?}");
        }
    }
}

const LARGE_EVENTS: usize = 128;
const LARGE: usize = 512 * 1024;

/// How many bytes nginx takes for a client that reads nothing, until it has all or takes none for some time; then the
/// client reads.
async fn taken_for_a_client_that_does_not_read(hub: HubBuilder, patience: Duration) -> usize {
    let hub = hub.ring(Ring::new().bytes_per_topic(usize::MAX)).build();
    let server = Server::start(Via::Axum, hub.handler_for(TOPIC)).await;
    let inside = Network::to(server.address).await;
    let nginx = Nginx::start(inside.address, &[]).await;
    let (_client, response) = Client::get(Http::One, nginx.address(Http::One), "/events", &[]).await;
    for _ in 0..LARGE_EVENTS {
        hub.publish(TOPIC, Event::new().data("x".repeat(LARGE))).await.unwrap();
    }
    let (mut taken, mut since) = (0, Instant::now());
    while taken < LARGE_EVENTS * LARGE && since.elapsed() < patience {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if inside.carried() > taken {
            (taken, since) = (inside.carried(), Instant::now());
        }
    }
    let (mut body, mut read) = (response.into_body(), 0);
    while read < LARGE_EVENTS * LARGE {
        let frame = timeout(DEADLINE, body.frame()).await.expect("the rest should come").unwrap().unwrap();
        read += frame.into_data().unwrap().len();
    }
    taken
}

#[tokio::test]
async fn without_our_header_nginx_takes_everything_for_a_client_that_does_not_read() {
    let all = LARGE_EVENTS * LARGE;
    let hub = Hub::builder().allow_accel_buffering();
    let taken = taken_for_a_client_that_does_not_read(hub, DEADLINE).await;
    assert!(taken >= all, "{taken}");

    // The rest are the buffers of three sockets.
    let taken = taken_for_a_client_that_does_not_read(Hub::builder(), Duration::from_secs(2)).await;
    assert!(taken < all / 2, "{taken}");
    println!("of {all} bytes, nginx took {taken} with our header, and all without");
}

#[tokio::test]
async fn an_nginx_behind_another_has_to_pass_our_header_on() {
    for passes in [false, true] {
        let hub = Hub::new();
        let server = Server::start(Via::Axum, hub.handler_for(TOPIC)).await;
        let pass: &[_] = if passes { &["proxy_pass_header X-Accel-Buffering;"] } else { &[] };
        let inner = Nginx::start(server.address, pass).await;
        let outer = Nginx::start(inner.address(Http::One), &["proxy_http_version 1.0;"]).await;
        let mut get = pin!(Client::get(Http::One, outer.address(Http::One), "/events", &[]));
        let Ok((_client, response)) = timeout(if passes { DEADLINE } else { HELD_BACK }, &mut get).await else {
            assert!(!passes);
            continue;
        };
        assert!(passes);
        let mut reader = EventReader::new(response.into_body());
        hub.publish(TOPIC, Event::new().data("1")).await.unwrap();
        assert_eq!(next(&mut reader).await, "1");
    }
}

#[tokio::test]
async fn a_client_that_is_cut_on_either_side_of_nginx_resumes_where_it_was() {
    for http in HTTP {
        let served = Served::start(Hub::builder(), &[]).await;
        let (mut client, mut reader) = served.follow(http, "").await;
        // One that is cut before it has an id comes back as a new one, and begins with what is published then.
        served.publish([u32::MAX]).await;
        assert_eq!(next(&mut reader).await, u32::MAX.to_string());
        let mut received = Vec::new();
        for round in 0..40 {
            // In the middle of some event, or before there is one.
            let bytes = 1 + 7 * round as usize;
            if round % 2 == 0 {
                served.outside(http).cut_after(bytes);
            } else {
                served.inside.cut_after(bytes);
            }
            served.publish(10 * round..10 * (round + 1)).await;
            let expected = 10 * (round as usize + 1);
            while received.len() < expected {
                let event = timeout(DEADLINE, reader.try_next()).await.expect("an event, or a cut");
                if let Ok(Some(event)) = event {
                    received.push(event.data);
                } else {
                    let last = reader.last_event_id().to_owned();
                    drop(client);
                    (client, reader) = served.come_back(http, &last).await;
                }
            }
        }
        let expected: Vec<_> = (0..400).map(|number| number.to_string()).collect();
        assert_eq!(received, expected, "{http:?}");
        assert!(served.outside(http).connections() + served.inside.connections() > 40, "it was cut");
    }
}

#[tokio::test]
async fn heartbeats_keep_a_connection_open_that_nginx_would_cut() {
    let heartbeats = KeepAlive::new().interval(Duration::from_millis(400));
    for http in HTTP {
        let served = Served::start(Hub::builder().keep_alive(heartbeats.clone()), &["proxy_read_timeout 1s;"]).await;
        let (_client, mut reader) = served.follow(http, "").await;
        // Four times what nginx allows.
        assert!(timeout(Duration::from_secs(4), reader.try_next()).await.is_err(), "{http:?}: {}", served.nginx.log());
        assert!(reader.comments().len() >= 6, "{http:?}: {:?}", reader.comments());
        served.publish([1]).await;
        assert_eq!(next(&mut reader).await, "1");
    }
}

#[tokio::test]
async fn without_heartbeats_nginx_cuts_a_quiet_stream_and_the_client_resumes() {
    for http in HTTP {
        let served = Served::start(Hub::builder().keep_alive(KeepAlive::off()), &["proxy_read_timeout 1s;"]).await;
        let (client, mut reader) = served.follow(http, "").await;
        let start = Instant::now();
        let end = timeout(DEADLINE, reader.try_next()).await.expect("nginx should cut it");
        assert!(end.is_err(), "{http:?}: {end:?}");
        assert!(start.elapsed() >= Duration::from_millis(900), "{http:?}");
        assert!(served.nginx.log().contains("upstream timed out"), "{}", served.nginx.log());
        served.subscriptions(0).await;
        served.publish(0..3).await;
        let last = reader.last_event_id().to_owned();
        drop(client);
        let (_client, mut reader) = served.follow(http, &last).await;
        for number in 0..3 {
            assert_eq!(next(&mut reader).await, number.to_string());
        }
    }
}

#[tokio::test]
async fn one_http_2_connection_carries_many_streams() {
    let served = Served::start(Hub::builder(), &[]).await;
    let address = served.outside(Http::Two).address;
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let mut readers = Vec::new();
    for _ in 0..100 {
        let request = Request::get(format!("http://{address}/events")).body(Empty::<Bytes>::new()).unwrap();
        let response = timeout(DEADLINE, sender.clone().send_request(request)).await.unwrap().unwrap();
        readers.push(EventReader::new(response.into_body()));
    }
    served.subscriptions(100).await;
    for number in 0..3 {
        served.publish([number]).await;
        for reader in &mut readers {
            assert_eq!(next(reader).await, number.to_string());
        }
    }
    assert_eq!(served.outside(Http::Two).connections(), 1);
    assert_eq!(served.inside.connections(), 100, "to the server each has a connection of its own");

    // One stream that is closed leaves the others alone.
    readers.pop();
    served.subscriptions(99).await;
    served.publish([3]).await;
    for reader in &mut readers {
        assert_eq!(next(reader).await, "3");
    }
    served.outside(Http::Two).cut();
    served.subscriptions(0).await;
}

#[tokio::test]
async fn nginx_compresses_events_where_it_is_told_to_whatever_the_response_says_and_still_sends_them_at_once() {
    for (http, types) in HTTP.into_iter().zip(["gzip_types text/event-stream;", "gzip_types *;"]) {
        let served = Served::start(Hub::builder(), &["gzip on;", types]).await;
        let (_client, response) = served.get(http, &[("accept-encoding", "gzip")]).await;
        assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
        assert_eq!(response.headers()["content-encoding"], "gzip");
        let (mut body, mut gzip, mut compressed, text) =
            (response.into_body(), GzDecoder::new(Vec::new()), 0, "x".repeat(1000));
        for number in 1..=20 {
            served.hub.publish(TOPIC, Event::new().data(&text)).await.unwrap();
            while decode(gzip.get_ref()).len() < number {
                let frame = timeout(DEADLINE, body.frame()).await.expect("an event should come").unwrap().unwrap();
                let bytes = frame.into_data().unwrap();
                compressed += bytes.len();
                gzip.write_all(&bytes).unwrap();
                gzip.flush().unwrap();
            }
        }
        println!("{http:?}: {} bytes of events as {compressed}", gzip.get_ref().len());
    }
}

#[tokio::test]
async fn by_default_nginx_does_not_compress_events() {
    for http in HTTP {
        let served = Served::start(Hub::builder(), &["gzip on;"]).await;
        let (_client, response) = served.get(http, &[("accept-encoding", "gzip")]).await;
        assert!(!response.headers().contains_key("content-encoding"));
        let mut reader = EventReader::new(response.into_body());
        served.publish([0]).await;
        assert_eq!(next(&mut reader).await, "0");
    }
}

#[tokio::test]
async fn a_client_that_closes_its_connection_to_nginx_frees_its_subscription() {
    for http in HTTP {
        let served = Served::start(Hub::builder().keep_alive(KeepAlive::off()), &[]).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(served.follow(http, "").await);
        }
        served.subscriptions(20).await;
        let start = Instant::now();
        drop(clients);
        // No heartbeat and no event tells the server: nginx does.
        served.subscriptions(0).await;
        println!("{http:?}: after {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn streams_that_have_ended_leave_their_connection_to_the_server_to_the_next_request() {
    for http in HTTP {
        let served = Served::start(Hub::builder(), &[]).await;
        let (_client, mut reader) = served.follow(http, "").await;
        served.publish([0]).await;
        served.hub.finish(TOPIC, None).await.unwrap();
        assert_eq!(next(&mut reader).await, "0");
        assert_eq!(reader.next().await, None);
        for _ in 0..5 {
            let (_client, response) = served.get(http, &[("last-event-id", reader.last_event_id())]).await;
            assert_eq!(response.status(), StatusCode::NO_CONTENT);
        }
        assert_eq!(served.inside.connections(), 1, "{http:?}");
    }
}

#[tokio::test]
async fn while_the_server_is_away_nginx_tells_clients_to_come_back() {
    for http in HTTP {
        let Served { hub: _hub, outside: _outside, inside, nginx, _server } = Served::start(Hub::builder(), &[]).await;
        // Nobody listens at its address any more.
        drop(inside);
        let mut drawn = BTreeSet::new();
        for _ in 0..100 {
            let (_client, response) = Client::get(http, nginx.address(http), "/events", &[]).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["content-type"], "text/event-stream");
            assert_eq!(response.headers()["cache-control"], "no-cache");
            let mut reader = EventReader::new(response.into_body());
            assert_eq!(reader.next().await, None);
            drawn.insert(reader.retry_ms());
        }
        assert_eq!(drawn, [2000, 3000, 4000, 5000].map(Some).into());
        let (_client, response) = Client::get(http, nginx.address(http), "/", &[]).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "not where the events are");
    }
}

#[tokio::test]
async fn over_http_1_0_a_cut_behind_nginx_looks_like_the_end() {
    for http in HTTP {
        for (version, clean) in [("proxy_http_version 1.1;", false), ("proxy_http_version 1.0;", true)] {
            let served = Served::start(Hub::builder(), &[version]).await;
            let (_client, mut reader) = served.follow(http, "").await;
            served.publish([0]).await;
            assert_eq!(next(&mut reader).await, "0");
            served.inside.cut();
            let end = timeout(DEADLINE, reader.try_next()).await.unwrap();
            assert_eq!(end.is_ok(), clean, "{http:?} {version} {end:?}");
        }
    }
}
