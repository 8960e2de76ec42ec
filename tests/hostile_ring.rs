//! Hostile use of a hub over the ring, of the handler and of the small parts.

use bytes::Bytes;
use futures_util::{StreamExt, future::poll_immediate};
use http::{Request, StatusCode, request::Parts};
use http_body_util::{BodyExt, Empty};
use std::{
    sync::{Arc, mpsc},
    time::{Duration, SystemTime},
};
use tidings::{
    CursorMoves, Event, Hub, LastEventId, Message, Start, Subscription, Topic,
    replay::{Cursor, Kind, Page, Read, ReadError, ReadFrom, Record, ReplayStore, Ring},
    test_util,
};

fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}
#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}
async fn all(subscription: &mut Subscription) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        seen.push(match poll_immediate(subscription.next()).await {
            None => return seen,
            Some(None) => "END".to_owned(),
            Some(Some(Ok(Message::Event(entry)))) => entry.record().data().unwrap_or_default().into_owned(),
            Some(Some(Ok(Message::Gap(gap)))) => format!("GAP {}", gap.reason),
            Some(other) => panic!("{other:?}"),
        });
        if seen.last().unwrap() == "END" {
            return seen;
        }
    }
}
/// Whether something ends within three seconds; if not, its thread is left behind.
fn ends(what: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        what();
        let _ = done.send(());
    });
    wait.recv_timeout(Duration::from_secs(3)).is_ok()
}

/// `Bytes::from_owner` runs the application's `Drop` where the last clone goes: in `Entry::new`, under both locks.
#[test]
fn no_drop_of_the_application_runs_under_a_lock() {
    struct Owner(Hub, Vec<u8>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.1
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            let _ = self.0.publish_now(topic("log"), text("a buffer was released"));
        }
    }
    assert!(
        ends(|| {
            let hub = Hub::new();
            let body = Bytes::from_owner(Owner(hub.clone(), b"data: x\n".to_vec()));
            let record = Record::from_stored(topic("t"), Kind::Event, &body, SystemTime::now()).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(hub.publish_all([record]));
        }),
        "deadlock"
    );
}

/// `Debug` writes into the caller's `fmt::Write` under the window's lock.
#[test]
fn no_writer_of_the_application_runs_under_a_lock() {
    struct Log(Hub);
    impl std::fmt::Write for Log {
        fn write_str(&mut self, line: &str) -> std::fmt::Result {
            let _ = self.0.publish_now(topic("log"), text(line));
            Ok(())
        }
    }
    assert!(
        ends(|| {
            let hub = Hub::new();
            let mut log = Log(hub.clone());
            let _ = std::fmt::write(&mut log, format_args!("{hub:?}"));
        }),
        "deadlock"
    );
}

/// A waker may own what is as much a user of the hub as its task: a handle, a channel, the last subscription.
#[test]
fn no_drop_of_a_waker_runs_under_a_lock() {
    struct OnDrop(Hub);
    impl std::task::Wake for OnDrop {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.publish_now(topic("other"), text(0)).unwrap();
        }
    }
    assert!(ends(|| {
        let hub = Hub::new();
        let mut subscription = hub.subscribe(topic("t"));
        // The second takes the place of the first, and goes with the subscription.
        for _ in 0..2 {
            let waker = Arc::new(OnDrop(hub.clone())).into();
            assert!(subscription.poll_next_unpin(&mut std::task::Context::from_waker(&waker)).is_pending());
        }
        drop(subscription);
    }));
}

/// A panic in one waker takes the wake-ups of all others with it.
#[test]
fn a_waker_that_panics_costs_nobody_else_the_event() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker of the application");
        }
    }
    struct Counts(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let hub = Hub::new();
    let t = topic("t");
    let mut all: Vec<_> = (0..3).map(|_| hub.subscribe(&t)).collect();
    let counts = Arc::new(Counts(0.into()));
    let (panics, counting) = (Arc::new(Panics).into(), counts.clone().into());
    // In the middle: whatever the order, one is woken after it.
    for (subscription, waker) in all.iter_mut().zip([&counting, &panics, &counting]) {
        assert!(subscription.poll_next_unpin(&mut std::task::Context::from_waker(waker)).is_pending());
    }
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hub.publish_now(&t, text(1))));
    assert_eq!(counts.0.load(std::sync::atomic::Ordering::SeqCst), 2, "one was never woken");
}

async fn respond<F, R>(handler: &tidings::Handler<F>, id: &str) -> http::Response<tidings::HandlerBody>
where
    F: Fn(Parts) -> R + Send + Sync + 'static,
    R: Future<Output: tidings::IntoSubscription> + Send + 'static,
{
    let request = Request::get("/").header("last-event-id", id).body(Empty::<Bytes>::new()).unwrap();
    hyper::service::Service::call(handler, request).await.unwrap()
}

/// The function looks at the outcome, the handler resumes again: the gap is no longer an outcome, and 204 hides it.
#[tokio::test]
async fn a_gap_is_never_204() {
    let hub = Hub::new();
    let t = topic("t");
    let id = hub.publish(&t, text(0)).await.unwrap();
    hub.finish(&t, Some(text(1))).await.unwrap();
    test_util::evict(&hub);
    let inner = hub.clone();
    let handler = hub.handler(move |parts: Parts| {
        let (hub, t) = (inner.clone(), t.clone());
        async move {
            let subscription = hub.subscribe(t).resume(LastEventId::from_parts(&parts)).opened().await;
            // The application looks at `subscription.outcome()`, say for its metrics.
            subscription.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        }
    });
    let response = respond(&handler, &id.to_string()).await;
    assert_eq!(response.headers()["tidings-gap"], "evicted");
    assert_eq!(response.status(), 200, "events were lost, and EventSource is stopped without a report");
}

/// What was read for an earlier place is handed over after a later `resume`.
#[tokio::test]
async fn resume_decides_also_after_a_first_read() {
    let hub = Hub::new();
    let t = topic("t");
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(hub.publish(&t, text(n)).await.unwrap());
    }
    let mut subscription = hub.subscribe(&t).resume(ids[2]);
    assert!(subscription.next().await.is_some()); // 3; and 4 to 9 were read with it
    let mut again = subscription.resume(ids[0]);
    assert_eq!(all(&mut again).await[0], "1", "events 1 to 3 are skipped without a gap");
}

#[tokio::test]
async fn a_good_id_replaces_a_malformed_one() {
    let hub = Hub::new();
    let t = topic("t");
    let id = hub.publish(&t, text(0)).await.unwrap();
    hub.publish(&t, text(1)).await.unwrap();
    let mut subscription = hub.subscribe(&t).resume("of a cookie").resume(id);
    assert_eq!(all(&mut subscription).await, ["1"], "the good id is held, and yet there is a gap and 1 is skipped");
}

#[tokio::test]
async fn start_now_is_now_also_after_a_first_read() {
    let hub = Hub::new();
    let t = topic("t");
    for n in 0..3 {
        hub.publish(&t, text(n)).await.unwrap();
    }
    let opened = hub.subscribe(&t).start(Start::Earliest).opened().await.unwrap();
    let mut now = opened.start(Start::Now);
    assert_eq!(all(&mut now).await, [""; 0]);
}

/// An event without any field has an id, and goes over the wire; the stream of messages leaves it out.
#[tokio::test]
async fn every_event_that_was_acknowledged_is_a_message() {
    let hub = Hub::new();
    let t = topic("t");
    let mut live = hub.subscribe(&t);
    hub.publish(&t, Event::new()).await.unwrap();
    assert_eq!(all(&mut live).await.len(), 1);
}

/// `CursorMoves::Off`: "for clients that raise a message on every blank line".
#[tokio::test]
async fn with_cursor_moves_off_an_end_without_an_event_writes_nothing() {
    let hub = Hub::builder().cursor_moves(CursorMoves::Off).build();
    let t = topic("t");
    let response = hub.subscribe(&t).into_http_response();
    hub.finish(&t, None).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("\n\n"), "{text:?}");
}

async fn held(ring: &Ring, t: &Topic) -> usize {
    let mut read = Read::new(t, ReadFrom::Earliest);
    (read.max_events, read.max_bytes) = (usize::MAX, usize::MAX);
    let page: Result<Page, ReadError> = ring.read(read).await;
    page.unwrap().entries.len()
}

/// "Sets how many bytes of a topic are kept, the bookkeeping included."
#[tokio::test]
async fn keys_and_labels_count() {
    let ring = Ring::new().bytes_per_topic(1 << 20);
    let t = topic("t");
    let label = "x".repeat(1 << 20);
    for n in 0..50 {
        let record = Record::new(&t, text(n)).with_label("origin", &label).with_key(&label);
        ring.append([record].into()).await.unwrap();
    }
    let bytes = held(&ring, &t).await * 2 * label.len();
    assert!(bytes <= 2 << 20, "a topic that is bounded by 1 MiB holds {} MiB", bytes >> 20);
}

/// `max_event_bytes` is the only limit on the way in, and does not see them either.
#[tokio::test]
async fn an_event_of_a_hundred_mebibytes_is_too_large() {
    let hub = Hub::new();
    let record = Record::new(topic("t"), text(0)).with_key("x".repeat(100 << 20));
    let outcome: Vec<Result<Cursor, _>> = hub.publish_all([record]).await;
    assert!(outcome[0].as_ref().is_err_and(tidings::PublishError::is_too_large));
}

/// One topic for each job, finished when the job is: nothing ever removes it, and `Hub` has no `forget`.
#[tokio::test(start_paused = true)]
async fn finished_topics_do_not_stay_for_ever() {
    let hub = Hub::builder().ring(Ring::new().max_age(Duration::from_secs(60))).build();
    for n in 0..10_000 {
        hub.finish(topic(&format!("job-{n}")), Some(text("done"))).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(3600)).await;
    hub.publish(topic("now"), text(0)).await.unwrap();
    let debug = format!("{hub:?}");
    assert!(debug.contains("topics: 1,"), "{debug}");
}

/// The window in front of another store has no reason to keep them: the store knows.
#[tokio::test(start_paused = true)]
async fn a_client_that_asks_for_finished_topics_leaves_nothing_behind() {
    let ring = Ring::new();
    let records: Vec<Record> = (0..1000).map(|n| Record::finish(topic(&format!("job-{n}")), None)).collect();
    ring.append(records.into()).await.unwrap();
    let hub = Hub::builder().open(ring).await.unwrap();
    for n in 0..1000 {
        let _ = hub.subscribe(topic(&format!("job-{n}"))).opened().await.unwrap();
    }
    let debug = format!("{hub:?}");
    assert!(debug.contains("topics: 0,"), "{debug}");
}

async fn status(accept: &str) -> StatusCode {
    let handler = Hub::new().handler_for(topic("t"));
    let request = Request::get("/").header("accept", accept).body(Empty::<Bytes>::new()).unwrap();
    hyper::service::Service::call(&handler, request).await.unwrap().status()
}

#[tokio::test]
async fn accept_follows_rfc_9110() {
    // A quoted string may hold commas and semicolons.
    assert_eq!(status(r#"text/html;note="a, text/event-stream""#).await, StatusCode::NOT_ACCEPTABLE);
    assert_eq!(status(r#"text/html;note=";", application/json;x=", */*;q=0""#).await, StatusCode::NOT_ACCEPTABLE);
    assert_eq!(status(r#"text/event-stream;note=";q=0""#).await, StatusCode::OK);
}

#[tokio::test]
async fn a_weight_that_is_none_excludes_nothing() {
    for accept in ["text/event-stream;q=nan", "text/event-stream;q=-1"] {
        assert_eq!(status(accept).await, StatusCode::OK, "{accept}");
    }
}

#[tokio::test]
async fn holds_accept() {
    for accept in ["", "*/*", "text/*", "TEXT/Event-Stream", "text/html, */*;q=0.1", "*/*;q=0, text/event-stream", ",,"]
    {
        assert_eq!(status(accept).await, StatusCode::OK, "{accept}");
    }
    for accept in ["text/html", "text/event-stream;q=0, */*", "text/*;q=0.000, */*", "*/*;q=0"] {
        assert_eq!(status(accept).await, StatusCode::NOT_ACCEPTABLE, "{accept}");
    }
}
