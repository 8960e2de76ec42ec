//! What the layers that applications put around everything do to event streams, as the page on deploying says.

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::get,
};
use flate2::write::GzDecoder;
use futures_util::stream;
use http_body_util::BodyExt as _;
use std::{future::ready, io::Write as _, sync::Arc, time::Duration};
use tidings::{
    Event, Hub, LAST_EVENT_ID, Sse, Topic,
    test_util::{EventReader, decode},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tower::{
    ServiceExt as _,
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer},
};
use tower_http::{
    compression::{CompressionLayer, predicate::SizeAbove},
    cors::{Any, CorsLayer},
    timeout::{RequestBodyTimeoutLayer, ResponseBodyDeadlineLayer, ResponseBodyTimeoutLayer, TimeoutLayer},
};

const TOPIC: Topic = Topic::from_static("t");

const SECOND: Duration = Duration::from_secs(1);

/// The events, one that is slow to say whether a client may have them, and a page.
fn app(hub: &Hub) -> Router {
    let slow = hub.handler(|_| async {
        sleep(10 * SECOND).await;
        TOPIC
    });
    Router::new()
        .route_service("/events", hub.handler_for(TOPIC))
        .route_service("/slow/events", slow)
        .route("/", get(|| ready("x".repeat(1000))))
}

async fn send(app: &Router, request: Request) -> Response {
    app.clone().oneshot(request).await.unwrap()
}

async fn fetch(app: &Router, uri: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(app, request.body(Body::empty()).unwrap()).await
}

async fn follow(app: &Router, last: &str) -> EventReader<Body> {
    let headers = [("last-event-id", last)];
    let response = fetch(app, "/events", if last.is_empty() { &[] } else { &headers }).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("tidings-gap"));
    EventReader::new(response.into_body())
}

async fn publish(hub: &Hub, text: impl ToString) {
    hub.publish(TOPIC, Event::new().data(text.to_string())).await.unwrap();
}

mod compression {
    use super::*;

    const GZIP: [(&str, &str); 1] = [("accept-encoding", "gzip")];

    #[tokio::test(start_paused = true)]
    async fn leaves_events_alone_by_default() {
        let hub = Hub::new();
        let app = app(&hub).layer(CompressionLayer::new());
        let page = fetch(&app, "/", &GZIP).await;
        assert_eq!(page.headers()[header::CONTENT_ENCODING], "gzip");
        let response = fetch(&app, "/events", &GZIP).await;
        assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
        let mut reader = EventReader::new(response.into_body());
        for number in 0..10 {
            publish(&hub, number).await;
            assert_eq!(reader.next().await.unwrap().data, number.to_string());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn by_a_predicate_of_your_own_compresses_events_whatever_the_response_says_and_delays_none() {
        let hub = Hub::new();
        let app = app(&hub).layer(CompressionLayer::new().compress_when(SizeAbove::new(256)));
        let response = fetch(&app, "/events", &GZIP).await;
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-cache, no-transform");
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        let (mut body, mut gzip, mut compressed) = (response.into_body(), GzDecoder::new(Vec::new()), 0);
        for number in 1..=50 {
            publish(&hub, "x".repeat(100)).await;
            // The clock stands still while there is anything to do: an event that is held back would let it run.
            let start = Instant::now();
            while decode(gzip.get_ref()).len() < number {
                let bytes = body.frame().await.unwrap().unwrap().into_data().unwrap();
                compressed += bytes.len();
                gzip.write_all(&bytes).unwrap();
                gzip.flush().unwrap();
            }
            assert_eq!(start.elapsed(), Duration::ZERO);
        }
        println!("{} bytes of events as {compressed}", gzip.get_ref().len());
        assert!(compressed < gzip.get_ref().len() / 2);
    }

    #[test]
    fn of_events_costs_memory_for_each_connection() {
        let cost = |layer: bool| {
            let hub = Hub::new();
            let app = if layer {
                app(&hub).layer(CompressionLayer::new().compress_when(SizeAbove::new(256)))
            } else {
                app(&hub)
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut bodies = Vec::with_capacity(100);
            let open = |bodies: &mut Vec<Body>| {
                runtime.block_on(async {
                    let mut body = fetch(&app, "/events", &GZIP).await.into_body();
                    body.frame().await.unwrap().unwrap();
                    bodies.push(body);
                });
            };
            // What is made once is not counted.
            open(&mut bodies);
            let counted = allocation_counter::measure(|| (0..20).for_each(|_| open(&mut bodies)));
            counted.bytes_current / 20
        };
        let (plain, compressed) = (cost(false), cost(true));
        println!("{plain} bytes for each stream, {compressed} if it is compressed");
        assert!(compressed - plain > 100 * 1024);
    }
}

mod timeouts {
    use super::*;

    fn until_the_head(after: Duration) -> TimeoutLayer {
        TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, after)
    }

    /// Follows for an hour, in which something is published every second minute.
    async fn goes_on_for_an_hour(hub: &Hub, app: &Router) {
        let mut reader = follow(app, "").await;
        for number in 0..30 {
            assert!(timeout(120 * SECOND, reader.next()).await.is_err(), "the stream should go on");
            publish(hub, number).await;
            assert_eq!(reader.next().await.unwrap().data, number.to_string());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_request_end_with_the_head_of_the_response() {
        let hub = Hub::new();
        goes_on_for_an_hour(&hub, &app(&hub).layer(until_the_head(SECOND))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_request_answer_in_place_of_a_slow_authorisation() {
        let hub = Hub::new();
        let app = app(&hub).layer(until_the_head(SECOND));
        let response = fetch(&app, "/slow/events", &[]).await;
        // An `EventSource` gives up for good.
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_requests_body_do_nothing() {
        let hub = Hub::new();
        goes_on_for_an_hour(&hub, &app(&hub).layer(RequestBodyTimeoutLayer::new(SECOND))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_responses_body_have_to_be_longer_than_the_heartbeat() {
        let hub = Hub::new();
        goes_on_for_an_hour(&hub, &app(&hub).layer(ResponseBodyTimeoutLayer::new(30 * SECOND))).await;

        let app = app(&hub).layer(ResponseBodyTimeoutLayer::new(10 * SECOND));
        let mut reader = follow(&app, "").await;
        let start = Instant::now();
        reader.try_next().await.expect_err("the body should fail");
        assert_eq!(start.elapsed().as_secs(), 10);
        resumes(&hub, &app, reader.last_event_id()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_whole_response_cut_the_liveliest_stream() {
        let hub = Hub::new();
        let app = app(&hub).layer(ResponseBodyDeadlineLayer::new(30 * SECOND));
        let mut reader = follow(&app, "").await;
        let start = Instant::now();
        let mut number = 0;
        loop {
            publish(&hub, number).await;
            match reader.try_next().await {
                Ok(event) => assert_eq!(event.unwrap().data, number.to_string()),
                Err(_) => break,
            }
            number += 1;
            sleep(SECOND).await;
        }
        assert_eq!(start.elapsed().as_secs(), 30);
        // The event that was not delivered is the first of the next connection.
        let mut reader = follow(&app, reader.last_event_id()).await;
        assert_eq!(reader.next().await.unwrap().data, number.to_string());
    }

    async fn resumes(hub: &Hub, app: &Router, last: &str) {
        publish(hub, "while it was away").await;
        assert_eq!(follow(app, last).await.next().await.unwrap().data, "while it was away");
    }

    #[tokio::test(start_paused = true)]
    async fn cover_only_the_routes_that_are_there_when_they_are_added() {
        let hub = Hub::new();
        let pages = Router::new().route("/", get(|| ready("a page")));
        let events = Router::new().route_service("/events", hub.handler_for(TOPIC));
        let deadline = ResponseBodyDeadlineLayer::new(SECOND);
        let outside = [
            pages.clone().layer(deadline.clone()).merge(events.clone()),
            pages.clone().layer(deadline.clone()).route_service("/events", hub.handler_for(TOPIC)),
            pages.clone().route_layer(deadline.clone()).merge(events.clone()),
        ];
        for app in outside {
            goes_on_for_an_hour(&hub, &app).await;
        }
        let inside = [
            pages.clone().merge(events.clone()).layer(deadline.clone()),
            pages.clone().merge(events.clone()).route_layer(deadline.clone()),
            Router::new().merge(pages.merge(events)).layer(deadline),
        ];
        for app in inside {
            let mut reader = follow(&app, "").await;
            reader.try_next().await.expect_err("the body should fail");
        }
    }
}

mod limits {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_concurrent_requests_do_not_count_streams() {
        let hub = Hub::new();
        let app = app(&hub).layer(GlobalConcurrencyLimitLayer::new(1));
        let mut readers = Vec::new();
        for _ in 0..10 {
            readers.push(follow(&app, "").await);
        }
        publish(&hub, 1).await;
        for mut reader in readers {
            assert_eq!(reader.next().await.unwrap().data, "1");
        }
    }

    /// How many seconds a request takes that comes after one that waits ten for the head of its response.
    async fn takes(app: &Router, uri: &str) -> u64 {
        let slow = app.clone();
        let slow = tokio::spawn(async move { fetch(&slow, "/slow/events", &[]).await });
        tokio::task::yield_now().await;
        let start = Instant::now();
        assert_eq!(fetch(app, uri, &[]).await.status(), StatusCode::OK);
        let took = start.elapsed().as_secs();
        assert_eq!(slow.await.unwrap().status(), StatusCode::OK);
        took
    }

    #[tokio::test(start_paused = true)]
    async fn of_concurrent_requests_count_them_until_the_head_of_the_response() {
        let hub = Hub::new();
        let without = app(&hub);
        assert_eq!((takes(&without, "/slow/events").await, takes(&without, "/").await), (10, 0));
        let global = app(&hub).layer(GlobalConcurrencyLimitLayer::new(1));
        assert_eq!((takes(&global, "/slow/events").await, takes(&global, "/").await), (20, 10));
        // The other one counts for each route.
        let each = app(&hub).layer(ConcurrencyLimitLayer::new(1));
        assert_eq!((takes(&each, "/slow/events").await, takes(&each, "/").await), (20, 0));
    }

    /// As on the page.
    async fn limit_streams(places: Arc<Semaphore>, request: Request, next: Next) -> Response {
        let Ok(place) = places.try_acquire_owned() else {
            return Sse::new(stream::iter([Event::new().retry(30 * SECOND)])).into_response();
        };
        next.run(request).await.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held_until_the_stream_ends = &place;
                frame
            }))
        })
    }

    #[tokio::test(start_paused = true)]
    async fn of_streams_hold_a_permit_in_the_body() {
        let hub = Hub::new();
        let places = Arc::new(Semaphore::new(2));
        let layer = from_fn(move |request: Request, next: Next| limit_streams(places.clone(), request, next));
        let app = app(&hub).layer(layer);
        let first = follow(&app, "").await;
        let mut second = follow(&app, "").await;
        let mut third = follow(&app, "").await;
        assert_eq!(third.next().await, None);
        assert_eq!(third.retry_ms(), Some(30_000));
        drop(first);
        let mut third = follow(&app, "").await;
        publish(&hub, 1).await;
        for reader in [&mut second, &mut third] {
            assert_eq!(reader.next().await.unwrap().data, "1");
        }
    }
}

mod cors {
    use super::*;

    const SHOP: &str = "https://shop.example";
    const FROM_SHOP: (&str, &str) = ("origin", SHOP);

    /// As on the page.
    fn layer() -> CorsLayer {
        CorsLayer::new()
            .allow_origin([HeaderValue::from_static(SHOP)])
            .allow_credentials(true)
            .allow_methods([Method::GET])
            .allow_headers([LAST_EVENT_ID])
            .expose_headers([GAP])
    }

    const GAP: HeaderName = HeaderName::from_static("tidings-gap");

    #[tokio::test(start_paused = true)]
    async fn lets_scripts_of_another_origin_read_events_and_the_gap_header() {
        let hub = Hub::new();
        let app = app(&hub).layer(layer());
        let response = fetch(&app, "/events", &[FROM_SHOP, ("last-event-id", "of another log")]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["access-control-allow-origin"], SHOP);
        assert_eq!(response.headers()["access-control-allow-credentials"], "true");
        assert_eq!(response.headers()["access-control-expose-headers"], "tidings-gap");
        assert_eq!(response.headers()["tidings-gap"], "malformed");

        let response = fetch(&app, "/events", &[("origin", "https://elsewhere.example")]).await;
        assert!(!response.headers().contains_key("access-control-allow-origin"));
    }

    fn preflight() -> Request {
        let request = Request::options("/events")
            .header("origin", SHOP)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "last-event-id");
        request.body(Body::empty()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_the_preflight_of_a_script_that_sets_the_last_event_id() {
        let hub = Hub::new();
        let response = send(&app(&hub).layer(layer()), preflight()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["access-control-allow-headers"], "last-event-id");
        // Without the layer, nobody does.
        assert_eq!(send(&app(&hub), preflight()).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    #[should_panic(expected = "Cannot combine `Access-Control-Allow-Credentials: true`")]
    fn refuses_credentials_for_every_origin() {
        let hub = Hub::new();
        let _app = app(&hub).layer(layer().allow_origin(Any));
    }

    #[tokio::test(start_paused = true)]
    async fn belongs_outside_of_what_answers_in_place_of_the_application() {
        let hub = Hub::new();
        let timeout = TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, SECOND);
        // The last layer is the outermost.
        let outside = app(&hub).layer(timeout).layer(layer());
        let inside = app(&hub).layer(layer()).layer(timeout);
        for (app, readable) in [(outside, true), (inside, false)] {
            let response = fetch(&app, "/slow/events", &[FROM_SHOP]).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers().contains_key("access-control-allow-origin"), readable);
        }
    }
}
