//! The guarantee as a real browser's `EventSource` sees it: through headless Chromium, against the examples and against
//! hubs with their defaults.
//!
//! Needs Debian's `chromium`, `chromium-driver` and `redis-server`, and is run by name: `cargo test --test browser`.

#[path = "browser/cross_origin.rs"]
mod cross_origin;
#[path = "browser/driver.rs"]
mod driver;
#[path = "browser/multi_node.rs"]
mod multi_node;
mod support;

use crate::{
    driver::Browser,
    support::{
        Client, Http,
        example::{self, Example},
        network::Network,
    },
};
use axum::{Router, response::Html, routing::get};
use http::StatusCode;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use std::{future::ready, net::Ipv4Addr, path::PathBuf, sync::LazyLock, time::Duration};
use tidings::{Event, Hub, HubBuilder, Topic, replay::Ring, test_util::EventReader};
use tokio::{net::TcpListener, task::JoinSet};

static QUICKSTART: LazyLock<PathBuf> = LazyLock::new(|| example::build("quickstart"));

struct Quickstart(Example);

impl Quickstart {
    async fn start() -> Self {
        Self(Example::start(&QUICKSTART, &[]).await)
    }

    fn url(&self) -> String {
        self.0.url()
    }

    /// Publishes past any network that fails, and returns the id.
    async fn publish(&self, text: &str) -> String {
        let (_client, response) = Client::post(self.0.address, "/publish", text).await;
        assert_eq!(response.status(), StatusCode::OK);
        let id = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(id.to_vec()).unwrap().trim_end().to_owned()
    }

    /// Publishes a number as often as asked, and returns what a page should show of it.
    async fn publish_numbers(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<(String, String)> {
        let mut published = Vec::new();
        for number in numbers {
            let text = number.to_string();
            published.push((self.publish(&text).await, text));
        }
        published
    }
}

/// What the quickstart's page shows.
#[derive(Debug, Deserialize)]
struct Page {
    state: String,
    last_id: String,
    received: usize,
    reconnects: u32,
    gaps: u32,
    round_trip: String,
    /// Ids and data, the oldest first.
    events: Vec<(String, String)>,
}

const PAGE: &str = "
    const text = (id) => document.getElementById(id).textContent;
    return {
        state: text('state'),
        last_id: text('last-id'),
        received: Number(text('received')),
        reconnects: Number(text('reconnects')),
        gaps: Number(text('gaps')),
        round_trip: text('round-trip'),
        events: [...document.querySelectorAll('#events li[data-id]')].reverse()
            .map((item) => [item.dataset.id, item.querySelector('pre').textContent]),
    };";

impl Page {
    async fn open(browser: &Browser, url: &str) {
        browser.open(url).await;
        // The id says that the subscription stands: what is published from now on, the page must show.
        Self::until(browser, |page| page.state == "open" && !page.last_id.is_empty()).await;
    }

    async fn until(browser: &Browser, wanted: impl Fn(&Self) -> bool) -> Self {
        browser.until(PAGE, wanted).await
    }

    /// Waits for as many events as were published, and checks that they are the same, and that no gap was reported.
    async fn shows(browser: &Browser, published: &[(String, String)]) -> Self {
        let page = Self::until(browser, |page| page.received >= published.len()).await;
        assert_eq!(page.events, published);
        assert_eq!(page.received, published.len());
        assert_eq!(page.gaps, 0);
        assert_eq!(page.last_id, published.last().unwrap().0);
        page
    }
}

#[tokio::test]
async fn an_open_page_shows_what_is_published() {
    let (quickstart, browser) = (Quickstart::start().await, Browser::start().await);
    quickstart.publish("before the page was there").await;
    Page::open(&browser, &quickstart.url()).await;
    let published = quickstart.publish_numbers(0..10).await;
    let page = Page::shows(&browser, &published).await;
    assert_eq!(page.reconnects, 0);

    browser.type_into("#text", "one\ntwo").await;
    browser.click("#form [type=submit]").await;
    Page::until(&browser, |page| page.received == 11).await;
    browser.click("#ten").await;
    let page = Page::until(&browser, |page| page.received >= 21).await;
    let texts: Vec<_> = page.events[10..].iter().map(|(_, text)| text.as_str()).collect();
    let expected: Vec<_> = (1..=10).map(|n| format!("one\ntwo {n}")).collect();
    assert_eq!(texts[0], "one\ntwo");
    assert_eq!(texts[1..], expected);
    // It said that it is there, and the stream answered.
    Page::until(&browser, |page| page.round_trip.ends_with(" ms")).await;
}

#[tokio::test]
async fn a_page_that_was_cut_off_comes_back_by_itself_and_catches_up() {
    let (quickstart, browser) = (Quickstart::start().await, Browser::start().await);
    Page::open(&browser, &quickstart.url()).await;
    let mut published = quickstart.publish_numbers(0..10).await;
    Page::shows(&browser, &published).await;

    browser.click("#cut").await;
    Page::until(&browser, |page| page.state == "reconnecting").await;
    published.extend(quickstart.publish_numbers(10..50).await);
    let page: Page = browser.run(PAGE).await;
    assert_eq!((page.state.as_str(), page.received), ("reconnecting", 10), "nothing comes through a cut connection");

    let page = Page::shows(&browser, &published).await;
    assert_eq!((page.state.as_str(), page.reconnects), ("open", 1));
    published.extend(quickstart.publish_numbers(50..60).await);
    Page::shows(&browser, &published).await;
}

#[tokio::test]
async fn a_page_shows_every_event_once_and_in_order_wherever_its_connection_is_cut() {
    let (quickstart, browser) = (Quickstart::start().await, Browser::start().await);
    let network = Network::to(quickstart.0.address).await;
    Page::open(&browser, &network.url()).await;
    let mut published = Vec::new();
    for round in 0..8 {
        Page::until(&browser, |page| page.state == "open" && page.reconnects == round).await;
        // At another place of some event each time, with the rest of the round published while the page is away.
        network.cut_after(1 + 73 * round as usize);
        published.extend(quickstart.publish_numbers(25 * round..25 * (round + 1)).await);
    }
    assert_eq!(published.len(), 200);
    let page = Page::shows(&browser, &published).await;
    assert_eq!(page.reconnects, 8);
}

#[tokio::test]
async fn any_text_arrives_unchanged_but_for_line_breaks() {
    let (quickstart, browser) = (Quickstart::start().await, Browser::start().await);
    Page::open(&browser, &quickstart.url()).await;
    let long = "0123456789abcdef\u{1f4e8}".repeat(10_000);
    let texts = [
        "",
        " ",
        "  two leading spaces, one trailing ",
        "\n",
        "\r\n",
        "\r",
        "\n\r",
        "\r\r\n\n",
        "\nleading newline",
        "trailing newline\n",
        "two trailing newlines\n\n",
        "LF\nCRLF\r\nCR\rend",
        "first\n\n\nfourth",
        ": no comment",
        "no data: field\ndata: one\nid: 7\nevent: tidings-gap\nretry: 1\n\ndata: two",
        "tab\tNUL\0 vertical tab\u{b} form feed\u{c} NEL\u{85} LS\u{2028} PS\u{2029} end",
        "\u{feff}a byte order mark at the start, \u{feff}within, and at the end\u{feff}",
        "\u{1f469}\u{200d}\u{1f680} \u{1f1fa}\u{1f1f3} \u{1f44b}\u{1f3fd}",
        "composed \u{e9}, decomposed e\u{301}, zalgo z\u{335}\u{34d}\u{301}",
        "שלום עולם \u{202e}override\u{202c} مرحبا",
        "漢字 \u{20bb7} かな 한글",
        "\u{fffd}\u{ffff}\u{10ffff}",
        "<script>alert(1)</script> &amp; \"quoted\" \\n",
        &long,
    ];
    let mut published = Vec::new();
    for text in texts {
        let id = quickstart.publish(text).await;
        published.push((id, text.replace("\r\n", "\n").replace('\r', "\n")));
    }
    Page::shows(&browser, &published).await;
}

#[tokio::test]
async fn the_pages_watchdog_starts_over_where_an_event_source_does_not() {
    let (quickstart, browser) = (Quickstart::start().await, Browser::start().await);
    let network = Network::to(quickstart.0.address).await;
    Page::open(&browser, &network.url()).await;
    // From the heartbeat the page learns how long a silence means trouble.
    browser.until("return interval;", |interval: &u32| *interval == 2000).await;

    // Nothing was received yet: the page has only the id that it was given at the start.
    network.go_silent();
    let mut published = quickstart.publish_numbers(0..10).await;
    let page = Page::shows(&browser, &published).await;
    assert_eq!((page.state.as_str(), page.reconnects), ("open", 1));

    // An EventSource gives up for good.
    network.cut_and_answer("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
    published.extend(quickstart.publish_numbers(10..20).await);
    browser.until("return source.readyState;", |state: &u8| *state == EVENT_SOURCE_CLOSED).await;
    let page = Page::shows(&browser, &published).await;
    assert_eq!((page.state.as_str(), page.reconnects), ("open", 2));
}

const EVENT_SOURCE_CLOSED: u8 = 2;

/// A hub in this process whose topic is served at `/events`, beside an empty page.
struct Served {
    hub: Hub,
    topic: Topic,
    network: Network,
    // Ends with it.
    _tasks: JoinSet<()>,
}

impl Served {
    /// All but the reconnection time as it is by default: with it, each cut would take seconds.
    async fn start(hub: HubBuilder) -> Self {
        let (hub, topic) = (hub.retry(Duration::from_millis(50)).build(), Topic::new("t").unwrap());
        let followed = topic.clone();
        let app = Router::new()
            .route_service("/events", hub.handler(move |_| ready(followed.clone())))
            .route("/", get(Html("<!doctype html><link rel=icon href=data:,>")));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let network = Network::to(listener.local_addr().unwrap()).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { hub, topic, network, _tasks: tasks }
    }

    async fn publish(&self, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.hub.publish(&self.topic, Event::new().data(number.to_string())).await.unwrap();
        }
    }

    /// Opens the page, and in it an `EventSource` with nothing around it.
    async fn follow(&self, browser: &Browser) {
        browser.open(&self.network.url()).await;
        browser
            .run::<()>(
                "window.source = new EventSource('/events');
                window.seen = [];
                window.opens = 0;
                source.onopen = () => { opens += 1; };
                source.onmessage = (event) => seen.push(event.data);
                source.addEventListener('tidings-gap', (event) => seen.push('gap: ' + JSON.parse(event.data).reason));",
            )
            .await;
        Self::opened(browser, 1).await;
    }

    async fn opened(browser: &Browser, times: usize) {
        browser.until("return opens;", |opens: &usize| *opens >= times).await;
    }

    async fn seen(browser: &Browser, last: u32) -> Vec<String> {
        let last = last.to_string();
        browser.until("return seen;", |seen: &Vec<String>| seen.last() == Some(&last)).await
    }
}

fn texts(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn a_bare_event_source_misses_nothing_even_if_it_is_cut_before_its_first_event() {
    let (served, browser) = (Served::start(Hub::builder()).await, Browser::start().await);
    served.publish(0..3).await;
    served.follow(&browser).await;
    served.network.cut();
    served.publish(3..5).await;
    assert_eq!(Served::seen(&browser, 4).await, texts(3..5));

    for round in 1..40 {
        Served::opened(&browser, 1 + round as usize).await;
        // Less than the five events have on the wire.
        served.network.cut_after(1 + 4 * round as usize);
        served.publish(5 * round..5 * (round + 1)).await;
    }
    assert_eq!(Served::seen(&browser, 199).await, texts(3..200));
}

#[tokio::test]
async fn an_event_source_that_comes_back_too_late_is_told_so_first() {
    let hub = Hub::builder().window_events(2).ring(Ring::new().events_per_topic(5));
    let (served, browser) = (Served::start(hub).await, Browser::start().await);
    served.follow(&browser).await;
    served.publish(0..2).await;
    Served::seen(&browser, 1).await;
    served.network.cut();
    // In one step, so that it cannot come back between two of them.
    let numbers = (2..20).map(|number| (&served.topic, Event::new().data(number.to_string())));
    served.hub.publish_all(numbers).await;
    let mut expected = texts(0..2);
    expected.push("gap: evicted".to_owned());
    expected.extend(texts(15..20));
    assert_eq!(Served::seen(&browser, 19).await, expected);

    // The report was for once.
    served.network.cut();
    served.publish(20..21).await;
    expected.extend(texts(20..21));
    assert_eq!(Served::seen(&browser, 20).await, expected);
}

#[tokio::test]
async fn an_event_source_stops_for_good_once_its_topic_is_finished() {
    let (served, browser) = (Served::start(Hub::builder()).await, Browser::start().await);
    served.follow(&browser).await;
    served.publish(0..2).await;
    served.hub.finish(&served.topic, Some(Event::new().data("2"))).await.unwrap();
    browser.until("return source.readyState;", |state: &u8| *state == EVENT_SOURCE_CLOSED).await;
    assert_eq!(browser.run::<Vec<String>>("return seen;").await, texts(0..3));
    assert_eq!(browser.run::<usize>("return opens;").await, 1, "204 is not an opening");
}

#[tokio::test]
async fn over_http_1_1_the_seventh_event_source_and_everything_else_waits_for_one_of_six_to_close() {
    let (served, browser) = (Served::start(Hub::builder()).await, Browser::start().await);
    browser.open(&served.network.url()).await;
    browser
        .run::<()>(
            "window.opens = 0;
            window.sources = [...Array(7)].map(() => new EventSource('/events'));
            sources.forEach((source) => { source.onopen = () => { opens += 1; }; });",
        )
        .await;
    Served::opened(&browser, 6).await;
    browser.run::<()>("window.fetched = false; fetch('/').then(() => { fetched = true; });").await;
    // Time enough for the others, if they did not have to wait.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(browser.run::<(usize, bool)>("return [opens, fetched];").await, (6, false));
    // Whichever is first gets the place.
    browser.run::<()>("sources[0].close(); sources[1].close();").await;
    Served::opened(&browser, 7).await;
    browser.until("return fetched;", |fetched: &bool| *fetched).await;
}

static RESUMABLE_ANSWER: LazyLock<PathBuf> = LazyLock::new(|| example::build("resumable_answer"));

const READERS: [&str; 2] = ["eventSource", "fetch"];

/// What the page of the resumable answer shows.
#[derive(Debug, Deserialize)]
struct AnswerPage {
    id: String,
    reader: String,
    state: String,
    prompt: String,
    answer: String,
    why: String,
    tokens: usize,
    reconnects: i32,
}

const ANSWER_PAGE: &str = "
    const text = (id) => document.getElementById(id).textContent;
    return {
        id: location.hash.slice(1),
        reader: document.querySelector('input[name=way]:checked').value,
        state: text('state'),
        prompt: text('prompt'),
        answer: text('answer'),
        why: text('why'),
        tokens: Number(text('tokens')),
        reconnects: Number(text('reconnects')),
    };";

impl AnswerPage {
    /// Starts the example at a pace that leaves time for what a test does in the middle of an answer.
    async fn serve() -> Example {
        Example::start(&RESUMABLE_ANSWER, &["--pace-ms", "50"]).await
    }

    async fn open(browser: &Browser, url: &str, reader: &str) {
        browser.open(url).await;
        browser.click(&format!("input[value={reader}]")).await;
    }

    async fn ask(browser: &Browser, prompt: &str) {
        browser.type_into("#text", prompt).await;
        browser.click("#form [type=submit]").await;
    }

    async fn until(browser: &Browser, wanted: impl Fn(&Self) -> bool) -> Self {
        browser.until(ANSWER_PAGE, wanted).await
    }

    /// Waits for the end, and checks that the page has all that the server has, and has it once.
    async fn ends(browser: &Browser, example: &Example, how: &str) -> Self {
        let page = Self::until(browser, |page| page.state == how).await;
        let uri = format!("/answers/{}/events", page.id);
        let (_client, response) = Client::get(Http::One, example.address, &uri, &[]).await;
        let mut events = EventReader::new(response.into_body());
        assert_eq!(events.next().await.unwrap().data, page.prompt);
        let (mut answer, mut tokens) = (String::new(), 0);
        let last = loop {
            let event = events.next().await.expect("the end has an event");
            if event.event_type != "message" {
                break event;
            }
            answer += &event.data;
            tokens += 1;
        };
        assert_eq!((&page.answer, page.tokens), (&answer, tokens));
        assert_eq!((last.event_type.as_str(), last.data), (how, page.why.clone()));
        page
    }
}

#[tokio::test]
async fn an_answers_page_has_the_whole_text_once_however_often_it_is_cut() {
    let (example, browser) = (AnswerPage::serve().await, Browser::start().await);
    for reader in READERS {
        let network = Network::to(example.address).await;
        AnswerPage::open(&browser, &network.url(), reader).await;
        // In the middle of some event.
        network.cut_after(1500);
        AnswerPage::ask(&browser, "What is a tide?").await;
        AnswerPage::until(&browser, |page| page.state == "open" && page.reconnects == 1).await;
        browser.click("#cut").await;
        AnswerPage::until(&browser, |page| page.state == "reconnecting").await;
        let page = AnswerPage::ends(&browser, &example, "done").await;
        assert_eq!((page.prompt.as_str(), page.reconnects), ("What is a tide?", 2), "{reader}");
    }
}

#[tokio::test]
async fn an_answers_page_that_is_reloaded_has_everything_and_goes_on() {
    let (example, browser) = (AnswerPage::serve().await, Browser::start().await);
    for reader in READERS {
        AnswerPage::open(&browser, &example.url(), reader).await;
        AnswerPage::ask(&browser, "What is\n  a tide?").await;
        let before = AnswerPage::until(&browser, |page| page.tokens > 20).await;
        assert_eq!(before.state, "open");
        browser.reload().await;
        let page = AnswerPage::ends(&browser, &example, "done").await;
        assert_eq!((page.prompt.as_str(), page.id), ("What is\n  a tide?", before.id));
        assert_eq!(page.reader, reader);
        assert!(page.answer.starts_with(&before.answer));
    }
}

#[tokio::test]
async fn an_answers_page_can_stop_it_and_is_told_of_every_other_end() {
    let (example, browser) = (AnswerPage::serve().await, Browser::start().await);
    for reader in READERS {
        AnswerPage::open(&browser, &example.url(), reader).await;
        AnswerPage::ask(&browser, "What is a tide?").await;
        AnswerPage::until(&browser, |page| page.tokens > 20).await;
        browser.click("#stop").await;
        AnswerPage::ends(&browser, &example, "stopped").await;
    }
    AnswerPage::ask(&browser, "Please fail").await;
    let page = AnswerPage::ends(&browser, &example, "failed").await;
    assert_eq!(page.why, "the model is overloaded");

    for reader in READERS {
        AnswerPage::open(&browser, &format!("{}/#unknown", example.url()), reader).await;
        AnswerPage::until(&browser, |page| page.state == "gone").await;
    }
}
