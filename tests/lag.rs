//! Subscriptions that fall behind: reading on from the store, budgets, and how an end is announced.

use futures_util::{StreamExt, future::poll_immediate};
use std::time::Duration;
use tidings::{
    EndReason, Event, Hub, LagBudget, Message, Start, Subscription, Topic,
    replay::Ring,
    test_util::{EventReader, foreign_id, next_event},
};

const T: Topic = Topic::from_static("t");

async fn publish(hub: &Hub, numbers: std::ops::Range<usize>) {
    for n in numbers {
        hub.publish(T, Event::new().data(n.to_string())).await.unwrap();
    }
}

/// Reads `numbers`, which must be there.
async fn expect(subscription: &mut Subscription, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let entry = poll_immediate(next_event(subscription)).await.expect("the event is there");
        assert_eq!(entry.record().data().unwrap(), n.to_string());
    }
}

async fn has_ended(subscription: &mut Subscription, reason: EndReason) -> bool {
    matches!(poll_immediate(subscription.next()).await, Some(None)) && subscription.end_reason() == Some(reason)
}

#[tokio::test]
async fn who_stops_reading_reads_on_from_the_store_and_comes_back_to_live() {
    let hub = Hub::builder().window_events(16).page(10, 1 << 20).build();
    let mut slow = hub.subscribe(T);
    for round in 0..20 {
        publish(&hub, round * 100..round * 100 + 50).await;
        // Half of the time it catches up while events come.
        expect(&mut slow, round * 100..round * 100 + 25).await;
        publish(&hub, round * 100 + 50..round * 100 + 100).await;
        expect(&mut slow, round * 100 + 25..round * 100 + 100).await;
        assert!(poll_immediate(slow.next()).await.is_none());
    }
}

#[tokio::test]
async fn a_budget_of_events_ends_who_falls_further_behind_and_it_can_come_back_and_go_on() {
    let hub = Hub::builder().window_events(4).build();
    let mut slow = hub.subscribe(T).lag_budget(LagBudget::new().events(10));
    publish(&hub, 0..10).await;
    expect(&mut slow, 0..10).await;
    publish(&hub, 10..30).await;
    assert!(has_ended(&mut slow, EndReason::Lagged).await);
    let mut back = hub.subscribe(T).resume(slow.cursor()).lag_budget(LagBudget::new().events(10));
    expect(&mut back, 10..30).await;
    publish(&hub, 30..35).await;
    expect(&mut back, 30..35).await;
}

#[tokio::test]
async fn what_was_missed_before_the_subscription_began_does_not_count() {
    let hub = Hub::builder().window_events(4).page(3, 1 << 20).build();
    let start = hub.publish(T, Event::new().data("start")).await.unwrap();
    publish(&hub, 0..1000).await;
    let mut back = hub.subscribe(T).resume(start).lag_budget(LagBudget::new().events(10));
    expect(&mut back, 0..500).await;
    publish(&hub, 1000..1010).await;
    expect(&mut back, 500..1010).await;
    publish(&hub, 1010..1021).await;
    assert!(has_ended(&mut back, EndReason::Lagged).await);
}

#[tokio::test]
async fn a_budget_can_be_lifted_and_outlives_a_gap() {
    let hub = Hub::builder().lag_budget(LagBudget::new().events(10)).build();
    let mut free = hub.subscribe(T).lag_budget(LagBudget::new());
    assert!(poll_immediate(free.next()).await.is_none());
    let mut told = hub.subscribe(T).resume(foreign_id());
    assert!(matches!(told.next().await, Some(Ok(Message::Gap(_)))));
    publish(&hub, 0..11).await;
    expect(&mut free, 0..11).await;
    assert!(has_ended(&mut told, EndReason::Lagged).await);
}

#[tokio::test]
async fn other_topics_do_not_count() {
    let hub = Hub::new();
    let mut quiet = hub.subscribe(T).lag_budget(LagBudget::new().events(2));
    for _ in 0..100 {
        hub.publish(Topic::from_static("busy"), Event::new().data("")).await.unwrap();
    }
    publish(&hub, 0..2).await;
    expect(&mut quiet, 0..2).await;
}

#[tokio::test]
async fn a_budget_of_bytes() {
    let hub = Hub::new();
    let mut slow = hub.subscribe(T).lag_budget(LagBudget::new().bytes(10_000));
    hub.publish(T, Event::new().data("x".repeat(9_000))).await.unwrap();
    assert!(poll_immediate(next_event(&mut slow)).await.is_some());
    hub.publish(T, Event::new().data("x".repeat(9_000))).await.unwrap();
    hub.publish(T, Event::new().data("x".repeat(9_000))).await.unwrap();
    assert!(has_ended(&mut slow, EndReason::Lagged).await);
}

#[tokio::test]
async fn bytes_that_were_handed_over_do_not_count() {
    let hub = Hub::new();
    let mut busy = hub.subscribe(T).lag_budget(LagBudget::new().bytes(10_000));
    for _ in 0..10 {
        hub.publish(T, Event::new().data("x".repeat(9_000))).await.unwrap();
        assert!(poll_immediate(next_event(&mut busy)).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_behind_by_exactly_its_budget_is_within_it() {
    let hub = Hub::new();
    hub.publish(T, Event::new().data("x")).await.unwrap();
    let frame = next_event(&mut hub.subscribe(T).start(Start::Earliest)).await.frame().len() as u64;
    let second = Duration::from_secs(1);
    let budgets = [
        (LagBudget::new().events(3), LagBudget::new().events(2)),
        (LagBudget::new().bytes(3 * frame), LagBudget::new().bytes(3 * frame - 1)),
        (LagBudget::new().time(second), LagBudget::new().time(Duration::from_millis(999))),
    ];
    for (within, over) in budgets {
        let mut within = hub.subscribe(T).lag_budget(within);
        let mut over = hub.subscribe(T).lag_budget(over);
        for _ in 0..3 {
            hub.publish(T, Event::new().data("x")).await.unwrap();
        }
        tokio::time::advance(second).await;
        assert!(poll_immediate(next_event(&mut within)).await.is_some());
        assert!(has_ended(&mut over, EndReason::Lagged).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_time_counts_from_the_oldest_event_that_was_not_read() {
    let hub = Hub::new();
    let minute = Duration::from_secs(60);
    let mut slow = hub.subscribe(T).lag_budget(LagBudget::new().time(minute));
    assert!(poll_immediate(slow.next()).await.is_none());
    // Having nothing to read for long is no lag.
    tokio::time::advance(minute * 60).await;
    publish(&hub, 0..1).await;
    tokio::time::advance(minute / 2).await;
    publish(&hub, 1..2).await;
    expect(&mut slow, 0..2).await;
    // Nor is being busy for long.
    for n in 2..200 {
        publish(&hub, n..n + 1).await;
        tokio::time::advance(minute / 10).await;
        expect(&mut slow, n..n + 1).await;
    }
    publish(&hub, 200..201).await;
    tokio::time::advance(minute + Duration::from_secs(1)).await;
    publish(&hub, 201..202).await;
    assert!(has_ended(&mut slow, EndReason::Lagged).await);
    assert_eq!(slow.next().await.map(|_| ()), None, "it stays ended");
}

#[tokio::test]
async fn after_a_gap_the_budget_begins_anew() {
    let hub = Hub::builder().window_events(2).ring(Ring::new().events_per_topic(5)).build();
    let mut slow = hub.subscribe(T).lag_budget(LagBudget::new().events(50));
    publish(&hub, 0..40).await;
    assert!(matches!(slow.next().await, Some(Ok(Message::Gap(_)))));
    expect(&mut slow, 35..40).await;
    publish(&hub, 40..44).await;
    expect(&mut slow, 40..44).await;
    publish(&hub, 44..80).await;
    assert!(matches!(slow.next().await, Some(Ok(Message::Gap(_)))), "35 of the first 40 do not count any more");
    expect(&mut slow, 75..80).await;
}

#[tokio::test]
async fn an_end_can_be_announced_with_its_reason() {
    let hub = Hub::builder().announce_ends().lag_budget(LagBudget::new().events(1)).build();
    let mut reader = EventReader::new(hub.subscribe(T).into_http_response().into_body());
    publish(&hub, 0..2).await;
    let end = reader.next().await.unwrap();
    assert_eq!((end.event_type.as_str(), end.data.as_str()), ("tidings-end", r#"{"reason":"lagged"}"#));
    assert_eq!(reader.next().await, None);

    let mut reader = EventReader::new(hub.subscribe(T).into_http_response().into_body());
    let last = hub.finish(T, Some(Event::new().data("last"))).await.unwrap();
    assert_eq!(reader.next().await.unwrap().data, "last");
    let end = reader.next().await.unwrap();
    assert_eq!((end.data.as_str(), end.last_event_id), (r#"{"reason":"finished"}"#, last.to_string()));
    assert_eq!(reader.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_time_does_not_count_what_was_missed_before() {
    let hub = Hub::builder().window_events(4).page(10, usize::MAX).build();
    let budget = LagBudget::new().time(Duration::from_secs(10));
    let start = hub.subscribe(T).cursor();
    publish(&hub, 0..100).await;
    let mut back = hub.subscribe(T).resume(start).lag_budget(budget);
    for n in 0..100 {
        expect(&mut back, n..n + 1).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    publish(&hub, 100..101).await;
    expect(&mut back, 100..101).await;
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_time_counts_from_the_end_of_a_rest_that_was_asked_for() {
    let hub = Hub::new();
    let (rest, budget) = (Duration::from_secs(60), LagBudget::new().time(Duration::from_secs(10)));
    let mut slow = hub.subscribe(T).min_interval(rest).lag_budget(budget);
    publish(&hub, 0..1).await;
    expect(&mut slow, 0..1).await;
    assert!(poll_immediate(slow.next()).await.is_none());
    publish(&hub, 1..200).await;
    tokio::time::advance(rest).await;
    expect(&mut slow, 1..2).await;
    tokio::time::advance(Duration::from_secs(11)).await;
    // What it has taken already it has.
    let taken = slow.by_ref().count().await;
    assert!((1..198).contains(&taken), "{taken}");
    assert_eq!(slow.end_reason(), Some(EndReason::Lagged));
}

#[tokio::test]
async fn what_was_read_from_the_store_counts_as_read() {
    let hub = Hub::builder().window_events(4).page(10, usize::MAX).build();
    let mut live = hub.subscribe(T);
    publish(&hub, 0..1).await;
    let frame = next_event(&mut live).await.frame().len() as u64;
    for budget in [LagBudget::new().events(50), LagBudget::new().bytes(50 * (frame + 4))] {
        let mut slow = hub.subscribe(T).lag_budget(budget);
        publish(&hub, 0..40).await;
        // Never more than forty behind, and not within what is kept ready.
        expect(&mut slow, 0..30).await;
        publish(&hub, 40..70).await;
        expect(&mut slow, 30..60).await;
        publish(&hub, 70..100).await;
        expect(&mut slow, 60..100).await;
    }
}

#[tokio::test]
async fn what_was_missed_before_is_no_credit_once_it_is_read() {
    for budget in [LagBudget::new().events(50), LagBudget::new().bytes(50 * 40)] {
        let hub = Hub::builder().window_events(4).page(10, usize::MAX).build();
        let start = hub.subscribe(T).cursor();
        publish(&hub, 0..100).await;
        let mut back = hub.subscribe(T).resume(start).lag_budget(budget);
        expect(&mut back, 0..100).await;
        publish(&hub, 100..180).await;
        assert!(has_ended(&mut back, EndReason::Lagged).await);
    }
}
