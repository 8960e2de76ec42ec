//! The hub in process: publish, follow, resume, gaps, finish.

use futures_util::StreamExt;
use std::time::Duration;
use tidings::{
    Event, Gap, GapReason, Hub, LastEventId, Message, Resume, Start, Subscription, Topic, Topics,
    replay::{Cursor, Record, Ring, Run},
};

fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}

#[derive(Debug, PartialEq)]
enum Seen {
    Data(String),
    Gap(GapReason),
    Pending,
    End,
}

/// What a subscription has at this moment.
async fn seen(subscription: &mut Subscription) -> Vec<Seen> {
    let mut all = Vec::new();
    loop {
        let next = std::future::poll_fn(|cx| std::task::Poll::Ready(subscription.poll_next_unpin(cx))).await;
        all.push(match next {
            std::task::Poll::Pending => Seen::Pending,
            std::task::Poll::Ready(None) => Seen::End,
            std::task::Poll::Ready(Some(Ok(Message::Event(entry)))) => {
                Seen::Data(entry.record().data().unwrap().into_owned())
            }
            std::task::Poll::Ready(Some(Ok(Message::Gap(gap)))) => Seen::Gap(gap.reason),
            std::task::Poll::Ready(other) => panic!("{other:?}"),
        });
        if matches!(all.last(), Some(Seen::Pending | Seen::End)) {
            return all;
        }
    }
}

fn data(numbers: impl IntoIterator<Item = u32>, last: Seen) -> Vec<Seen> {
    numbers.into_iter().map(|n| Seen::Data(n.to_string())).chain([last]).collect()
}

async fn publish(hub: &Hub, topic: &Topic, numbers: impl IntoIterator<Item = u32>) -> Vec<Cursor> {
    let mut ids = Vec::new();
    for number in numbers {
        ids.push(hub.publish(topic, text(number)).await.unwrap());
    }
    ids
}

#[tokio::test]
async fn a_fresh_subscription_gets_what_comes_after_it() {
    let (hub, t) = (Hub::new(), topic("t"));
    publish(&hub, &t, 0..3).await;
    let mut subscription = hub.subscribe(&t);
    publish(&hub, &t, 3..6).await;
    assert_eq!(seen(&mut subscription).await, data(3..6, Seen::Pending));
    publish(&hub, &t, 6..7).await;
    assert_eq!(seen(&mut subscription).await, data(6..7, Seen::Pending));
    assert_eq!(subscription.outcome(), Some(Resume::Fresh));
}

#[tokio::test]
async fn a_resumed_subscription_gets_what_followed_its_id() {
    let (hub, t) = (Hub::new(), topic("t"));
    let ids = publish(&hub, &t, 0..10).await;
    for (at, id) in (0..).zip(&ids) {
        let mut subscription = hub.subscribe(&t).resume(*id);
        assert_eq!(seen(&mut subscription).await, data(at + 1..10, Seen::Pending));
        assert_eq!(subscription.outcome(), Some(Resume::Resumed));
    }
}

#[tokio::test]
async fn off_the_window_the_ring_is_read_and_the_way_back_to_live_has_no_gap() {
    let hub = Hub::builder().window_events(4).page(3, 1 << 20).build();
    let t = topic("t");
    let mut slow = hub.subscribe(&t);
    publish(&hub, &t, 0..100).await;
    assert_eq!(seen(&mut slow).await, data(0..100, Seen::Pending));
    publish(&hub, &t, 100..101).await;
    assert_eq!(seen(&mut slow).await, data(100..101, Seen::Pending));
}

#[tokio::test]
async fn an_id_that_is_too_old_is_a_gap_and_then_the_oldest_that_is_held() {
    let hub = Hub::builder().window_events(2).ring(Ring::new().events_per_topic(5)).build();
    let t = topic("t");
    let ids = publish(&hub, &t, 0..20).await;
    let mut subscription = hub.subscribe(&t).resume(ids[3]);
    let Some(Ok(Message::Gap(gap))) = subscription.next().await else { panic!() };
    assert_eq!((gap.reason, gap.after, gap.through), (GapReason::Evicted, Some(ids[3]), ids[14]));
    assert_eq!(subscription.cursor(), Some(ids[14]));
    assert_eq!(seen(&mut subscription).await, data(15..20, Seen::Pending));
    assert_eq!(subscription.outcome(), Some(Resume::Gap(GapReason::Evicted)));

    // The last id below the floor is a gap, the first one above is not.
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[13])).await[0], Seen::Gap(GapReason::Evicted));
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[14])).await, data(15..20, Seen::Pending));
}

#[tokio::test(start_paused = true)]
async fn the_window_shows_nothing_that_the_ring_has_let_go() {
    let ring = Ring::new().events_per_topic(5).max_age(Duration::from_secs(60));
    let (hub, t) = (Hub::builder().ring(ring).build(), topic("t"));
    let ids = publish(&hub, &t, 0..20).await;
    let mut expected = vec![Seen::Gap(GapReason::Evicted)];
    expected.extend(data(15..20, Seen::Pending));
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[0])).await, expected);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[15])).await, [Seen::Gap(GapReason::Evicted), Seen::Pending]);
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[19])).await, [Seen::Pending]);
    assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Earliest)).await, [Seen::Pending]);
}

#[tokio::test(start_paused = true)]
async fn topics_whose_events_are_gone_cost_nothing() {
    let ring = Ring::new().max_age(Duration::from_secs(60));
    let hub = Hub::builder().ring(ring).build();
    for n in 0..1000 {
        publish(&hub, &topic(&format!("once-{n}")), [n]).await;
    }
    assert!(format!("{hub:?}").contains("topics: 1000"), "{hub:?}");
    tokio::time::advance(Duration::from_secs(61)).await;
    let ids = publish(&hub, &topic("now"), [1, 2]).await;
    assert!(format!("{hub:?}").contains("topics: 1,"), "{hub:?}");
    // One floor for all that are gone: no event of theirs is skipped silently.
    let old = ids[0].run().at(500);
    assert_eq!(seen(&mut hub.subscribe(topic("once-700")).resume(old)).await[0], Seen::Gap(GapReason::Evicted));
    assert_eq!(seen(&mut hub.subscribe(topic("now")).resume(ids[0])).await, data(2..3, Seen::Pending));
}

#[tokio::test(start_paused = true)]
async fn that_a_topic_is_finished_is_remembered_for_an_hour() {
    let (hub, t) = (Hub::new(), topic("t"));
    let last = hub.finish(&t, Some(text(0))).await.unwrap();
    tokio::time::advance(Duration::from_secs(3599)).await;
    assert_eq!(hub.subscribe(&t).resume(last).into_http_response().status(), 204, "its event is long gone");
    assert!(hub.publish(&t, text(1)).await.unwrap_err().is_finished());
    tokio::time::advance(Duration::from_secs(2)).await;
    publish(&hub, &t, 1..2).await;
    assert!(format!("{hub:?}").contains("topics: 1,"), "{hub:?}");
    assert_eq!(seen(&mut hub.subscribe(&t).resume(last)).await, data(1..2, Seen::Pending));
}

#[tokio::test(start_paused = true)]
async fn for_how_long_it_is_remembered_that_a_topic_is_finished_can_be_set() {
    let ring = Ring::new().max_age(Duration::from_secs(1)).keep_finished(Duration::from_secs(60));
    let (hub, t) = (Hub::builder().ring(ring).build(), topic("t"));
    hub.finish(&t, None).await.unwrap();
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(hub.publish(&t, text(0)).await.unwrap_err().is_finished());
    tokio::time::advance(Duration::from_secs(1)).await;
    publish(&hub, &t, 1..2).await;
}

#[tokio::test]
async fn a_forgotten_topic_begins_anew_and_who_was_behind_is_told() {
    let (hub, t) = (Hub::new(), topic("t"));
    let (mut level, mut behind) = (hub.subscribe(&t), hub.subscribe(&t));
    let ids = publish(&hub, &t, 0..3).await;
    assert_eq!(seen(&mut level).await, data(0..3, Seen::Pending));
    hub.forget(&t).await.unwrap();
    hub.forget(topic("never seen")).await.unwrap();
    publish(&hub, &t, 3..4).await;
    assert_eq!(seen(&mut level).await, data(3..4, Seen::Pending));
    let expected = || [Seen::Gap(GapReason::Evicted), Seen::Data("3".into()), Seen::Pending];
    assert_eq!(seen(&mut behind).await, expected());
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[1])).await, expected());

    let done = topic("done");
    hub.finish(&done, None).await.unwrap();
    hub.forget(&done).await.unwrap();
    publish(&hub, &done, 4..5).await;
}

#[tokio::test]
async fn who_has_no_id_of_this_log_begins_as_a_fresh_client_does_after_it_was_told() {
    let (hub, t) = (Hub::builder().page(2, 1 << 20).build(), topic("t"));
    publish(&hub, &t, 0..4).await;
    for (id, reason) in [("nonsense", GapReason::Malformed), ("1.0.z", GapReason::Foreign)] {
        let told = |numbers| [Seen::Gap(reason)].into_iter().chain(data(numbers, Seen::Pending)).collect::<Vec<_>>();
        assert_eq!(seen(&mut hub.subscribe(&t).resume(id)).await, told(0..0));
        assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Earliest).resume(id)).await, told(0..4));
        assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Last(1)).resume(id)).await, told(3..4));
    }
    hub.finish(&t, Some(text(4))).await.unwrap();
    let mut expected = vec![Seen::Gap(GapReason::Foreign)];
    expected.extend(data(0..5, Seen::End));
    assert_eq!(seen(&mut hub.subscribe(&t).resume("1.0.z")).await, expected, "a finished topic has no now");
}

#[tokio::test]
async fn a_closed_hub_ends_its_streams_and_publishes_nothing_more() {
    let (hub, t) = (Hub::new(), topic("t"));
    let mut subscription = hub.subscribe(&t);
    publish(&hub, &t, 0..2).await;
    let clone = hub.clone();
    hub.close();
    assert_eq!(seen(&mut subscription).await, data(0..2, Seen::End));
    assert_eq!(subscription.end_reason(), Some(tidings::EndReason::Closed));
    assert!(clone.publish(&t, text(2)).await.unwrap_err().is_closed());
    assert_eq!(seen(&mut clone.subscribe(&t)).await, [Seen::End]);
}

#[tokio::test]
async fn a_subscription_that_falls_off_the_ring_is_told_once() {
    let hub = Hub::builder().window_events(2).ring(Ring::new().events_per_topic(5)).build();
    let t = topic("t");
    let mut slow = hub.subscribe(&t);
    publish(&hub, &t, 0..20).await;
    let mut expected = vec![Seen::Gap(GapReason::Evicted)];
    expected.extend(data(15..20, Seen::Pending));
    assert_eq!(seen(&mut slow).await, expected);
    assert_eq!(slow.outcome(), Some(Resume::Fresh), "how it began does not change");
}

#[tokio::test]
async fn ids_of_another_log_and_ids_ahead_of_it_are_foreign_and_start_at_the_tip() {
    let (hub, t) = (Hub::new(), topic("t"));
    let ids = publish(&hub, &t, 0..3).await;
    let run = ids[0].run();
    let foreign = [
        Run { epoch: run.epoch ^ 1, number: 0 }.at(1),
        Run { epoch: run.epoch, number: 1 }.at(1),
        run.at(4),
        run.at(u64::MAX),
    ];
    for cursor in foreign {
        let mut subscription = hub.subscribe(&t).resume(cursor);
        let Some(Ok(Message::Gap(gap))) = subscription.next().await else { panic!() };
        assert_eq!(gap.reason, GapReason::Foreign);
        assert_eq!(subscription.outcome(), Some(Resume::Gap(GapReason::Foreign)));
        assert_eq!(subscription.cursor(), Some(ids[2]));
        assert_eq!(seen(&mut subscription).await, [Seen::Pending]);
    }
}

#[tokio::test]
async fn as_long_as_a_gap_is_not_reported_the_place_to_resume_from_leads_to_it() {
    let (hub, t) = (Hub::new(), topic("t"));
    publish(&hub, &t, 0..3).await;
    for (broken, place) in [("nonsense", None), ("1.0.z", Some("1.0.z"))] {
        let mut subscription = hub.subscribe(&t).resume(broken).opened().await.unwrap();
        assert_eq!(subscription.cursor().map(|cursor| cursor.to_string()).as_deref(), place);
        assert!(subscription.next().await.is_some());
        assert_eq!(subscription.cursor().unwrap().position(), 3);
    }
}

#[tokio::test]
async fn what_is_no_id_is_malformed_and_starts_at_the_tip() {
    let (hub, t) = (Hub::new(), topic("t"));
    publish(&hub, &t, 0..3).await;
    for broken in ["nonsense", "1.2", "1.0.z\u{0}", &"9".repeat(5000)] {
        let mut subscription = hub.subscribe(&t).resume(broken);
        assert_eq!(seen(&mut subscription).await, [Seen::Gap(GapReason::Malformed), Seen::Pending]);
        assert_eq!(subscription.outcome(), Some(Resume::Gap(GapReason::Malformed)));
        publish(&hub, &t, 7..8).await;
        assert_eq!(seen(&mut subscription).await, data(7..8, Seen::Pending));
    }
}

#[tokio::test]
async fn the_last_id_counts_whatever_was_read_before() {
    let (hub, t) = (Hub::new(), topic("t"));
    let ids = publish(&hub, &t, 0..5).await;
    let opened = async || hub.subscribe(&t).start(Start::Earliest).opened().await.unwrap();
    assert_eq!(seen(&mut opened().await.resume(ids[1])).await, data(2..5, Seen::Pending));
    let told = |numbers| [Seen::Gap(GapReason::Malformed)].into_iter().chain(data(numbers, Seen::Pending));
    let mut malformed = hub.subscribe(&t).resume(ids[1]).resume("nonsense");
    assert!(seen(&mut malformed).await.into_iter().eq(told(0..0)));
    let mut malformed = hub.subscribe(&t).resume(ids[1]).start(Start::Earliest).resume("nonsense");
    assert!(seen(&mut malformed).await.into_iter().eq(told(0..5)));
}

#[tokio::test]
async fn several_topics_come_in_the_order_of_the_log_and_no_other_does() {
    let hub = Hub::builder().window_events(3).page(2, 1 << 20).build();
    let (a, b, c) = (topic("a"), topic("b"), topic("c"));
    let mut both = hub.subscribe(Topics::new([a.clone(), b.clone()]).unwrap());
    for n in 0..30 {
        publish(&hub, [&a, &b, &c][n as usize % 3], [n]).await;
    }
    assert_eq!(seen(&mut both).await, data((0..30).filter(|n| n % 3 != 2), Seen::Pending));
    assert_eq!(seen(&mut hub.subscribe(&c).resume(both.cursor())).await, [Seen::Pending]);
}

#[tokio::test]
async fn late_joiners_may_ask_for_all_or_for_the_last_few() {
    let hub = Hub::builder().window_events(2).page(3, 1 << 20).build();
    let t = topic("t");
    let ids = publish(&hub, &t, 0..10).await;
    assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Earliest)).await, data(0..10, Seen::Pending));
    assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Last(4))).await, data(6..10, Seen::Pending));
    assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Last(0))).await, [Seen::Pending]);
    assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Last(99))).await, data(0..10, Seen::Pending));
    // An id decides; the start is for those without.
    assert_eq!(seen(&mut hub.subscribe(&t).start(Start::Earliest).resume(ids[7])).await, data(8..10, Seen::Pending));
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[7]).start(Start::Earliest)).await, data(8..10, Seen::Pending));
    let absent = hub.subscribe(&t).start(Start::Last(1)).resume(LastEventId::absent());
    assert_eq!(seen(&mut { absent }).await, data(9..10, Seen::Pending));
    let mut now = hub.subscribe(&t).start(Start::Earliest).start(Start::Now);
    assert_eq!(seen(&mut now).await, [Seen::Pending]);
    assert_eq!(now.outcome(), Some(Resume::Fresh));
}

#[tokio::test]
async fn a_finished_topic_gives_what_is_left_and_ends() {
    let (hub, t) = (Hub::new(), topic("t"));
    let mut live = hub.subscribe(&t);
    let ids = publish(&hub, &t, 0..3).await;
    hub.finish(&t, Some(text(3))).await.unwrap();
    assert_eq!(seen(&mut live).await, data(0..4, Seen::End));
    assert_eq!(seen(&mut hub.subscribe(&t).resume(ids[1])).await, data(2..4, Seen::End));
    assert_eq!(seen(&mut hub.subscribe(&t)).await, data(0..4, Seen::End), "a fresh client gets what is held");
    assert!(hub.publish(&t, text(9)).await.unwrap_err().is_finished());
    assert!(hub.finish(&t, None).await.unwrap_err().is_finished());
}

#[tokio::test]
async fn a_subscription_of_several_topics_ends_when_all_have() {
    let (hub, a, b) = (Hub::new(), topic("a"), topic("b"));
    let mut both = hub.subscribe(Topics::new([a.clone(), b.clone()]).unwrap());
    hub.finish(&a, Some(text(1))).await.unwrap();
    assert_eq!(seen(&mut both).await, data(1..2, Seen::Pending));
    publish(&hub, &b, 2..3).await;
    hub.finish(&b, None).await.unwrap();
    assert_eq!(seen(&mut both).await, data(2..3, Seen::End));
}

#[tokio::test]
async fn streams_end_when_the_last_hub_is_dropped_and_not_before() {
    let (hub, t) = (Hub::new(), topic("t"));
    let mut subscription = hub.subscribe(&t);
    let clone = hub.clone();
    drop(hub);
    publish(&clone, &t, 0..2).await;
    assert_eq!(seen(&mut subscription).await, data(0..2, Seen::Pending));
    publish(&clone, &t, 2..3).await;
    let waiting = tokio::spawn(async move { seen(&mut subscription).await });
    drop(clone);
    assert_eq!(waiting.await.unwrap(), data(2..3, Seen::End));
}

#[tokio::test]
async fn dropping_the_last_hub_wakes_those_who_wait() {
    let (hub, t) = (Hub::new(), topic("t"));
    let mut subscription = hub.subscribe(&t);
    let waiting = tokio::spawn(async move { subscription.next().await.is_none() });
    tokio::task::yield_now().await;
    drop(hub);
    assert!(waiting.await.unwrap());
}

#[tokio::test]
async fn a_batch_keeps_its_order_and_a_refused_record_fails_only_itself() {
    let hub = Hub::builder().max_event_bytes(64).build();
    let (t, done) = (topic("t"), topic("done"));
    hub.finish(&done, None).await.unwrap();
    let mut subscription = hub.subscribe(&t);
    let batch = [(&t, text(0)), (&done, text(1)), (&t, text("x".repeat(100))), (&t, text(3))];
    let outcomes = hub.publish_all(batch).await;
    assert!(outcomes[0].is_ok() && outcomes[3].is_ok());
    assert!(outcomes[1].as_ref().unwrap_err().is_finished());
    assert!(outcomes[2].as_ref().unwrap_err().is_too_large());
    assert_eq!(seen(&mut subscription).await, data([0, 3], Seen::Pending));
}

#[tokio::test]
async fn an_event_may_have_max_event_bytes_with_its_key_and_labels_and_no_more() {
    let record = || Record::new(topic("t"), text("xyz")).with_key("key").with_label("name", "value");
    let size = "data: xyz\n".len() + "key".len() + "name".len() + "value".len();
    for (limit, fits) in [(size, true), (size - 1, false)] {
        let hub = Hub::builder().max_event_bytes(limit).build();
        assert_eq!(hub.publish_record(record()).await.is_ok(), fits);
    }
}

#[test]
fn a_hub_needs_no_runtime_and_publish_now_no_await() {
    let (hub, t) = (Hub::new(), topic("t"));
    let first = hub.publish_now(&t, text(0)).unwrap();
    let second = hub.publish_now(&t, text(1)).unwrap();
    assert!(second.position() > first.position());
    assert_eq!(second.run(), first.run());
}

#[test]
fn a_gap_says_what_it_is_about_in_its_debug_form() {
    fn assert_send<T: Send>() {}
    assert_send::<Subscription>();
    assert_send::<Hub>();
    assert_send::<Gap>();
}
