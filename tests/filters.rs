//! Filters: what is left out, and what becomes of the position.

use futures_util::{StreamExt, future::poll_immediate};
use tidings::{
    Event, EventType, Hub, LagBudget, Topic,
    replay::Record,
    test_util::{EventReader, next_event},
};

const T: Topic = Topic::from_static("t");

fn record(n: usize) -> Record {
    let event = Event::new().event_type(EventType::new(format!("type-{}", n % 2)).unwrap()).data(n.to_string());
    Record::new(T, event).with_key(format!("key-{}", n % 3)).with_label("user", ["ann", "bob"][n % 2])
}

async fn publish(hub: &Hub, numbers: std::ops::Range<usize>) {
    for outcome in hub.publish_all(numbers.map(record)).await {
        outcome.unwrap();
    }
}

#[tokio::test]
async fn by_type_key_and_label() {
    let hub = Hub::builder().window_events(4).page(3, 1 << 20).build();
    let mut by_type = hub.subscribe(T).filter(|record| record.event_type() == Some("type-1"));
    let mut by_key = hub.subscribe(T).filter(|record| record.key() == Some("key-2"));
    let mut by_label = hub.subscribe(T).filter(|record| record.label("user") == Some("ann"));
    publish(&hub, 0..30).await;
    for n in 0..30 {
        let wanted = [(&mut by_type, n % 2 == 1), (&mut by_key, n % 3 == 2), (&mut by_label, n % 2 == 0)];
        for (subscription, wanted) in wanted {
            if wanted {
                assert_eq!(next_event(subscription).await.record().data().unwrap(), n.to_string());
            }
        }
    }
    assert!(poll_immediate(by_type.next()).await.is_none());
}

#[tokio::test]
async fn labels_and_keys_are_never_sent() {
    let hub = Hub::new();
    publish(&hub, 0..2).await;
    let entry = next_event(&mut hub.subscribe(T).start(tidings::Start::Earliest)).await;
    let frame = std::str::from_utf8(entry.frame()).unwrap();
    assert!(!frame.contains("user") && !frame.contains("ann") && !frame.contains("key"), "{frame}");
}

#[tokio::test(start_paused = true)]
async fn the_position_moves_past_what_was_left_out_and_heartbeats_say_so() {
    let hub = Hub::new();
    let none = hub.subscribe(T).filter(|_| false);
    let mut reader = EventReader::new(none.into_http_response().into_body());
    assert!(poll_immediate(std::pin::pin!(reader.next())).await.is_none());
    publish(&hub, 0..10).await;
    let tip = hub.publish(Topic::from_static("other"), Event::new().data("")).await.unwrap();
    assert!(poll_immediate(std::pin::pin!(reader.next())).await.is_none());
    assert_ne!(reader.last_event_id(), tip.to_string());
    let minute = std::time::Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, reader.next()).await.is_err());
    assert_eq!(reader.last_event_id(), tip.to_string());
}

#[tokio::test]
async fn a_client_whose_last_events_were_left_out_does_not_come_back_for_them_for_ever() {
    let hub = Hub::new();
    let first = hub.publish(T, Event::new().data("first")).await.unwrap();
    publish(&hub, 0..3).await;
    let last = hub.finish(T, Some(Event::new().data("end"))).await.unwrap();
    let response = hub.subscribe(T).filter(|_| false).resume(first).into_http_response();
    assert_eq!(response.status(), 200);
    let mut reader = EventReader::new(response.into_body());
    assert_eq!(reader.next().await, None);
    assert_eq!(reader.last_event_id(), last.to_string());
    assert_eq!(hub.subscribe(T).filter(|_| false).resume(last).into_http_response().status(), 204);
}

#[tokio::test]
async fn what_was_left_out_is_not_lag() {
    let hub = Hub::new();
    let mut wanted = hub.subscribe(T).filter(|record| record.label("user") == Some("ann"));
    wanted = wanted.lag_budget(LagBudget::new().events(10));
    for round in 0..20 {
        publish(&hub, round * 10..round * 10 + 10).await;
        for n in (round * 10..round * 10 + 10).step_by(2) {
            assert_eq!(next_event(&mut wanted).await.record().data().unwrap(), n.to_string());
        }
    }
    assert_eq!(wanted.end_reason(), None);
}
