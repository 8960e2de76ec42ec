//! What becomes of a subscription after a gap: it goes on, gets a snapshot, or ends. And snapshots as a beginning.

use futures_util::{StreamExt, future::poll_immediate};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tidings::{
    EndReason, Event, EventType, GapPolicy, GapReason, Hub, LagBudget, Message, Snapshots, Start, Subscription, Topic,
    Topics,
    replay::Ring,
    test_util::{EventReader, evict, foreign_id, next_event, next_message},
};
use tokio::{sync::Semaphore, time::Instant};

const T: Topic = Topic::from_static("t");
const STATE: EventType = EventType::from_static("state");

fn event(text: impl Into<String>) -> Event {
    Event::new().data(text.into())
}

/// Says which run made it.
fn counted(runs: &Arc<AtomicUsize>) -> Snapshots {
    let runs = Arc::clone(runs);
    Snapshots::new(move |_: Topics| {
        let run = runs.fetch_add(1, Ordering::Relaxed);
        async move { Ok::<_, std::io::Error>(vec![Event::new().event_type(STATE).data(format!("run {run}"))]) }
    })
}

/// Each run waits for a permit.
fn held(gate: &Arc<Semaphore>, running: &Arc<AtomicUsize>) -> Snapshots {
    let (gate, running) = (Arc::clone(gate), Arc::clone(running));
    Snapshots::new(move |_: Topics| {
        let (gate, running) = (Arc::clone(&gate), Arc::clone(&running));
        async move {
            running.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await.unwrap().forget();
            Ok::<_, std::io::Error>(vec![event("state")])
        }
    })
}

#[expect(clippy::needless_pass_by_value, reason = "of what was just awaited")]
fn is_snapshot(message: Option<Message>) -> bool {
    matches!(message, Some(Message::Snapshot(_)))
}

fn gap(message: Option<Message>) -> GapReason {
    match message {
        Some(Message::Gap(gap)) => gap.reason,
        other => panic!("expected a gap, not {other:?}"),
    }
}

async fn data(subscription: &mut Subscription) -> String {
    next_event(subscription).await.record().data().unwrap().into_owned()
}

#[tokio::test]
async fn end_tells_the_gap_and_gives_an_id_that_does_not_loop() {
    let hub = Hub::builder().on_gap(GapPolicy::End).announce_ends().build();
    let tip = hub.publish(T, event("1")).await.unwrap();
    let response = hub.subscribe(T).resume(foreign_id()).into_http_response();
    assert_eq!(response.headers()["tidings-gap"], "foreign");
    let mut reader = EventReader::new(response.into_body());
    assert_eq!(reader.next().await.unwrap().event_type, "tidings-gap");
    assert_eq!(reader.next().await.unwrap().data, r#"{"reason":"gap"}"#);
    assert_eq!(reader.next().await, None);
    assert_eq!(reader.last_event_id(), tip.to_string());
    let mut back = hub.subscribe(T).resume(reader.last_event_id());
    hub.publish(T, event("2")).await.unwrap();
    assert_eq!(data(&mut back).await, "2");
}

#[tokio::test]
async fn end_is_for_live_subscriptions_that_fall_off_the_log_too() {
    let hub = Hub::builder().window_events(1).ring(Ring::new().events_per_topic(2)).build();
    let mut slow = hub.subscribe(T).on_gap(GapPolicy::End);
    for n in 0..5 {
        hub.publish(T, event(n.to_string())).await.unwrap();
    }
    assert_eq!(gap(next_message(&mut slow).await), GapReason::Evicted);
    assert!(slow.next().await.is_none());
    assert_eq!(slow.end_reason(), Some(EndReason::Gap));
    let mut back = hub.subscribe(T).resume(slow.cursor());
    assert_eq!(data(&mut back).await, "3", "what is held is not skipped");
}

#[tokio::test]
async fn a_snapshot_follows_the_gap_and_then_what_came_after_it_was_asked_for() {
    let runs = Arc::default();
    let hub = Hub::builder().on_gap(GapPolicy::Snapshot(counted(&runs))).build();
    hub.publish(T, event("before")).await.unwrap();
    evict(&hub);
    let tip = hub.publish(T, event("in the snapshot")).await.unwrap();
    let response = hub.subscribe(T).resume(foreign_id()).into_http_response();
    assert_eq!(response.headers()["tidings-gap"], "foreign");
    let mut reader = EventReader::new(response.into_body());
    let report = reader.next().await.unwrap();
    assert_eq!((report.event_type.as_str(), report.last_event_id.as_str()), ("tidings-gap", ""));
    let state = reader.next().await.unwrap();
    assert_eq!((state.event_type.as_str(), state.data.as_str()), ("state", "run 0"));
    assert_eq!(state.last_event_id, "", "the id comes after the last event of the snapshot");
    let next = hub.publish(T, event("after")).await.unwrap();
    let after = reader.next().await.unwrap();
    assert_eq!((after.data.as_str(), after.last_event_id), ("after", next.to_string()));
    assert_ne!(tip, next);
}

#[tokio::test]
async fn what_is_published_while_the_snapshot_is_made_is_not_lost() {
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::default());
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T).snapshot_first(&held(&gate, &running));
    assert!(poll_immediate(subscription.next()).await.is_none());
    assert_eq!(subscription.cursor(), None, "there is no place to resume from yet");
    hub.publish(T, event("meanwhile")).await.unwrap();
    gate.add_permits(1);
    assert!(is_snapshot(next_message(&mut subscription).await));
    assert_eq!(data(&mut subscription).await, "meanwhile");
}

#[tokio::test]
async fn a_fresh_subscription_may_begin_with_a_snapshot_and_one_with_an_id_does_not() {
    let runs = Arc::default();
    let snapshots = counted(&runs);
    let hub = Hub::new();
    let id = hub.publish(T, event("1")).await.unwrap();
    let mut fresh = EventReader::new(hub.subscribe(T).snapshot_first(&snapshots).into_http_response().into_body());
    assert_eq!(fresh.next().await.unwrap().event_type, "state");
    hub.publish(T, event("2")).await.unwrap();
    assert_eq!(fresh.next().await.unwrap().data, "2");
    let mut back = hub.subscribe(T).snapshot_first(&snapshots).resume(id);
    assert_eq!(data(&mut back).await, "2");
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn snapshots_of_the_same_topics_are_made_once_for_all_who_ask_at_the_same_time() {
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let snapshots = held(&gate, &running);
    let hub = Hub::new();
    let mut all: Vec<_> = (0..100).map(|_| hub.subscribe(T).snapshot_first(&snapshots)).collect();
    for subscription in &mut all {
        assert!(poll_immediate(subscription.next()).await.is_none());
    }
    assert_eq!(running.load(Ordering::Relaxed), 1);
    // The one who runs it goes away: another takes over, also for those who come now.
    drop(all.remove(0));
    all.push(hub.subscribe(T).snapshot_first(&snapshots));
    assert!(poll_immediate(all[99].next()).await.is_none());
    gate.add_permits(1);
    let got = all.iter_mut().map(|subscription| async { is_snapshot(next_message(subscription).await) });
    assert!(futures_util::future::join_all(got).await.into_iter().all(|got| got));
    assert_eq!(running.load(Ordering::Relaxed), 2);
    assert!(format!("{snapshots:?}").contains("running: 0"), "{snapshots:?}");
    // The next to ask gets a new one.
    gate.add_permits(1);
    assert!(is_snapshot(next_message(&mut hub.subscribe(T).snapshot_first(&snapshots)).await));
    assert_eq!(running.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_snapshot_that_nobody_waits_for_any_more_leaves_nothing_behind() {
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::default());
    let snapshots = held(&gate, &running);
    let hub = Hub::new();
    let mut both = [(); 2].map(|()| hub.subscribe(T).snapshot_first(&snapshots));
    for subscription in &mut both {
        assert!(poll_immediate(subscription.next()).await.is_none());
    }
    assert!(format!("{snapshots:?}").contains("running: 1"), "{snapshots:?}");
    drop(both);
    assert!(format!("{snapshots:?}").contains("running: 0"), "{snapshots:?}");
}

#[tokio::test]
async fn so_many_run_at_once_and_no_more() {
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let snapshots = held(&gate, &running).concurrency(3);
    let hub = Hub::new();
    let topics = (0..10).map(|n| Topic::new(n.to_string()).unwrap());
    let mut all: Vec<_> = topics.map(|topic| hub.subscribe(topic).snapshot_first(&snapshots)).collect();
    for subscription in &mut all {
        assert!(poll_immediate(subscription.next()).await.is_none());
    }
    assert_eq!(running.load(Ordering::Relaxed), 3);
    gate.add_permits(10);
    let got = all.iter_mut().map(|subscription| async { is_snapshot(next_message(subscription).await) });
    assert!(futures_util::future::join_all(got).await.into_iter().all(|got| got));
    assert_eq!(running.load(Ordering::Relaxed), 10);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_takes_too_long_fails_the_stream_with_an_unmoved_id() {
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::default());
    let snapshots = held(&gate, &running).timeout(Duration::from_secs(3));
    let hub = Hub::builder().on_gap(GapPolicy::Snapshot(snapshots)).retry(Duration::from_secs(8)).build();
    let start = Instant::now();
    let mut reader = EventReader::new(hub.subscribe(T).resume(foreign_id()).into_http_response().into_body());
    assert_eq!(reader.next().await.unwrap().event_type, "tidings-gap");
    let error = reader.try_next().await.unwrap_err();
    assert!(error.is_snapshot() && std::error::Error::source(&error).unwrap().to_string().contains("3s"));
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(reader.last_event_id(), "", "the client is told of the gap again");
    assert!((4_000..=12_000).contains(&reader.retry_ms().unwrap()));
}

#[tokio::test]
async fn a_snapshot_that_fails_fails_all_who_wait_for_it_and_the_next_one_is_made_anew() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let snapshots = Snapshots::new(move |_| {
        let run = counter.fetch_add(1, Ordering::Relaxed);
        async move { if run == 0 { Err("no database") } else { Ok(vec![event("state")]) } }
    });
    let hub = Hub::new();
    let mut first = hub.subscribe(T).snapshot_first(&snapshots);
    let error = first.next().await.unwrap().unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no database");
    assert!(first.next().await.is_none());
    assert!(is_snapshot(next_message(&mut hub.subscribe(T).snapshot_first(&snapshots)).await));
}

#[tokio::test]
async fn a_snapshot_of_a_finished_topic_is_followed_by_the_end() {
    let runs = Arc::default();
    let hub = Hub::new();
    hub.publish(T, event("1")).await.unwrap();
    hub.finish(T, None).await.unwrap();
    let mut late = hub.subscribe(T).snapshot_first(&counted(&runs));
    assert!(is_snapshot(next_message(&mut late).await));
    assert!(next_message(&mut late).await.is_none());
    assert_eq!(late.end_reason(), Some(EndReason::Finished));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_go_on_while_a_snapshot_is_made() {
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::default());
    let snapshots = held(&gate, &running).timeout(Duration::from_secs(3600));
    let hub = Hub::new();
    for _ in 0..2 {
        let mut reader = EventReader::new(hub.subscribe(T).snapshot_first(&snapshots).into_http_response().into_body());
        let waiting = tokio::time::timeout(Duration::from_secs(100), reader.next()).await;
        assert!(waiting.is_err());
        assert_eq!((reader.comments().len(), reader.last_event_id()), (6, ""));
        // The same where the log is known and the subscription would have everything.
        hub.publish(T, event("before")).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_snapshot_shows_is_not_sent_again() {
    let runs = Arc::default();
    let ring = Ring::new().events_per_topic(3);
    let hub = Hub::builder().window_events(1).ring(ring).on_gap(GapPolicy::Snapshot(counted(&runs))).build();
    let old = hub.publish(T, event("old")).await.unwrap();
    for n in 0..9 {
        hub.publish(T, event(n.to_string())).await.unwrap();
    }
    let mut back = hub.subscribe(T).resume(old);
    let mut fresh = hub.subscribe(T).snapshot_first(&counted(&runs));
    hub.publish(T, event("before the snapshot")).await.unwrap();
    assert_eq!(gap(next_message(&mut back).await), GapReason::Evicted);
    for subscription in [&mut back, &mut fresh] {
        assert!(is_snapshot(next_message(subscription).await));
    }
    hub.publish(T, event("after")).await.unwrap();
    for subscription in [&mut back, &mut fresh] {
        assert_eq!(data(subscription).await, "after");
    }
}

#[tokio::test(start_paused = true)]
async fn the_id_of_a_snapshot_is_sent_once() {
    let hub = Hub::new();
    hub.publish(T, event("before")).await.unwrap();
    let subscription = hub.subscribe(T).snapshot_first(&counted(&Arc::default()));
    let mut reader = EventReader::new(subscription.into_http_response().into_body());
    assert_eq!(reader.next().await.unwrap().event_type, "state");
    assert!(tokio::time::timeout(Duration::from_secs(100), reader.next()).await.is_err());
    assert_eq!(reader.comments().len(), 6, "heartbeats have nothing to tell");
}

#[tokio::test]
async fn what_comes_while_a_snapshot_is_made_is_no_lag_and_what_comes_after_it_is() {
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::default());
    let hub = Hub::builder().lag_budget(LagBudget::new().events(10)).build();
    let mut subscription = hub.subscribe(T).snapshot_first(&held(&gate, &running));
    assert!(poll_immediate(subscription.next()).await.is_none());
    for n in 0..20 {
        hub.publish(T, event(n.to_string())).await.unwrap();
    }
    gate.add_permits(1);
    assert!(is_snapshot(next_message(&mut subscription).await));
    for n in 0..20 {
        assert_eq!(data(&mut subscription).await, n.to_string());
    }
    for n in 0..20 {
        hub.publish(T, event(n.to_string())).await.unwrap();
    }
    assert!(next_message(&mut subscription).await.is_none());
    assert_eq!(subscription.end_reason(), Some(EndReason::Lagged));
}

#[tokio::test]
async fn who_ended_because_of_a_bad_id_comes_back_to_where_it_was_to_start() {
    for bad in ["nonsense".to_owned(), foreign_id().to_string()] {
        let hub = Hub::new();
        for n in 0..5 {
            hub.publish(T, event(n.to_string())).await.unwrap();
        }
        let ended = hub.subscribe(T).start(Start::Earliest).on_gap(GapPolicy::End).resume(bad.as_str());
        let mut ended = ended.opened().await.unwrap();
        gap(next_message(&mut ended).await);
        assert!(next_message(&mut ended).await.is_none());
        let mut back = hub.subscribe(T).resume(ended.cursor());
        for n in 0..5 {
            assert_eq!(data(&mut back).await, n.to_string());
        }
    }
}
