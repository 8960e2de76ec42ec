//! What errors say, and what they name as their cause.

use futures_util::{FutureExt, StreamExt};
use std::{error::Error, time::SystemTime};
use tidings::{
    Event, Hub, PublishError, Snapshots, Topic,
    replay::{AppendError, Cursor, Kind, ReadError, Record, Refused, Ring},
    test_util::{Fault, FaultyStore},
};

const T: Topic = Topic::from_static("t");

fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |error| (**error).source()).map(ToString::to_string).collect()
}

/// What a publisher can ask an error, and is answered with yes.
fn kinds(error: &PublishError) -> Vec<&'static str> {
    let all = [
        ("finished", error.is_finished()),
        ("too large", error.is_too_large()),
        ("unknown", error.is_unknown()),
        ("closed", error.is_closed()),
        ("busy", error.is_busy()),
    ];
    all.into_iter().filter(|(_, is)| *is).map(|(kind, _)| kind).collect()
}

async fn publish(hub: &Hub) -> PublishError {
    hub.publish(T, Event::new().data("x".repeat(58))).await.unwrap_err()
}

#[test]
fn what_is_no_id_is_told_what_an_id_looks_like() {
    let error = "nonsense".parse::<Cursor>().unwrap_err();
    assert_eq!(error.to_string(), "not an id of this kind of hub: expected POSITION.RUN.EPOCH");
}

#[test]
fn a_store_says_why_it_refused() {
    let refused = [Refused::Finished, Refused::TooLarge, Refused::Other("no more today".into())];
    let said = ["the topic is finished", "the event is larger than the store keeps", "no more today"];
    assert_eq!(refused.each_ref().map(ToString::to_string), said);
}

#[test]
fn a_store_names_the_cause_of_what_it_could_not_do() {
    let refused = chain(&AppendError::refused("disk full"));
    assert_eq!(refused, ["the store did not take the events", "disk full"]);
    let unknown = chain(&AppendError::unknown("connection reset"));
    assert_eq!(unknown, ["the store did not say whether it has the events", "connection reset"]);
    assert_eq!(chain(&ReadError::new("connection refused")), ["the store could not be read", "connection refused"]);
}

#[test]
fn a_stored_body_that_is_none_is_told_why() {
    let parse = |body: &[u8]| Record::from_stored(T, Kind::Event, body, SystemTime::UNIX_EPOCH);
    let error = parse(b"data: cut off").unwrap_err();
    assert_eq!(error.to_string(), "the stored bytes are not the body of an event: its last line has no end");
}

#[tokio::test]
async fn a_publisher_is_told_why_its_event_was_not_published() {
    let hub = Hub::builder().max_event_bytes(64).build();
    let error = publish(&hub).await;
    assert_eq!(chain(&error), ["the event has 65 bytes, more than the 64 allowed by max_event_bytes"]);
    assert_eq!(kinds(&error), ["too large"]);

    let hub = Hub::builder().ring(Ring::new().bytes_per_topic(64)).build();
    let error = publish(&hub).await;
    assert_eq!(chain(&error), ["the event was refused: the event is larger than the store keeps"]);
    assert_eq!(kinds(&error), ["too large"]);

    let hub = Hub::new();
    hub.finish(T, None).await.unwrap();
    let error = publish(&hub).await;
    assert_eq!(chain(&error), ["the event was refused: the topic is finished"]);
    assert_eq!(kinds(&error), ["finished"]);
    hub.close();
    let error = publish(&hub).await;
    assert_eq!(chain(&error), ["the hub was closed"]);
    assert_eq!(kinds(&error), ["closed"]);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_is_told_what_the_store_said() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    faults.next_append(Fault::Refused);
    let refused = ["the store did not take the event", "the store did not take the events", "scripted"];
    let error = publish(&hub).await;
    assert_eq!(chain(&error), refused);
    assert!(kinds(&error).is_empty(), "it was not stored, and may be published again");

    let busy = hub.publish_now(T, Event::new()).unwrap_err();
    assert_eq!(chain(&busy), ["the store cannot take the event without waiting: publish it with `publish`"]);
    assert_eq!(kinds(&busy), ["busy"]);

    faults.next_append(Fault::Unknown);
    let unknown = [
        "the store may or may not have taken the event",
        "the store did not say whether it has the events",
        "scripted",
    ];
    let error = publish(&hub).await;
    assert_eq!(chain(&error), unknown);
    assert_eq!(kinds(&error), ["unknown"]);
}

#[test]
fn a_publisher_whose_runtime_ends_is_told_that_its_event_may_be_stored() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, faults) = FaultyStore::new();
    let hub = runtime.block_on(Hub::builder().open(store)).unwrap();
    faults.next_append(Fault::Hangs);
    let mut publish = Box::pin(hub.publish(T, Event::new()));
    runtime.block_on(async {
        while faults.appends() == 0 {
            assert!((&mut publish).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
    });
    drop(runtime);
    let error = publish.now_or_never().unwrap().unwrap_err();
    assert_eq!(kinds(&error), ["unknown"]);
    assert!(error.to_string().contains("may or may not have taken the event"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_told_whether_the_store_or_the_snapshot_failed() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    faults.next_read(Fault::Refused);
    let error = hub.subscribe(T).next().await.unwrap().unwrap_err();
    assert!(error.is_read() && !error.is_snapshot());
    assert_eq!(chain(&error), ["the store could not be read", "scripted"]);

    let snapshots = Snapshots::new(|_| async { Err("no database") });
    let error = hub.subscribe(T).snapshot_first(&snapshots).next().await.unwrap().unwrap_err();
    assert!(error.is_snapshot() && !error.is_read());
    assert_eq!(chain(&error), ["there is no snapshot to go on from", "no database"]);
}
