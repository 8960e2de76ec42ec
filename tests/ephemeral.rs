//! Events that are not kept: in their order for those who are there, and for nobody else.

use futures_util::{StreamExt, future::poll_immediate};
use std::time::Duration;
use tidings::{
    EndReason, Event, EventType, Hub, LagBudget, Message, Subscription, Topic, Topics,
    replay::Record,
    test_util::{self, FaultyStore, decode, next_event},
};

const T: Topic = Topic::from_static("t");
const OTHER: Topic = Topic::from_static("other");
const TYPING: EventType = EventType::from_static("typing");

async fn hubs() -> [Hub; 2] {
    let builder = || Hub::builder().window_events(4);
    [builder().build(), builder().open(FaultyStore::new().0).await.unwrap()]
}

fn text(text: impl AsRef<str>) -> Event {
    Event::new().data(text)
}

async fn available(subscription: &mut Subscription) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(Some(message)) = poll_immediate(subscription.next()).await {
        let Message::Event(entry) = message.unwrap() else { panic!("a gap") };
        all.push(entry.record().data().unwrap().into_owned());
    }
    all
}

#[tokio::test]
async fn those_who_are_there_get_them_in_order_among_the_rest() {
    for hub in hubs().await {
        let both = Topics::new([T, OTHER]).unwrap();
        let (mut one, mut two) = (hub.subscribe(T), hub.subscribe(both));
        assert_eq!(hub.publish_ephemeral(T, text("before all")).unwrap(), 2);
        hub.publish(T, text("1")).await.unwrap();
        hub.publish_ephemeral(T, text("after 1")).unwrap();
        assert_eq!(hub.publish_ephemeral(OTHER, text("of the other")).unwrap(), 1);
        hub.publish_ephemeral(T, text("still after 1")).unwrap();
        hub.publish(OTHER, text("2")).await.unwrap();
        hub.publish(T, text("3")).await.unwrap();
        assert_eq!(available(&mut one).await, ["before all", "1", "after 1", "still after 1", "3"]);
        let all = ["before all", "1", "after 1", "of the other", "still after 1", "2", "3"];
        assert_eq!(available(&mut two).await, all);
    }
}

#[tokio::test]
async fn who_comes_later_does_not_get_them() {
    for hub in hubs().await {
        assert_eq!(hub.publish_ephemeral(T, text("to nobody")).unwrap(), 0);
        let mut first = hub.subscribe(T);
        let id = hub.publish(T, text("1")).await.unwrap();
        hub.publish_ephemeral(T, text("gone")).unwrap();
        let mut later = hub.subscribe(T);
        let mut resumed = hub.subscribe(T).resume(id);
        hub.publish(T, text("2")).await.unwrap();
        assert_eq!(available(&mut later).await, ["2"]);
        assert_eq!(available(&mut resumed).await, ["2"]);
        assert_eq!(available(&mut first).await, ["1", "gone", "2"]);
    }
}

#[tokio::test]
async fn a_waiting_subscription_is_woken() {
    for hub in hubs().await {
        let mut subscription = hub.subscribe(T).opened().await.unwrap();
        let waiting = tokio::spawn(async move { next_event(&mut subscription).await });
        tokio::task::yield_now().await;
        assert_eq!(hub.publish_ephemeral(T, text("now")).unwrap(), 1);
        let entry = waiting.await.unwrap();
        assert!(entry.is_ephemeral());
        assert_eq!(entry.record().data().as_deref(), Some("now"));
    }
}

#[tokio::test]
async fn on_the_wire_they_have_no_id_and_leave_the_clients_id_as_it_is() {
    let hub = Hub::new();
    let mut client = test_util::EventReader::new(hub.subscribe(T).into_http_response().into_body());
    let id = hub.publish(T, text("1")).await.unwrap();
    hub.publish_ephemeral(T, text("a\nb").event_type(TYPING)).unwrap();
    assert_eq!(client.next().await.unwrap().data, "1");
    let typing = client.next().await.unwrap();
    assert_eq!((typing.event_type.as_str(), typing.data.as_str()), ("typing", "a\nb"));
    assert_eq!(typing.last_event_id, id.to_string());

    let mut subscription = hub.subscribe(T);
    hub.publish_ephemeral(T, text("x")).unwrap();
    let entry = next_event(&mut subscription).await;
    assert_eq!(entry.frame(), "data: x\n\n");
    assert_eq!(decode(entry.frame()).len(), 1);
    // Who resumes from it goes on behind what came before it.
    assert_eq!((entry.cursor(), subscription.cursor()), (id, Some(id)));
}

#[tokio::test]
async fn filters_and_sizes_are_for_them_too() {
    let hub = Hub::builder().max_event_bytes(100).build();
    let mut others = hub.subscribe(T).filter(|record| record.label("user") != Some("me"));
    hub.publish_ephemeral_record(Record::new(T, text("mine")).with_label("user", "me")).unwrap();
    hub.publish_ephemeral_record(Record::new(T, text("yours")).with_label("user", "you")).unwrap();
    assert_eq!(available(&mut others).await, ["yours"]);
    assert!(hub.publish_ephemeral(T, text("x".repeat(101))).unwrap_err().is_too_large());
}

#[tokio::test]
async fn they_end_with_their_topic_and_with_the_hub() {
    for hub in hubs().await {
        let mut subscription = hub.subscribe(T);
        hub.publish_ephemeral(T, text("before")).unwrap();
        assert!(hub.publish_ephemeral_record(Record::finish(T, None)).is_err());
        hub.finish(T, Some(text("the end"))).await.unwrap();
        assert!(hub.publish_ephemeral(T, text("after")).unwrap_err().is_finished());
        assert_eq!(available(&mut subscription).await, ["before", "the end"]);
        assert_eq!(subscription.end_reason(), Some(EndReason::Finished));

        let mut subscription = hub.subscribe(OTHER);
        hub.publish_ephemeral(OTHER, text("last words")).unwrap();
        hub.close();
        assert!(hub.publish_ephemeral(OTHER, text("after")).unwrap_err().is_closed());
        assert_eq!(available(&mut subscription).await, ["last words"]);
        assert_eq!(subscription.end_reason(), Some(EndReason::Closed));
    }
}

#[tokio::test]
async fn they_move_no_floor_and_are_not_lag() {
    for hub in hubs().await {
        let mut slow = hub.subscribe(T).lag_budget(LagBudget::new().events(3));
        hub.publish(T, text("1")).await.unwrap();
        for n in 0..1000 {
            hub.publish_ephemeral(T, text(format!("e{n}"))).unwrap();
        }
        hub.publish(T, text("2")).await.unwrap();
        let all = available(&mut slow).await;
        // Of many only the newest, but of what is kept everything.
        let kept: Vec<_> = all.iter().filter(|text| !text.starts_with('e')).collect();
        assert_eq!(kept, ["1", "2"]);
        let ephemeral: Vec<_> = all.iter().filter(|text| text.starts_with('e')).cloned().collect();
        let newest: Vec<_> = (1000 - ephemeral.len()..1000).map(|n| format!("e{n}")).collect();
        assert!(!newest.is_empty() && newest.len() <= 64);
        assert_eq!(ephemeral, newest);
        assert_eq!(all.last().map(String::as_str), Some("2"));
    }
}

#[tokio::test]
async fn large_ones_are_bounded_by_their_bytes() {
    let hub = Hub::new();
    let mut slow = hub.subscribe(T);
    for n in 0..10 {
        hub.publish_ephemeral(T, text(n.to_string().repeat(30_000))).unwrap();
    }
    let all = available(&mut slow).await;
    assert_eq!(all, [8, 9].map(|n: u32| n.to_string().repeat(30_000)));
    hub.publish_ephemeral(T, text("x".repeat(500_000))).unwrap();
    assert_eq!(available(&mut slow).await.len(), 1);
}

#[tokio::test]
async fn who_is_behind_gets_them_in_their_place_while_they_are_held() {
    for hub in hubs().await {
        let mut slow = hub.subscribe(T);
        let mut expected = Vec::new();
        for n in 0..20 {
            hub.publish(T, text(n.to_string())).await.unwrap();
            hub.publish_ephemeral(T, text(format!("behind {n}"))).unwrap();
            expected.extend([n.to_string(), format!("behind {n}")]);
        }
        assert_eq!(available(&mut slow).await, expected);
    }
}

#[tokio::test]
async fn the_newest_of_a_crowd_are_held_for_who_is_slow() {
    for hub in hubs().await {
        let mut slow = hub.subscribe(T);
        for n in 0..2000 {
            hub.publish_ephemeral(T, text(format!("{n:0>100}"))).unwrap();
        }
        let held = available(&mut slow).await;
        assert!(held.iter().eq((2000 - 64..2000).map(|n| format!("{n:0>100}")).collect::<Vec<_>>().iter()), "{held:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_come_within_a_round_are_for_the_next() {
    // What the round has is on the window, or in the store.
    for hub in hubs().await.into_iter().chain([Hub::new()]) {
        let rest = Duration::from_secs(60);
        let mut calm = hub.subscribe(T).min_interval(rest).opened().await.unwrap();
        for n in 0..100 {
            hub.publish(T, text(n.to_string())).await.unwrap();
        }
        assert_eq!(next_event(&mut calm).await.record().data().unwrap(), "0");
        hub.publish(T, text("100")).await.unwrap();
        hub.publish_ephemeral(T, text("behind 100")).unwrap();
        let round: Vec<_> = (1..100).map(|n| n.to_string()).collect();
        assert_eq!(available(&mut calm).await, round);
        tokio::time::advance(rest).await;
        assert_eq!(available(&mut calm).await, ["100", "behind 100"]);
    }
}

#[tokio::test(start_paused = true)]
async fn those_of_other_topics_begin_no_round() {
    for hub in hubs().await {
        let rest = Duration::from_secs(60);
        let mut calm = hub.subscribe(T).min_interval(rest).opened().await.unwrap();
        let _other = hub.subscribe(OTHER);
        for n in 0..3 {
            hub.publish_ephemeral(OTHER, text("of another")).unwrap();
            assert!(available(&mut calm).await.is_empty());
            let n = n.to_string();
            hub.publish_ephemeral(T, text(&n)).unwrap();
            assert_eq!(available(&mut calm).await, [n]);
            tokio::time::advance(rest).await;
            assert!(available(&mut calm).await.is_empty());
        }
    }
}

#[tokio::test]
async fn over_all_topics_the_oldest_go_first() {
    let hub = Hub::new();
    let topic = |n: usize| Topic::new(n.to_string()).unwrap();
    let mut readers = Vec::new();
    for n in 0..400 {
        readers.push(hub.subscribe(topic(n)));
        assert_eq!(hub.publish_ephemeral(topic(n), text("x".repeat(60_000))).unwrap(), 1);
        // Those that nobody waits for any more do not count.
        let gone = hub.subscribe(OTHER);
        hub.publish_ephemeral(OTHER, text("x".repeat(60_000))).unwrap();
        drop(gone);
    }
    let mut held = Vec::new();
    for reader in &mut readers {
        held.push(available(reader).await.len());
    }
    let lost = held.iter().take_while(|held| **held == 0).count();
    assert!(held[lost..].iter().all(|held| *held == 1), "{held:?}");
    // One of them made room for the last of those who left.
    assert_eq!(400 - lost, 16 * 1024 * 1024 / 60_008 - 1);
}

#[tokio::test]
async fn those_that_are_gone_take_no_room_from_others() {
    let hub = Hub::new();
    let mut slow = hub.subscribe(T);
    hub.publish_ephemeral(T, text("held")).unwrap();
    let large = || text("x".repeat(60_000));
    for round in 0..3 {
        let mut readers = Vec::new();
        for n in 0..200 {
            let topic = Topic::new(format!("{round}.{n}")).unwrap();
            hub.create(&topic);
            readers.push(hub.subscribe(&topic));
            hub.publish_ephemeral(topic, large()).unwrap();
        }
    }
    let _busy = hub.subscribe(OTHER);
    for _ in 0..1000 {
        hub.publish_ephemeral(OTHER, large()).unwrap();
    }
    assert_eq!(available(&mut slow).await, ["held"]);
}

#[test]
fn those_that_are_gone_take_no_memory() {
    let hub = Hub::new();
    let _slow = hub.subscribe(T);
    let measured = allocation_counter::measure(|| {
        for _ in 0..100_000 {
            hub.publish_ephemeral(T, text("pushed out")).unwrap();
            let _reader = hub.subscribe(OTHER);
            hub.publish_ephemeral(OTHER, text("for one who leaves")).unwrap();
        }
    });
    assert!(measured.bytes_current < 100_000, "{}", measured.bytes_current);
}
