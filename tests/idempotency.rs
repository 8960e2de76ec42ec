//! Records that are published again under the same idempotency key.

use futures_util::FutureExt as _;
use std::time::Duration;
use tidings::{
    Event, Hub, Start, Subscription, Topic,
    replay::{Record, Ring},
    test_util::{Fault, FaultyStore, next_event},
};
use tokio::time::advance;

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");

fn order(topic: Topic, text: &str) -> Record {
    Record::new(topic, Event::new().data(text)).with_idempotency_key("order 7")
}

async fn texts(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(next_event(subscription).await.record().data().unwrap().into_owned());
    }
    assert!(futures_util::StreamExt::next(subscription).now_or_never().is_none(), "more than that");
    texts
}

#[tokio::test(start_paused = true)]
async fn it_is_stored_and_sent_once_and_each_publisher_is_told_where() {
    let (store, _) = FaultyStore::new();
    for hub in [Hub::new(), Hub::builder().open(store).await.unwrap()] {
        let mut subscription = hub.subscribe(T);
        let first = hub.publish_record(order(T, "1")).await.unwrap();
        hub.publish(T, Event::new().data("2")).await.unwrap();
        assert_eq!(hub.publish_record(order(T, "again")).await.unwrap(), first);
        assert_eq!(hub.publish_record_now(order(T, "again")).ok().unwrap_or(first), first);
        let batch = [order(T, "again"), Record::new(T, Event::new().data("3")), order(U, "u"), order(U, "again")];
        let outcomes: Vec<_> = hub.publish_all(batch).await.into_iter().map(Result::unwrap).collect();
        assert_eq!((outcomes[0], outcomes[2]), (first, outcomes[3]));
        assert!(outcomes[1].position() > first.position() && outcomes[2].position() > outcomes[1].position());
        assert_eq!(texts(&mut subscription, 3).await, ["1", "2", "3"]);
        assert_eq!(texts(&mut hub.subscribe(U).start(Start::Earliest), 1).await, ["u"]);
        // The end of a topic as well.
        let end = || Record::finish(T, None).with_idempotency_key("end");
        let ended = hub.publish_record(end()).await.unwrap();
        assert_eq!(hub.publish_record(end()).await.unwrap(), ended);
        assert!(hub.publish_record(end().with_idempotency_key("another")).await.unwrap_err().is_finished());
        assert_eq!(hub.publish_record(order(T, "again")).await.unwrap(), first);
    }
}

#[tokio::test(start_paused = true)]
async fn the_ring_remembers_keys_for_as_long_as_it_is_told_and_no_longer() {
    let ring = Ring::new().events_per_topic(1).max_age(Duration::from_secs(1));
    let hub = Hub::builder().ring(ring.keep_idempotency_keys(Duration::from_secs(60))).build();
    let first = hub.publish_record(order(T, "1")).await.unwrap();
    hub.publish(T, Event::new()).await.unwrap();
    advance(Duration::from_secs(59)).await;
    assert_eq!(hub.publish_record(order(T, "again")).await.unwrap(), first, "though the record is gone");
    advance(Duration::from_secs(1)).await;
    assert_ne!(hub.publish_record(order(T, "anew")).await.unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn after_an_unknown_outcome_it_can_be_published_again() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    let mut subscription = hub.subscribe(T);
    for fault in [Fault::UnknownButStored, Fault::Unknown] {
        faults.next_append(fault);
        let record = || order(T, "1").with_idempotency_key(format!("{fault:?}"));
        assert!(hub.publish_record(record()).await.unwrap_err().is_unknown());
        let first = hub.publish_record(record()).await.unwrap();
        assert_eq!(hub.publish_record(record()).await.unwrap(), first);
    }
    assert_eq!(texts(&mut subscription, 2).await, ["1", "1"]);
}
