//! The handler and the responses of a subscription: methods, `accept`, refusals, 204, headers, opening blocks, gap
//! reports, heartbeats that move the id.

use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full};
use std::{future::Future, time::Duration};
use tidings::{
    CursorMoves, Event, EventType, Handler, HandlerBody, Hub, IntoSubscription, KeepAlive, Names, Start, Topic,
    replay::Ring,
    test_util::{self, EventReader, Fault, FaultyStore},
};
use tower_service::Service;

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}

fn handler(hub: &Hub) -> Handler<impl Fn(Parts) -> std::future::Ready<Topic> + Send + Sync + 'static> {
    hub.handler(|_| std::future::ready(topic()))
}

async fn call<F, R>(handler: &Handler<F>, request: http::request::Builder) -> Response<HandlerBody>
where
    F: Fn(Parts) -> R + Send + Sync + 'static,
    R: Future<Output: IntoSubscription> + Send + 'static,
{
    let request: Request<()> = request.body(()).unwrap();
    Service::call(&mut handler.clone(), request).await.unwrap()
}

/// What the body has at this moment.
async fn begins_with(response: Response<HandlerBody>) -> String {
    let mut body = Box::pin(response.into_body());
    let mut text = String::new();
    while let Some(Some(frame)) = futures_util::future::poll_immediate(body.frame()).await {
        text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
    }
    text
}

fn without_retry(opening: &str) -> &str {
    let (retry, rest) = opening.split_once('\n').unwrap();
    assert!(retry.starts_with("retry: "), "{opening}");
    rest
}

#[tokio::test]
async fn get_answers_with_the_events() {
    let hub = Hub::new();
    let id = hub.publish(topic(), text("before")).await.unwrap();
    let response = call(&handler(&hub), Request::get("/events")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert_eq!(response.headers().len(), 3);
    let next = hub.publish(topic(), text("after")).await.unwrap();
    let body = begins_with(response).await;
    assert_eq!(without_retry(&body), format!("id: {id}\n\ndata: after\nid: {next}\n\n"));
}

#[tokio::test]
async fn nginx_is_told_not_to_buffer_unless_it_may() {
    for (builder, header) in [(Hub::builder(), Some("no")), (Hub::builder().allow_accel_buffering(), None)] {
        let (store, faults) = FaultyStore::new();
        let hub = builder.open(store).await.unwrap();
        // Also where the client is only told to come back.
        faults.next_read(Fault::Refused);
        for _ in 0..2 {
            let response = call(&handler(&hub), Request::get("/events")).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers().get("x-accel-buffering").map(|value| value.to_str().unwrap()), header);
        }
        assert_eq!(faults.reads(), 2);
    }
}

#[tokio::test]
async fn other_methods_get_405_with_allow() {
    let hub = Hub::new();
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
        let response = call(&handler(&hub), Request::builder().method(method).uri("/events")).await;
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()["allow"], "GET, HEAD");
    }
}

#[tokio::test]
async fn head_gets_the_head() {
    let hub = Hub::new();
    let response = call(&handler(&hub), Request::head("/events")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(begins_with(response).await, "");
}

#[tokio::test]
async fn an_accept_that_excludes_event_streams_gets_406() {
    let hub = Hub::new();
    let good = [
        "text/event-stream",
        "*/*",
        "text/*",
        "text/html, text/event-stream;q=0.5",
        "application/json, */*;q=0.1",
        "TEXT/EVENT-STREAM",
        "",
        "text/event-stream;charset=utf-8",
    ];
    for accept in good {
        let response = call(&handler(&hub), Request::get("/events").header("accept", accept)).await;
        assert_eq!(response.status(), 200, "{accept:?}");
    }
    let bad = [
        "text/html",
        "application/json, image/*",
        "text/event-stream;q=0",
        "*/*;q=0",
        "text/event-stream; q=0.0, */*",
        "text/*;q=0, application/json",
    ];
    for accept in bad {
        let response = call(&handler(&hub), Request::get("/events").header("accept", accept)).await;
        assert_eq!(response.status(), 406, "{accept:?}");
    }
    assert_eq!(call(&handler(&hub), Request::get("/events")).await.status(), 200, "no accept is fine");
}

#[tokio::test]
async fn the_application_may_refuse_with_any_response() {
    let hub = Hub::new();
    let status = hub.handler(|_| async { Err::<Topic, _>(StatusCode::FORBIDDEN) });
    assert_eq!(call(&status, Request::get("/")).await.status(), 403);
    let response = hub.handler(|parts: Parts| async move {
        let user = parts.headers.get("x-user").and_then(|user| user.to_str().ok());
        let login = || Response::builder().status(401).header("www-authenticate", "Basic").body(Full::from("who?"));
        let user = user.ok_or_else(|| login().unwrap())?;
        Topic::scoped(user, "inbox").map_err(|_| login().unwrap())
    });
    let refused = call(&response, Request::get("/")).await;
    assert_eq!(
        (refused.status(), refused.headers()["www-authenticate"].to_str().unwrap()),
        (StatusCode::UNAUTHORIZED, "Basic")
    );
    assert_eq!(refused.into_body().collect().await.unwrap().to_bytes(), "who?");
    assert_eq!(call(&response, Request::get("/").header("x-user", "ann")).await.status(), 200);
}

#[tokio::test]
async fn the_application_may_configure_the_subscription() {
    let hub = Hub::new();
    let id = hub.publish(topic(), text("held")).await.unwrap();
    let all = {
        let hub = hub.clone();
        hub.clone().handler(move |_| {
            let hub = hub.clone();
            async move { hub.subscribe(topic()).start(Start::Earliest) }
        })
    };
    let body = begins_with(call(&all, Request::get("/")).await).await;
    let start = id.to_string().replacen('1', "0", 1);
    assert_eq!(without_retry(&body), format!("id: {start}\n\ndata: held\nid: {id}\n\n"));
    let body = begins_with(call(&all, Request::get("/").header("last-event-id", id.to_string())).await).await;
    assert_eq!(without_retry(&body), format!("id: {id}\n\n"), "an id decides; the start is for those without");
}

#[tokio::test]
async fn a_resume_by_header_or_parameter_gets_what_followed() {
    let hub = Hub::new();
    let first = hub.publish(topic(), text(1)).await.unwrap();
    let second = hub.publish(topic(), text(2)).await.unwrap();
    let expected = format!("id: {first}\n\ndata: 2\nid: {second}\n\n");
    let header = call(&handler(&hub), Request::get("/").header("last-event-id", first.to_string())).await;
    assert_eq!(without_retry(&begins_with(header).await), expected);
    let parameter = call(&handler(&hub), Request::get(format!("/?lastEventId={first}"))).await;
    assert_eq!(without_retry(&begins_with(parameter).await), expected);
    let names = Names { last_event_id_parameter: "from".into(), ..Names::default() };
    let hub = Hub::builder().names(names).build();
    let first = hub.publish(topic(), text(1)).await.unwrap();
    let second = hub.publish(topic(), text(2)).await.unwrap();
    let parameter = call(&handler(&hub), Request::get(format!("/?lastEventId=x&from={first}"))).await;
    assert_eq!(without_retry(&begins_with(parameter).await), format!("id: {first}\n\ndata: 2\nid: {second}\n\n"));
}

#[tokio::test]
async fn a_gap_is_reported_in_the_head_and_in_band_before_what_follows_it() {
    let hub = Hub::builder().window_events(1).ring(Ring::new().events_per_topic(2)).build();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(hub.publish(topic(), text(n)).await.unwrap());
    }
    let response = call(&handler(&hub), Request::get("/").header("last-event-id", ids[0].to_string())).await;
    assert_eq!((response.status(), response.headers()["tidings-gap"].to_str().unwrap()), (StatusCode::OK, "evicted"));
    let body = begins_with(response).await;
    let report = format!(r#"{{"reason":"evicted","after":"{}","through":"{}"}}"#, ids[0], ids[2]);
    assert_eq!(
        without_retry(&body),
        format!(
            "event: tidings-gap\ndata: {report}\n\nid: {}\n\ndata: 3\nid: {}\n\ndata: 4\nid: {}\n\n",
            ids[2], ids[3], ids[4]
        ),
        "the report has no id; the id moves after it"
    );
}

#[tokio::test]
async fn an_id_that_is_none_is_a_gap_and_never_an_error() {
    let hub = Hub::new();
    let tip = hub.publish(topic(), text(1)).await.unwrap();
    let values = [
        ("nonsense".to_owned(), "malformed", "null".to_owned()),
        ("9".repeat(2000), "malformed", "null".to_owned()),
        ("5.0.z".to_owned(), "foreign", "\"5.0.z\"".to_owned()),
    ];
    for (id, reason, after) in values {
        let response = call(&handler(&hub), Request::get("/").header("last-event-id", &id)).await;
        assert_eq!((response.status(), response.headers()["tidings-gap"].to_str().unwrap()), (StatusCode::OK, reason));
        let report = format!(r#"{{"reason":"{reason}","after":{after},"through":"{tip}"}}"#);
        let expected = format!("event: tidings-gap\ndata: {report}\n\nid: {tip}\n\n");
        assert_eq!(without_retry(&begins_with(response).await), expected);
    }
}

#[tokio::test]
async fn the_names_of_the_gap_are_the_applications_to_choose() {
    let names = Names {
        gap_header: http::HeaderName::from_static("x-missed"),
        gap_event: EventType::from_static("missed"),
        ..Names::default()
    };
    let hub = Hub::builder().names(names).build();
    let response = call(&handler(&hub), Request::get("/").header("last-event-id", "?")).await;
    assert_eq!(response.headers()["x-missed"], "malformed");
    assert!(begins_with(response).await.contains("event: missed\n"));
}

#[tokio::test]
async fn finished_topics_answer_204_only_to_a_client_that_has_everything() {
    let hub = Hub::new();
    let first = hub.publish(topic(), text(1)).await.unwrap();
    let last = hub.finish(topic(), Some(text("end"))).await.unwrap();
    let handler = handler(&hub);
    let with = |id: String| Request::get("/").header("last-event-id", id);

    let done = call(&handler, with(last.to_string())).await;
    assert_eq!(done.status(), 204);
    assert!(!done.headers().contains_key("content-type"));
    assert_eq!(done.into_body().collect().await.unwrap().to_bytes(), "");

    let pending = call(&handler, with(first.to_string())).await;
    assert_eq!(pending.status(), 200);
    let body = pending.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(without_retry(std::str::from_utf8(&body).unwrap()), format!("id: {first}\n\ndata: end\nid: {last}\n\n"));

    let fresh = call(&handler, Request::get("/")).await;
    assert_eq!(fresh.status(), 200);
    let body = fresh.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(format!("data: 1\nid: {first}\n\ndata: end\nid: {last}\n\n").as_bytes()));

    assert_eq!(call(&handler, with("nonsense".into())).await.status(), 200, "a gap");
    assert_eq!(call(&handler, with(test_util::foreign_id().to_string())).await.status(), 200, "a gap");
}

#[tokio::test]
async fn a_finish_without_an_event_still_moves_the_id_so_that_the_client_is_stopped() {
    let hub = Hub::new();
    let first = hub.publish(topic(), text(1)).await.unwrap();
    let last = hub.finish(topic(), None).await.unwrap();
    let handler = handler(&hub);
    let response = call(&handler, Request::get("/").header("last-event-id", first.to_string())).await;
    let mut reader = EventReader::new(response.into_body());
    assert_eq!(reader.next().await, None);
    assert_eq!(reader.last_event_id(), last.to_string());
    let again = call(&handler, Request::get("/").header("last-event-id", reader.last_event_id())).await;
    assert_eq!(again.status(), 204);
}

#[tokio::test]
async fn retry_is_drawn_for_each_client_from_half_to_one_and_a_half() {
    let hub = Hub::builder().retry(Duration::from_secs(10)).build();
    let mut drawn = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let body = begins_with(call(&handler(&hub), Request::get("/")).await).await;
        let ms: u64 = body.lines().next().unwrap().strip_prefix("retry: ").unwrap().parse().unwrap();
        assert!((5_000..=15_000).contains(&ms));
        drawn.insert(ms);
    }
    assert!(drawn.len() > 100);
    assert!(*drawn.first().unwrap() < 6_500 && *drawn.last().unwrap() > 13_500, "spread over the range");
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_moves_the_id_only_when_the_position_has_moved() {
    let (hub, other) = (Hub::new(), Topic::new("other").unwrap());
    let start = hub.publish(&other, text(0)).await.unwrap();
    let response = hub.subscribe(topic()).into_http_response();
    let mut body = Box::pin(response.into_body());
    let mut frame =
        async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
    assert_eq!(without_retry(&frame().await), format!("id: {start}\n\n"));
    assert_eq!(frame().await, ":\n", "nothing moved");
    let moved = hub.publish(&other, text(1)).await.unwrap();
    assert_eq!(frame().await, format!("id: {moved}\n\n"), "another topic's events moved the position");
    assert_eq!(frame().await, ":\n");
    let id = hub.publish(topic(), text(2)).await.unwrap();
    assert_eq!(frame().await, format!("data: 2\nid: {id}\n\n"));
    assert_eq!(frame().await, ":\n", "the event moved it already");
}

#[tokio::test(start_paused = true)]
async fn named_heartbeats_are_seen_whether_or_not_the_position_has_moved() {
    let (hub, other) = (Hub::new(), Topic::new("other").unwrap());
    let beat = KeepAlive::new().event(EventType::from_static("beat"));
    let mut reader = EventReader::new(hub.subscribe(topic()).keep_alive(beat).into_http_response().into_body());
    for n in 0..3 {
        let moved = hub.publish(&other, text(n)).await.unwrap();
        for _ in 0..2 {
            let beat = reader.next().await.unwrap();
            assert_eq!((beat.event_type.as_str(), beat.data.as_str()), ("beat", "15000"));
            assert_eq!(beat.last_event_id, moved.to_string());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cursor_moves_can_be_a_named_event_or_off() {
    let (hub, other) = (Hub::new(), Topic::new("other").unwrap());
    let start = hub.publish(&other, text(0)).await.unwrap();
    let named = CursorMoves::Named(EventType::from_static("cursor"));
    let mut reader = EventReader::new(hub.subscribe(topic()).cursor_moves(named).into_http_response().into_body());
    let first = reader.next().await.unwrap();
    assert_eq!((first.event_type.as_str(), first.data), ("cursor", start.to_string()));
    let moved = hub.publish(&other, text(1)).await.unwrap();
    let next = reader.next().await.unwrap();
    assert_eq!((next.data, next.last_event_id), (moved.to_string(), moved.to_string()));

    let mut off = Box::pin(hub.subscribe(topic()).cursor_moves(CursorMoves::Off).into_http_response().into_body());
    hub.publish(&other, text(2)).await.unwrap();
    let mut frames = String::new();
    for _ in 0..3 {
        frames.push_str(std::str::from_utf8(&off.frame().await.unwrap().unwrap().into_data().unwrap()).unwrap());
    }
    assert_eq!(without_retry(&frames), ":\n:\n", "not one blank line");
}

#[tokio::test]
async fn a_store_that_cannot_be_read_tells_the_client_to_come_back() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    faults.next_read(Fault::Refused);
    let response = call(&handler(&hub), Request::get("/")).await;
    assert_eq!(response.status(), 200, "any other status would stop an EventSource for good");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = std::str::from_utf8(&body).unwrap();
    assert!(body.starts_with("retry: ") && body.ends_with("\n\n") && body.lines().count() == 2, "{body:?}");
}

#[tokio::test]
async fn a_client_that_is_no_event_source_gets_503_with_retry_after() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    let handler = handler(&hub).event_source_if(|parts| !parts.headers.contains_key("x-fetch"));
    faults.next_read(Fault::Refused);
    let response = call(&handler, Request::get("/").header("x-fetch", "1")).await;
    assert_eq!(response.status(), 503);
    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((2..=5).contains(&seconds), "3 seconds give or take a half");
    faults.next_read(Fault::Refused);
    assert_eq!(call(&handler, Request::get("/")).await.status(), 200);
}

#[tokio::test]
async fn no_setting_makes_a_response_panic() {
    let huge = KeepAlive::new().interval(Duration::MAX);
    let hub = Hub::builder().retry(Duration::MAX).keep_alive(huge).window_events(0).window_bytes(0).page(0, 0).build();
    let mut reader = EventReader::new(call(&handler(&hub), Request::get("/")).await.into_body());
    hub.publish(topic(), text(1)).await.unwrap();
    hub.publish(topic(), text(2)).await.unwrap();
    assert_eq!(reader.next().await.unwrap().data, "1");
    assert_eq!(reader.next().await.unwrap().data, "2");
    let ring = Ring::new().events_per_topic(0).bytes_per_topic(0).total_bytes(0).max_age(Duration::ZERO);
    let hub = Hub::builder().ring(ring).retry(Duration::ZERO).build();
    assert!(hub.publish(topic(), text(1)).await.unwrap_err().is_too_large());
}

#[tokio::test]
async fn a_store_that_fails_in_the_middle_ends_the_body_with_an_error_and_a_good_id() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().window_events(1).page(2, 1 << 20).open(store).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(hub.publish(topic(), text(n)).await.unwrap());
    }
    let response = call(&handler(&hub), Request::get("/").header("last-event-id", ids[0].to_string())).await;
    faults.next_read(Fault::Refused);
    let mut reader = EventReader::new(response.into_body());
    assert_eq!(reader.next().await.unwrap().data, "1");
    assert_eq!(reader.next().await.unwrap().data, "2");
    assert!(reader.try_next().await.is_err());
    assert_eq!(reader.last_event_id(), ids[2].to_string());
}

#[tokio::test]
async fn subscribing_makes_no_lasting_state() {
    let hub = Hub::new();
    let before = format!("{hub:?}");
    for n in 0..1000 {
        let topic = Topic::new(format!("guess-{n}")).unwrap();
        let response = hub.subscribe(&topic).into_http_response();
        drop(response);
    }
    assert_eq!(format!("{hub:?}"), before);
    assert!(before.contains("topics: 0"), "{before}");
}
