//! Debug forms, as they come into logs: where something is, and nothing of what the application published.

use http_body_util::BodyExt;
use tidings::{
    Event, Hub, Topic,
    replay::{Entry, Record, Run},
    test_util::evict,
};

const T: Topic = Topic::from_static("prices");

fn secret() -> Record {
    Record::new(T, Event::new().data("secret")).with_key("secret").with_label("secret", "secret")
}

#[test]
fn a_cursor_is_its_text() {
    assert_eq!(format!("{:?}", Run { epoch: 35, number: 0 }.at(17)), "Cursor(17.0.z)");
}

#[test]
fn a_record_and_an_entry_say_which_topic_and_how_much_and_not_what() {
    let entry = Entry::new(Run { epoch: 35, number: 0 }.at(17), secret());
    let (record, entry) = (format!("{:?}", entry.record()), format!("{entry:?}"));
    for part in ["prices", "Event", "body_bytes: 13"] {
        assert!(record.contains(part) && entry.contains(part), "{record} {entry}");
    }
    assert!(entry.contains("17.0.z"), "{entry}");
    assert!(!record.contains("secret") && !entry.contains("secret"), "{record} {entry}");
}

#[tokio::test]
async fn a_hub_and_a_subscription_say_where_they_are_and_how_much_they_hold() {
    let hub = Hub::new();
    let first = hub.publish_record(secret()).await.unwrap();
    hub.publish_record(secret()).await.unwrap();
    let subscription = hub.subscribe(T).resume(first);
    let (hub, subscription) = (format!("{hub:?}"), format!("{subscription:?}"));
    for part in [".0.", "topics: 1", "entries: 2", "subscriptions: 1"] {
        assert!(hub.contains(part), "{hub}");
    }
    assert!(subscription.contains("prices") && subscription.contains(&first.to_string()), "{subscription}");
    assert!(!hub.contains("secret") && !subscription.contains("secret"), "{hub} {subscription}");
}

#[tokio::test]
async fn a_hub_counts_what_it_holds_and_not_what_it_has_let_go() {
    let hub = Hub::builder().window_events(2).build();
    for _ in 0..5 {
        hub.publish_record(secret()).await.unwrap();
    }
    let held = format!("{hub:?}");
    assert!(held.contains("topics: 1") && held.contains("entries: 2"), "{held}");
    evict(&hub);
    let held = format!("{hub:?}");
    assert!(held.contains("topics: 0") && held.contains("entries: 0") && held.contains("bytes: 0"), "{held}");
}

#[tokio::test]
async fn a_body_says_whether_it_has_ended() {
    let hub = Hub::new();
    hub.finish(T, None).await.unwrap();
    let mut body = Box::pin(hub.subscribe(T).into_http_response().into_body());
    assert!(format!("{body:?}").contains("ended: false"), "{body:?}");
    while body.frame().await.is_some() {}
    assert!(format!("{body:?}").contains("ended: true"), "{body:?}");
}

#[test]
fn a_producer_says_of_which_topic() {
    let producer = format!("{:?}", Hub::new().producer(T).last_will(Event::new().data("secret")));
    assert!(producer.contains("prices") && !producer.contains("secret"), "{producer}");
}
