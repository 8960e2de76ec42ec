//! Ends, limits of time and sessions, where stores are slow and clients hang up.

use futures_util::{FutureExt as _, StreamExt as _};
use std::{sync::Arc, time::Duration};
use tidings::{
    Drain, EndReason, Event, Hub, LagBudget, Topic,
    net::Connections,
    replay::{AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore, Ring},
    test_util::{EventReader, Fault, FaultyStore},
};
use tokio::time::{Instant, sleep};

const T: Topic = Topic::from_static("t");

/// Of several hubs, one after the other.
struct Same(Arc<Ring>);
impl ReplayStore for Same {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.head().await
    }
    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        self.0.append(records).await
    }
    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        self.0.read(read).await
    }
    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.0.forget(topic).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_complete_from_the_start_has_no_session() {
    let ring = Arc::new(Ring::new());
    let earlier = Hub::builder().open(Same(Arc::clone(&ring))).await.unwrap();
    let last = earlier.finish(T, Some(Event::new().data("last"))).await.unwrap();
    let hub = Hub::builder().client_heartbeats(Duration::from_secs(30)).open(Same(ring)).await.unwrap();
    let response = hub.subscribe(T).resume(last).into_http_response();
    assert_eq!(response.status(), 200, "without `opened` it is not known that it is complete");
    let mut reader = EventReader::new(response.into_body());
    // Nothing is to come, so its client is not asked for heartbeats, for which nobody would wait.
    assert!(reader.next().await.is_none());
}

async fn slow_reader_of(slow_store: bool) -> (usize, Option<EndReason>) {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().window_events(1).page(1, 1 << 20).open(store).await.unwrap();
    let mut subscription = hub.subscribe(T).lag_budget(LagBudget::new().time(Duration::from_secs(10)));
    assert!(subscription.next().now_or_never().is_none());
    for n in 0..100 {
        hub.publish(T, Event::new().data(n.to_string())).await.unwrap();
    }
    for got in 0..50 {
        if slow_store {
            // Each read takes a moment.
            faults.next_read(Fault::Hangs);
            if let Some(end) = subscription.next().now_or_never() {
                assert!(end.is_none());
                return (got, subscription.end_reason());
            }
            faults.release();
        }
        if subscription.next().await.is_none() {
            return (got, subscription.end_reason());
        }
        // The client takes one event in five seconds, so it is behind all the time.
        sleep(Duration::from_secs(5)).await;
    }
    (50, None)
}

#[tokio::test(start_paused = true)]
async fn the_time_budget_holds_over_a_fast_store() {
    let (got, reason) = slow_reader_of(false).await;
    assert_eq!(reason, Some(EndReason::Lagged), "after {got} events");
}
#[tokio::test(start_paused = true)]
async fn the_time_budget_holds_over_a_slow_store() {
    let (got, reason) = slow_reader_of(true).await;
    assert_eq!(reason, Some(EndReason::Lagged), "after {got} events");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_second_drain_holds_too() {
    let connections = Connections::new();
    let (near, _far) = tokio::io::duplex(64);
    let connection = connections.wrap(near);
    let hour = Drain::new().grace(Duration::ZERO).deadline(Duration::from_secs(3600));
    let second = Drain::new().grace(Duration::ZERO).deadline(Duration::from_secs(1));
    connections.drain(&Hub::new(), hour).await;
    connections.drain(&Hub::new(), second).await;
    sleep(Duration::from_secs(60)).await;
    let cut = format!("{connections:?}").contains("cut: true");
    assert!(cut, "still open a minute after a deadline of one second: {connections:?}");
    drop(connection);
}

#[tokio::test(start_paused = true)]
async fn a_pong_is_not_sent_to_one_that_was_told_to_go_at_once() {
    let hub = Hub::builder().client_heartbeats(Duration::from_secs(30)).announce_ends().build();
    let subscription = hub.subscribe(T);
    let owner = subscription.subscriber();
    let mut reader = EventReader::new(subscription.into_http_response().into_body());
    let session: serde_json::Value = serde_json::from_str(&reader.next().await.unwrap().data).unwrap();
    assert!(owner.end(EndReason::Closed));
    assert!(hub.heartbeat(session["token"].as_str().unwrap()));
    assert_eq!(reader.next().await.unwrap().event_type, "tidings-end", "nothing more is sent but the end");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_while_the_store_is_read_has_left() {
    use tower_service::Service as _;
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    let id = hub.publish(T, Event::new().data("1")).await.unwrap();
    hub.publish(T, Event::new().data("2")).await.unwrap();
    tidings::test_util::evict(&hub);
    let (owners, hub_too) = (Arc::new(std::sync::Mutex::new(Vec::new())), hub.clone());
    let owners_too = Arc::clone(&owners);
    let mut handler = hub.handler(move |_| {
        let subscription = hub_too.subscribe(T);
        owners_too.lock().unwrap().push(subscription.subscriber());
        async { subscription }
    });
    faults.next_read(Fault::Hangs);
    let request = http::Request::get("/").header("last-event-id", id.to_string()).body(()).unwrap();
    let mut response = Box::pin(handler.call(request));
    assert!((&mut response).now_or_never().is_none());
    drop(response);
    let owner = owners.lock().unwrap().pop().unwrap();
    let start = Instant::now();
    let left = tokio::time::timeout(Duration::from_secs(3600), owner.left()).await;
    assert!(left.is_ok(), "whoever looks after it waits for {:?} and longer", start.elapsed());
}
