//! Topics that keep the newest event of each key: who comes late, was away or is slow gets that and not what it replaced.

use futures_util::{StreamExt, future::poll_immediate};
use std::time::Duration;
use tidings::{
    EndReason, Event, Hub, LagBudget, Message, Resume, Start, Subscription, Topic,
    replay::{Cursor, Kind, Record, Ring},
    test_util::{FaultyStore, next_event},
};
use tokio::time::{Instant, sleep};

const T: Topic = Topic::from_static("t");

/// Every store does this: the ring, and one of which the hub knows nothing. The window is wide or has next to nothing.
async fn hubs() -> Vec<Hub> {
    let mut hubs = Vec::new();
    for window in [1024, 2] {
        let builder = || Hub::builder().window_events(window).page(3, usize::MAX);
        hubs.push(builder().build());
        hubs.push(builder().open(FaultyStore::new().0).await.unwrap());
    }
    hubs
}

/// Publishes `key=value`.
async fn set(hub: &Hub, key: &str, value: u32) -> Cursor {
    hub.publish_latest(T, key, Event::new().data(format!("{key}={value}"))).await.unwrap()
}

/// What there is at this moment.
async fn available(subscription: &mut Subscription) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(Some(message)) = poll_immediate(subscription.next()).await {
        let Message::Event(entry) = message.unwrap() else { panic!("a gap") };
        all.push(entry.record().data().unwrap().into_owned());
    }
    all
}

#[tokio::test]
async fn who_comes_late_gets_one_event_for_each_key_and_then_what_is_new() {
    for hub in hubs().await {
        for value in 1..=9 {
            for key in ["a", "b", "c", "d"] {
                set(&hub, key, value).await;
            }
        }
        set(&hub, "b", 10).await;
        let mut late = hub.subscribe(T).start(Start::Earliest).opened().await.unwrap();
        assert_eq!(late.outcome(), Some(Resume::Fresh));
        assert_eq!(available(&mut late).await, ["a=9", "c=9", "d=9", "b=10"]);
        set(&hub, "a", 10).await;
        assert_eq!(available(&mut late).await, ["a=10"]);
        let mut last = hub.subscribe(T).start(Start::Last(2));
        assert_eq!(next_event(&mut last).await.record().key(), Some("b"));
        assert_eq!(next_event(&mut last).await.record().key(), Some("a"));
    }
}

#[tokio::test]
async fn who_was_away_gets_the_newest_of_each_key_without_a_gap() {
    for hub in hubs().await {
        set(&hub, "a", 1).await;
        let seen = set(&hub, "b", 1).await;
        for value in 2..=100 {
            set(&hub, "a", value).await;
        }
        set(&hub, "c", 1).await;
        let mut back = hub.subscribe(T).resume(seen).opened().await.unwrap();
        assert_eq!(back.outcome(), Some(Resume::Resumed));
        assert_eq!(available(&mut back).await, ["a=100", "c=1"]);
    }
}

#[tokio::test]
async fn who_is_slow_skips_to_the_newest_of_each_key() {
    for hub in hubs().await {
        let mut slow = hub.subscribe(T);
        set(&hub, "a", 1).await;
        assert_eq!(next_event(&mut slow).await.record().data().as_deref(), Some("a=1"));
        for value in 2..=1000 {
            set(&hub, "a", value).await;
            set(&hub, "b", value).await;
        }
        assert_eq!(available(&mut slow).await, ["a=1000", "b=1000"]);
    }
}

#[tokio::test]
async fn who_is_live_gets_every_one() {
    for hub in hubs().await {
        let mut live = hub.subscribe(T);
        for value in 1..=50 {
            set(&hub, "a", value).await;
            assert_eq!(available(&mut live).await, [format!("a={value}")]);
        }
    }
}

#[tokio::test]
async fn only_what_is_the_newest_of_its_key_is_replaced() {
    const OTHER: Topic = Topic::from_static("other");
    for hub in hubs().await {
        hub.publish_record(Record::new(T, Event::new().data("plain, with a key")).with_key("a")).await.unwrap();
        hub.publish(T, Event::new().data("plain")).await.unwrap();
        hub.publish_latest(OTHER, "a", Event::new().data("of another topic")).await.unwrap();
        set(&hub, "a", 1).await;
        set(&hub, "A", 1).await;
        set(&hub, "", 1).await;
        set(&hub, "a", 2).await;
        set(&hub, "", 2).await;
        let mut all = hub.subscribe(T).start(Start::Earliest);
        assert_eq!(available(&mut all).await, ["plain, with a key", "plain", "A=1", "a=2", "=2"]);
        let mut other = hub.subscribe(OTHER).start(Start::Earliest);
        assert_eq!(available(&mut other).await, ["of another topic"]);
    }
}

#[tokio::test]
async fn a_removal_takes_the_place_of_the_newest_and_a_newest_that_of_a_removal() {
    for hub in hubs().await {
        set(&hub, "a", 1).await;
        set(&hub, "b", 1).await;
        hub.publish_record(Record::removal(T, "a", Event::new().data("a left"))).await.unwrap();
        assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["b=1", "a left"]);
        set(&hub, "a", 2).await;
        assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["b=1", "a=2"]);
    }
}

#[tokio::test]
async fn a_finished_topic_takes_nothing_back() {
    for hub in hubs().await {
        set(&hub, "a", 1).await;
        hub.finish(T, Some(Event::new().data("the end"))).await.unwrap();
        let refused = hub.publish_latest(T, "a", Event::new().data("too late")).await.unwrap_err();
        assert!(refused.is_finished());
        let mut late = hub.subscribe(T);
        for expected in ["a=1", "the end"] {
            assert_eq!(next_event(&mut late).await.record().data().as_deref(), Some(expected));
        }
        assert!(late.next().await.is_none());
        assert_eq!(late.end_reason(), Some(EndReason::Finished));
    }
}

#[tokio::test(start_paused = true)]
async fn state_outlives_history_in_the_ring() {
    let hub = Hub::new();
    set(&hub, "a", 1).await;
    hub.publish(T, Event::new().data("history")).await.unwrap();
    set(&hub, "b", 1).await;
    hub.publish_record(Record::removal(T, "b", Event::new().data("b left"))).await.unwrap();
    let seen = set(&hub, "c", 1).await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["a=1", "c=1"]);
    let mut back = hub.subscribe(T).resume(seen).opened().await.unwrap();
    assert_eq!(back.outcome(), Some(Resume::Resumed));
    set(&hub, "a", 2).await;
    assert_eq!(available(&mut back).await, ["a=2"]);

    // But not the end of its topic.
    hub.finish(T, None).await.unwrap();
    sleep(Duration::from_secs(6 * 60)).await;
    assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn state_is_kept_for_as_long_as_is_asked_for() {
    let hub = Hub::builder().ring(Ring::new().keep_latest(Duration::from_secs(600))).build();
    let seen = set(&hub, "a", 1).await;
    sleep(Duration::from_secs(300)).await;
    set(&hub, "b", 1).await;
    sleep(Duration::from_secs(301)).await;
    assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["b=1"]);
    // Who had it has missed nothing; who had not is told.
    assert_eq!(hub.subscribe(T).resume(seen).opened().await.unwrap().outcome(), Some(Resume::Resumed));
    let before = seen.run().at(0);
    assert!(matches!(hub.subscribe(T).resume(before).opened().await.unwrap().outcome(), Some(Resume::Gap(_))));
}

#[tokio::test]
async fn under_pressure_history_goes_before_state() {
    let hub = Hub::builder().ring(Ring::new().total_bytes(20_000)).build();
    set(&hub, "a", 1).await;
    for n in 0..1000 {
        hub.publish("other".parse::<Topic>().unwrap(), Event::new().data(n.to_string())).await.unwrap();
    }
    assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["a=1"]);
}

#[tokio::test]
async fn too_much_state_does_not_starve_history() {
    let hub = Hub::builder().ring(Ring::new().total_bytes(20_000)).build();
    let mut live = hub.subscribe(T).opened().await.unwrap();
    for n in 0..100 {
        set(&hub, &format!("{n}"), 1).await;
        assert_eq!(available(&mut live).await, [format!("{n}=1")]);
    }
    for n in 0..5 {
        hub.publish(T, Event::new().data(n.to_string())).await.unwrap();
    }
    assert_eq!(available(&mut live).await, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn too_many_keys_push_the_oldest_out_and_that_is_a_gap_for_who_has_not_seen_it() {
    let hub = Hub::builder().ring(Ring::new().events_per_topic(3)).build();
    let before = set(&hub, "a", 1).await;
    for key in ["b", "c", "d", "e"] {
        set(&hub, key, 1).await;
    }
    assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["c=1", "d=1", "e=1"]);
    assert!(matches!(hub.subscribe(T).resume(before).opened().await.unwrap().outcome(), Some(Resume::Gap(_))));
    // The key that went can come back.
    set(&hub, "a", 2).await;
    set(&hub, "a", 3).await;
    assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["d=1", "e=1", "a=3"]);
}

#[tokio::test]
async fn what_was_replaced_is_not_lag() {
    for hub in hubs().await {
        let mut slow = hub.subscribe(T).lag_budget(LagBudget::new().events(10));
        for value in 1..=200 {
            set(&hub, "a", value).await;
            set(&hub, "b", value).await;
            if value % 4 == 0 {
                assert_eq!(available(&mut slow).await, [format!("a={value}"), format!("b={value}")]);
            }
        }
        for value in 0..11 {
            hub.publish(T, Event::new().data(value.to_string())).await.unwrap();
        }
        assert!(slow.next().await.is_none());
        assert_eq!(slow.end_reason(), Some(EndReason::Lagged));
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_lets_each_key_through_once_in_a_while() {
    for hub in hubs().await {
        let start = Instant::now();
        let mut calm = hub.subscribe(T).min_interval(Duration::from_millis(100));
        let publisher = tokio::spawn({
            let hub = hub.clone();
            async move {
                for value in 0..1000 {
                    set(&hub, &format!("{}", value % 200), value).await;
                    sleep(Duration::from_millis(1)).await;
                }
                hub.finish(T, None).await.unwrap();
            }
        });
        let mut rounds = std::collections::BTreeMap::<u128, Vec<String>>::new();
        while let Some(message) = calm.next().await {
            let Message::Event(entry) = message.unwrap() else { panic!("a gap") };
            rounds.entry(start.elapsed().as_millis() / 100).or_default().push(entry.record().key().unwrap().to_owned());
        }
        publisher.await.unwrap();
        assert!((10..=12).contains(&rounds.len()), "{} rounds", rounds.len());
        for keys in rounds.values() {
            let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
            assert_eq!(distinct.len(), keys.len(), "a key came twice in one interval");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_interval_delays_nothing_after_a_rest_and_no_end_of_the_hub() {
    let hub = Hub::new();
    let mut calm = hub.subscribe(T).min_interval(Duration::from_secs(10));
    let start = Instant::now();
    set(&hub, "a", 1).await;
    assert_eq!(available(&mut calm).await, ["a=1"]);
    set(&hub, "a", 2).await;
    set(&hub, "a", 3).await;
    assert_eq!(next_event(&mut calm).await.record().data().as_deref(), Some("a=3"));
    assert_eq!(start.elapsed().as_secs(), 10);
    sleep(Duration::from_secs(60)).await;
    set(&hub, "a", 4).await;
    assert_eq!(available(&mut calm).await, ["a=4"]);

    set(&hub, "a", 5).await;
    let closing = Instant::now();
    let (rest, ()) = tokio::join!(calm.collect::<Vec<_>>(), async {
        sleep(Duration::from_secs(1)).await;
        hub.close();
    });
    assert_eq!((rest.len(), closing.elapsed().as_secs()), (1, 1));
}

#[test]
fn kinds_have_words() {
    for kind in [Kind::Event, Kind::Finish, Kind::Latest, Kind::Removal] {
        assert_eq!(Kind::from_name(kind.as_str()), Some(kind));
    }
    assert_eq!(Kind::from_name("Event"), None);
}

#[tokio::test]
async fn a_guard_can_publish_a_removal_when_it_is_dropped() {
    struct Present(Hub);
    impl Drop for Present {
        fn drop(&mut self) {
            self.0.publish_record_now(Record::removal(T, "a", Event::new().data("a left"))).unwrap();
        }
    }
    let hub = Hub::new();
    set(&hub, "a", 1).await;
    drop(Present(hub.clone()));
    assert_eq!(available(&mut hub.subscribe(T).start(Start::Earliest)).await, ["a left"]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_pages_are_read_is_for_the_next_round() {
    for faulty in [false, true] {
        let builder = Hub::builder().window_events(4).page(20, usize::MAX);
        let hub = if faulty { builder.open(FaultyStore::new().0).await.unwrap() } else { builder.build() };
        let rest = Duration::from_secs(60);
        let mut calm = hub.subscribe(T).min_interval(rest);
        let keys = |values: std::ops::Range<u32>| values.map(|value| format!("{value}={value}")).collect::<Vec<_>>();
        for value in 0..30 {
            set(&hub, &value.to_string(), value).await;
        }
        assert_eq!(next_event(&mut calm).await.record().key(), Some("0"));
        for value in 30..40 {
            set(&hub, &value.to_string(), value).await;
        }
        assert_eq!(available(&mut calm).await, keys(1..30));
        sleep(rest).await;
        assert_eq!(available(&mut calm).await, keys(30..40));
    }
}
