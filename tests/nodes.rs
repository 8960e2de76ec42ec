//! Hubs over one log that they share: what every node shows, what crosses from one to the other, and what becomes of a node
//! that is cut off.

mod support;

use futures_util::{FutureExt as _, StreamExt as _};
use http::{Request, StatusCode};
use http_body_util::Full;
use std::time::Duration;
use support::nodes::{Log, next_text, open, settle, text};
use tidings::{
    EndReason, FeedStats, GapReason, HeartbeatHandler, Hub, HubBuilder, KeepAlive, Message, Start, Topic, Topics,
    replay::{Cursor, Record, Ring},
    test_util::{EventReader, next_event, next_message},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_service::Service;

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");

async fn open_with(log: &Log, builder: HubBuilder) -> Hub {
    builder.open(log.node()).await.unwrap()
}

fn feed(hub: &Hub) -> FeedStats {
    hub.stats().feed.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_who_move_have_every_event_once_and_all_in_the_same_order() {
    const EVENTS: usize = 500;
    const CLIENTS: usize = 20;
    let log = Log::new();
    let hubs = [open(&log).await, open_with(&log, Hub::builder().window_events(20)).await];
    let start = hubs[0].subscribe(T).cursor().unwrap();
    let mut publishers = JoinSet::new();
    for n in 0..4 {
        let hub = hubs[n % 2].clone();
        publishers.spawn(async move {
            for event in 0..EVENTS / 4 {
                hub.publish(T, text(format!("{n}.{event}"))).await.unwrap();
            }
        });
    }
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let hubs = hubs.clone();
        clients.spawn(async move {
            let (mut seen, mut at) = (Vec::new(), start);
            for round in n.. {
                let mut subscription = hubs[round % 2].subscribe(T).resume(at);
                for _ in 0..=fastrand::usize(..40) {
                    match timeout(Duration::from_secs(60), next_message(&mut subscription)).await.unwrap().unwrap() {
                        Message::Event(event) => {
                            seen.push((event.cursor(), event.record().data().unwrap().into_owned()));
                            at = event.cursor();
                        }
                        other => panic!("{other:?}"),
                    }
                    if seen.len() == EVENTS {
                        return seen;
                    }
                }
            }
            unreachable!()
        });
    }
    publishers.join_all().await;
    let seen = clients.join_all().await;
    assert!(seen[0].is_sorted_by(|a, b| a.0.position() < b.0.position()));
    assert!(seen.iter().all(|one| *one == seen[0]));
    let mut texts: Vec<_> = seen[0].iter().map(|(_, text)| text.clone()).collect();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), EVENTS);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_publishes_and_shows_what_there_is_once_it_hears_again() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    let (mut on_one, mut on_two) = (one.subscribe(T), two.subscribe(T));
    one.publish(T, text(1)).await.unwrap();
    assert_eq!((next_text(&mut on_one).await, next_text(&mut on_two).await), ("1".into(), "1".into()));
    settle().await;
    assert_eq!(feed(&one), feed(&two));
    assert!(feed(&one).connected && feed(&one).interruptions == 0, "{:?}", feed(&one));

    log.cut(0);
    settle().await;
    assert!(!feed(&one).connected);
    // The log is within reach, so it is stored; the subscribers here learn of it later, those of the other at once.
    let id = one.publish(T, text(2)).await.unwrap();
    two.publish(T, text(3)).await.unwrap();
    assert_eq!((next_text(&mut on_two).await, next_text(&mut on_two).await), ("2".into(), "3".into()));
    settle().await;
    assert!(on_one.next().now_or_never().is_none());
    // Who was further at the other node goes on here: the store has what the window does not.
    let mut moved = one.subscribe(T).resume(id);
    assert_eq!(next_text(&mut moved).await, "3");
    assert!(moved.next().now_or_never().is_none());

    log.heal(0);
    assert_eq!((next_text(&mut on_one).await, next_text(&mut on_one).await), ("2".into(), "3".into()));
    settle().await;
    let FeedStats { connected, interruptions, missed, skips, .. } = feed(&one);
    assert_eq!((connected, interruptions, missed, skips), (true, 1, 2, 0));
    assert!(moved.next().now_or_never().is_none(), "it had that");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_told_one_by_one_is_read_and_only_what_is_gone_is_a_gap() {
    let log = Log::over(Ring::new().events_per_topic(3));
    let (one, two) = (open(&log).await, open(&log).await);
    let (mut here, mut other, mut several) =
        (two.subscribe(T), two.subscribe(U), two.subscribe(Topics::new([T, U]).unwrap()));
    log.cut(1);
    settle().await;
    for n in 1..=5 {
        one.publish(T, text(n)).await.unwrap();
    }
    one.publish(U, text("u")).await.unwrap();
    log.skip(1);
    log.heal(1);
    for subscription in [&mut here, &mut several] {
        let Some(Message::Gap(gap)) = next_message(subscription).await else { panic!("no gap") };
        assert_eq!((gap.reason, gap.through.position()), (GapReason::Evicted, 2));
        for n in 3..=5 {
            assert_eq!(next_text(subscription).await, n.to_string());
        }
    }
    assert_eq!(next_text(&mut several).await, "u");
    assert_eq!(next_text(&mut other).await, "u", "nothing of this topic was lost");
    one.publish(T, text(6)).await.unwrap();
    assert_eq!((next_text(&mut here).await, next_text(&mut several).await), ("6".into(), "6".into()));
    assert_eq!(feed(&two).skips, 1);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_lost_is_a_gap_for_every_subscriber_of_every_node() {
    let log = Log::new();
    let hubs = [open(&log).await, open(&log).await];
    let mut subscriptions: Vec<_> = hubs.iter().map(|hub| hub.subscribe(T)).collect();
    hubs[0].publish(T, text("before")).await.unwrap();
    for subscription in &mut subscriptions {
        assert_eq!(next_text(subscription).await, "before");
    }
    log.replace();
    hubs[1].publish(T, text("after")).await.unwrap();
    for subscription in &mut subscriptions {
        let Some(Message::Gap(gap)) = next_message(subscription).await else { panic!("no gap") };
        assert_eq!(gap.reason, GapReason::Foreign);
    }
    // Whether the first event is past the gap depends on who came first; the next is for all.
    hubs[0].publish(T, text("next")).await.unwrap();
    for subscription in &mut subscriptions {
        while next_text(subscription).await != "next" {}
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_is_unknown_holds_nobody_up_and_the_event_comes_once() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    let (mut on_one, mut on_two) = (one.subscribe(T), two.subscribe(T));
    log.lose_the_next_answer();
    let record = || Record::new(T, text("paid")).with_idempotency_key("order 7");
    assert!(one.publish_record(record()).await.unwrap_err().is_unknown());
    // Publishing it again, on whatever node, says where it is.
    let id = two.publish_record(record()).await.unwrap();
    assert_eq!(one.publish_record(record()).await.unwrap(), id);
    one.publish(T, text("next")).await.unwrap();
    for subscription in [&mut on_one, &mut on_two] {
        let first = next_event(subscription).await;
        assert_eq!((first.cursor(), first.record().data().unwrap()), (id, "paid".into()));
        assert_eq!(next_text(subscription).await, "next");
    }
}

#[tokio::test(start_paused = true)]
async fn ephemeral_events_reach_the_subscribers_of_all_nodes_in_their_order() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    let mut subscriptions = [one.subscribe(T), two.subscribe(T)];
    assert_eq!(one.publish_ephemeral(T, text("a")).unwrap(), 1, "those here");
    assert_eq!(one.publish_ephemeral(U, text("nobody")).unwrap(), 0);
    settle().await;
    one.publish(T, text(1)).await.unwrap();
    settle().await;
    assert_eq!(two.publish_ephemeral(T, text("b")).unwrap(), 1);
    for subscription in &mut subscriptions {
        for (data, is_ephemeral) in [("a", true), ("1", false), ("b", true)] {
            let event = next_event(subscription).await;
            assert_eq!((event.record().data().unwrap().as_ref(), event.is_ephemeral()), (data, is_ephemeral));
        }
    }
    assert_eq!((one.stats().ephemeral, two.stats().ephemeral), (2, 1));

    // What does not go out is counted, and nobody waits without end.
    log.cut(0);
    settle().await;
    one.publish_ephemeral(T, text("lost")).unwrap();
    settle().await;
    assert_eq!(one.stats().store_errors.notify, 1);
    let mut taken = 0;
    while one.publish_ephemeral(T, text("more")).is_ok() {
        taken += 1;
        assert!(taken <= 2000, "nothing holds it back");
    }
    assert!(one.publish_ephemeral(T, text("more")).unwrap_err().is_busy());
    settle().await;
    assert_eq!(one.stats().store_errors.notify, 1 + taken);
    one.finish(T, None).await.unwrap();
    settle().await;
    assert!(two.publish_ephemeral(T, text("late")).unwrap_err().is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_forgotten_on_one_node_is_forgotten_on_all() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    one.publish(T, text(1)).await.unwrap();
    one.finish(T, None).await.unwrap();
    let mut late = two.subscribe(T);
    assert_eq!(next_text(&mut late).await, "1");
    assert!(next_message(&mut late).await.is_none());
    one.forget(T).await.unwrap();
    let mut anew = two.subscribe(T);
    two.publish(T, text(2)).await.unwrap();
    assert_eq!(next_text(&mut anew).await, "2");
    assert!(anew.next().now_or_never().is_none(), "it goes on");
    let mut earliest = one.subscribe(T).start(Start::Earliest);
    assert_eq!(next_text(&mut earliest).await, "2");
}

#[tokio::test(start_paused = true)]
async fn ends_and_requests_to_stop_reach_all_nodes() {
    const BYE: EndReason = EndReason::application("logged-out");
    let log = Log::new();
    let builder = || Hub::builder().announce_ends();
    let (one, two) = (open_with(&log, builder()).await, open_with(&log, builder()).await);
    let of = |hub: &Hub, topic: Topic, user: &str| hub.subscribe(topic).label("user", user).into_http_response();
    let mut readers = Vec::new();
    for hub in [&one, &two] {
        for (topic, user) in [(T, "ann"), (T, "bob"), (U, "ann")] {
            readers.push(Some(EventReader::new(of(hub, topic, user).into_body())));
        }
    }
    for topic in [T, U] {
        one.publish(topic, text("hello")).await.unwrap();
    }
    for reader in readers.iter_mut().flatten() {
        assert_eq!(reader.next().await.unwrap().data, "hello");
    }
    assert_eq!(one.end_labelled("user", "ann", BYE), 2, "those here");
    settle().await;
    let mut ended = async |who: &[usize]| {
        for n in who {
            let mut reader = readers[*n].take().unwrap();
            let mut last = None;
            while let Some(event) = reader.next().await {
                last = Some(event);
            }
            assert_eq!(last.unwrap().data, r#"{"reason":"logged-out"}"#, "{n}");
        }
        (one.stats().left.application, two.stats().left.application)
    };
    assert_eq!(ended(&[0, 2, 3, 5]).await, (2, 2));
    assert_eq!(two.end_topic(U, BYE), 0);
    assert_eq!(two.end_topic(T, BYE), 1);
    settle().await;
    assert_eq!(ended(&[1, 4]).await, (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_producer_on_another_node_is_asked_to_stop() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    let producer = one.producer(T);
    assert!(!two.stop(T), "there is none here");
    timeout(Duration::from_secs(1), producer.stopped()).await.unwrap();
    let own = two.producer(U);
    assert!(two.stop(U));
    timeout(Duration::from_secs(1), own.stopped()).await.unwrap();
}

async fn post(handler: &HeartbeatHandler, token: &str) -> StatusCode {
    let request = Request::post("/").body(Full::new(bytes::Bytes::from(token.to_owned()))).unwrap();
    Service::call(&mut handler.clone(), request).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn a_clients_heartbeat_is_good_on_every_node() {
    let log = Log::new();
    let builder = || Hub::builder().client_heartbeats(Duration::from_secs(30)).keep_alive(KeepAlive::off());
    let (one, two) = (open_with(&log, builder()).await, open_with(&log, builder()).await);
    let mut reader = EventReader::new(one.subscribe(T).into_http_response().into_body());
    let session: serde_json::Value = serde_json::from_str(&reader.next().await.unwrap().data).unwrap();
    let token = session["token"].as_str().unwrap();
    let elsewhere = two.heartbeat_handler();
    for n in 1..=5 {
        sleep(Duration::from_secs(20)).await;
        assert_eq!(post(&elsewhere, token).await, StatusCode::NO_CONTENT);
        assert_eq!(reader.next().await.unwrap().data, n.to_string());
    }
    assert_eq!(post(&elsewhere, &"0".repeat(48)).await, StatusCode::NOT_FOUND);
    assert_eq!(post(&elsewhere, "short").await, StatusCode::NOT_FOUND);
    log.cut(1);
    settle().await;
    assert_eq!(post(&elsewhere, token).await, StatusCode::SERVICE_UNAVAILABLE, "which says nothing of the session");
    assert_eq!(post(&one.heartbeat_handler(), token).await, StatusCode::NO_CONTENT);
    // It is back before the answer is given up, and still nobody has heard the question.
    let (answer, ()) = tokio::join!(post(&elsewhere, token), async {
        sleep(Duration::from_secs(1)).await;
        log.heal(1);
    });
    assert_eq!(answer, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(post(&elsewhere, token).await, StatusCode::NO_CONTENT);
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_or_panics_is_asked_for_again() {
    let log = Log::new();
    let hub = open(&log).await;
    let mut subscription = hub.subscribe(T);
    hub.publish(T, text(0)).await.unwrap();
    assert_eq!(next_text(&mut subscription).await, "0");
    settle().await;
    for (n, by_a_panic) in [(1, false), (2, true)] {
        log.break_feed(0, by_a_panic);
        hub.publish(T, text(n)).await.unwrap();
        assert_eq!(next_text(&mut subscription).await, n.to_string());
        assert_eq!(log.feeds(), n + 1);
    }
    settle().await;
    assert!(feed(&hub).connected);
    assert_eq!(feed(&hub).interruptions, 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_hub_is_left_when_it_is_gone() {
    for close in [true, false] {
        let log = Log::new();
        let hub = open(&log).await;
        let mut subscription = hub.subscribe(T);
        hub.publish(T, text(1)).await.unwrap();
        assert_eq!(next_text(&mut subscription).await, "1");
        if close {
            hub.close();
        } else {
            drop(hub.clone());
        }
        drop(hub);
        assert!(next_message(&mut subscription).await.is_none());
        drop(subscription);
        settle().await;
        assert_eq!(log.holders(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_told_to_go_once_it_has_all_goes_also_if_that_is_read_from_the_log() {
    let log = Log::new();
    let (one, two) = (open(&log).await, open(&log).await);
    let mut subscription = two.subscribe(T);
    let id = one.publish(T, text(1)).await.unwrap();
    assert_eq!(next_event(&mut subscription).await.cursor(), id);
    log.cut(1);
    settle().await;
    one.publish(T, text(2)).await.unwrap();
    one.publish(T, text(3)).await.unwrap();
    log.skip(1);
    log.heal(1);
    settle().await;
    let draining = two.drain(tidings::Drain::new().deadline(Duration::from_secs(5)));
    let reading = async {
        let mut seen = Vec::new();
        while let Some(Message::Event(event)) = next_message(&mut subscription).await {
            seen.push(event.cursor());
        }
        drop(subscription);
        seen
    };
    let (drained, seen) = tokio::join!(draining, reading);
    assert_eq!(seen.iter().map(|cursor: &Cursor| cursor.position()).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(drained.remaining, 0);
}

#[tokio::test]
async fn a_store_that_nodes_share_is_followed_in_a_runtime() {
    let log = Log::new();
    let node = log.node();
    let outside = std::thread::spawn(move || Hub::builder().open(node).now_or_never().map(|opened| opened.is_err()));
    assert_eq!(outside.join().unwrap(), Some(true));
    assert!(open(&log).await.stats().feed.is_some());
    assert!(Hub::new().stats().feed.is_none());
}
