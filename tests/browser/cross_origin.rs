//! A page of one origin that follows the events of another, with credentials, through tower-http's CORS layer.

use crate::{
    driver::Browser,
    support::{Server, network::Network},
};
use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse as _},
    routing::get,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tidings::{Event, EventId, Hub, LAST_EVENT_ID, Sse, Topic};
use tower_http::cors::CorsLayer;

const TOPIC: Topic = Topic::from_static("t");

const COOKIE: &str = "session=of the page";

/// With characters that a script's header may not have without a preflight, whatever the header.
const ID: &str = "\"(1)\"";

/// What came to the server of the events: the method, and the last event id.
type Requests = Arc<Mutex<Vec<(Method, Option<String>)>>>;

/// A page at one port, and events for those who have its cookie at another.
struct Origins {
    hub: Hub,
    page: Server,
    network: Network,
    requests: Requests,
    _events: Server,
}

impl Origins {
    async fn start(cors: impl FnOnce(CorsLayer) -> CorsLayer) -> Self {
        let cookie = [(header::SET_COOKIE, COOKIE)];
        let page = get(move || async move { (cookie, Html("<!doctype html><link rel=icon href=data:,>")) });
        let page = Server::router(Router::new().route("/", page)).await;

        let hub = Hub::builder().retry(Duration::from_millis(50)).build();
        let events = hub.handler(|request: Parts| async move {
            let cookie = request.headers.get(header::COOKIE);
            if cookie.is_some_and(|cookie| cookie == COOKIE) { Ok(TOPIC) } else { Err(StatusCode::UNAUTHORIZED) }
        });
        let ids = get(|| async {
            let event = Event::new().data("1").retry(Duration::from_millis(50));
            Sse::new(tokio_stream::once((EventId::from_static(ID), event))).into_response()
        });
        let origin = HeaderValue::try_from(format!("http://{}", page.address)).unwrap();
        let layer = cors(CorsLayer::new().allow_origin([origin]).allow_credentials(true));
        let requests = Requests::default();
        let seen = Arc::clone(&requests);
        let record = from_fn(move |request: Request, next: Next| {
            let last = request.headers().get(LAST_EVENT_ID).map(|last| last.to_str().unwrap().to_owned());
            seen.lock().unwrap().push((request.method().clone(), last));
            next.run(request)
        });
        let app = Router::new().route_service("/events", events).route("/ids", ids).layer(layer).layer(record);
        let events = Server::router(app).await;
        let network = Network::to(events.address).await;
        Self { hub, page, network, requests, _events: events }
    }

    async fn publish(&self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.hub.publish(TOPIC, Event::new().data(number.to_string())).await.unwrap();
        }
    }

    async fn open(&self, browser: &Browser) {
        browser.open(&format!("http://{}", self.page.address)).await;
    }

    async fn follow(&self, browser: &Browser, path: &str, with_credentials: bool) {
        browser
            .run::<()>(&format!(
                "window.source = new EventSource('{}{path}', {{ withCredentials: {with_credentials} }});
                window.seen = [];
                window.opens = 0;
                source.onopen = () => {{ opens += 1; }};
                source.onmessage = (event) => seen.push(event.data);",
                self.network.url(),
            ))
            .await;
    }

    /// What a script can read of the response: its status and the gap header; nothing if the browser keeps it back.
    async fn fetch(&self, browser: &Browser, path: &str, headers: &str) -> Option<(u16, Option<String>)> {
        browser
            .run::<()>(&format!(
                "window.answer = undefined;
                fetch('{}{path}', {{ credentials: 'include', headers: {headers} }})
                    .then((response) => [response.status, response.headers.get('tidings-gap')], () => null)
                    .then((read) => {{ answer = [read]; }});",
                self.network.url(),
            ))
            .await;
        let answered = |answer: &Option<_>| answer.is_some();
        let [answer] = browser.until("return window.answer ?? null;", answered).await.unwrap();
        answer
    }

    fn requests(&self) -> Vec<(Method, Option<String>)> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    fn preflights(&self) -> usize {
        self.requests().iter().filter(|(method, _)| method == Method::OPTIONS).count()
    }
}

#[tokio::test]
async fn an_event_source_of_another_origin_resumes_without_a_preflight() {
    let (origins, browser) = (Origins::start(|cors| cors).await, Browser::start().await);
    origins.open(&browser).await;
    origins.follow(&browser, "/events", true).await;
    browser.until("return opens;", |opens: &usize| *opens == 1).await;
    for round in 0..10 {
        origins.network.cut_after(1 + 13 * round as usize);
        origins.publish(5 * round..5 * (round + 1)).await;
        browser.until("return opens;", |opens: &usize| *opens > round as usize + 1).await;
    }
    let seen: Vec<String> = browser.until("return seen;", |seen: &Vec<String>| seen.len() >= 50).await;
    assert_eq!(seen, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());

    let requests = origins.requests();
    assert!(requests.len() > 10, "it was cut: {requests:?}");
    assert!(requests.iter().all(|(method, _)| method == Method::GET), "{requests:?}");
    assert!(requests[1..].iter().all(|(_, last)| last.is_some()), "{requests:?}");
}

#[tokio::test]
async fn an_event_source_of_another_origin_has_no_cookies_unless_it_asks_for_them() {
    let (origins, browser) = (Origins::start(|cors| cors).await, Browser::start().await);
    origins.open(&browser).await;
    origins.follow(&browser, "/events", false).await;
    browser.until("return source.readyState;", |state: &u8| *state == super::EVENT_SOURCE_CLOSED).await;
    assert_eq!(origins.requests().len(), 1, "401 is for good");
}

#[tokio::test]
async fn an_event_source_sends_no_preflight_for_whatever_its_last_event_id_is() {
    let (origins, browser) = (Origins::start(|cors| cors).await, Browser::start().await);
    origins.open(&browser).await;
    origins.follow(&browser, "/ids", true).await;
    browser.until("return opens;", |opens: &usize| *opens > 2).await;
    let requests = origins.requests();
    assert_eq!(requests[1], (Method::GET, Some(ID.to_owned())));
    assert!(requests.iter().all(|(method, _)| method == Method::GET), "{requests:?}");
}

#[tokio::test]
async fn a_script_of_another_origin_reads_the_gap_header_if_it_is_exposed() {
    let browser = Browser::start().await;
    let gap = HeaderName::from_static("tidings-gap");
    for exposed in [true, false] {
        let origins = Origins::start(|cors| if exposed { cors.expose_headers([gap.clone()]) } else { cors }).await;
        origins.open(&browser).await;
        let answer = origins.fetch(&browser, "/events?lastEventId=none-of-ours", "{}").await;
        assert_eq!(answer, Some((200, exposed.then(|| "malformed".to_owned()))));
        assert_eq!(origins.preflights(), 0);
    }
}

#[tokio::test]
async fn a_script_of_another_origin_that_sets_the_last_event_id_has_to_be_allowed_to() {
    let browser = Browser::start().await;
    for allowed in [true, false] {
        let origins = Origins::start(|cors| if allowed { cors.allow_headers([LAST_EVENT_ID]) } else { cors }).await;
        origins.open(&browser).await;
        let answer = origins.fetch(&browser, "/events", "{ 'Last-Event-ID': 'none-of-ours' }").await;
        assert_eq!(answer.map(|(status, _)| status), allowed.then_some(200));
        assert_eq!(origins.preflights(), 1);
    }
}

#[tokio::test]
async fn what_a_proxy_answers_in_place_of_the_server_needs_the_header_of_the_origin() {
    let browser = Browser::start().await;
    for named in [true, false] {
        let origins = Origins::start(|cors| cors).await;
        origins.open(&browser).await;
        origins.follow(&browser, "/events", true).await;
        browser.until("return opens;", |opens: &usize| *opens == 1).await;
        let header = format!(
            "access-control-allow-origin: http://{}\r\naccess-control-allow-credentials: true\r\n",
            origins.page.address
        );
        let header = if named { &*header } else { "" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 11\r\n{header}\r\nretry: 50\n\n"
        );
        origins.network.cut_and_answer(answer);
        if named {
            browser.until("return opens;", |opens: &usize| *opens == 3).await;
            origins.publish([1]).await;
            browser.until("return seen;", |seen: &Vec<String>| *seen == ["1"]).await;
        } else {
            browser.until("return source.readyState;", |state: &u8| *state == super::EVENT_SOURCE_CLOSED).await;
        }
    }
}
