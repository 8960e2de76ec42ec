//! Subscriptions as others see them, under code that panics, drops and comes at the worst moment.

use futures_util::{FutureExt as _, StreamExt as _};
use http_body::Body;
use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};
use tidings::{
    Drain, EndReason, Event, Hub, Limit, Message, Snapshots, Topic,
    test_util::{EventReader, Fault, FaultyStore},
};
use tokio::time::{sleep, timeout};

const T: Topic = Topic::from_static("t");

#[derive(Default)]
struct Count(AtomicUsize);
impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_one_that_never_was_there_hears_that_it_left() {
    let hub = Hub::new();
    let subscription = hub.subscribe(T);
    let owner = subscription.subscriber();
    drop(subscription);
    assert!(timeout(Duration::from_secs(3600), owner.left()).await.is_ok(), "left() never resolves");
}

#[tokio::test(start_paused = true)]
async fn one_turned_away_by_a_limit_has_left() {
    let hub = Hub::builder().max_subscriptions(0).build();
    let subscription = hub.subscribe(T);
    let owner = subscription.subscriber();
    let response = subscription.into_http_response();
    let mut reader = EventReader::new(response.into_body());
    assert!(reader.next().await.is_none());
    drop(reader);
    assert!(timeout(Duration::from_secs(3600), owner.left()).await.is_ok(), "left() never resolves");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_is_not_ended_again() {
    let hub = Hub::new();
    let subscription = hub.subscribe(T);
    let owner = subscription.subscriber();
    drop(subscription);
    assert!(!owner.end(EndReason::Closed), "it says that it was still there");
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_an_empty_log_does_not_spin_who_waits_for_a_snapshot() {
    let hub = Hub::new();
    let snapshots = Snapshots::new(|_| async {
        std::future::pending::<()>().await;
        Ok::<_, std::convert::Infallible>(vec![])
    });
    let mut body = Box::pin(hub.subscribe(T).snapshot_first(&snapshots).into_http_response().into_body());
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut cx = Context::from_waker(&waker);
    while body.as_mut().poll_frame(&mut cx).is_ready() {}
    let drain = hub.drain(Drain::new().grace(Duration::ZERO).deadline(Duration::from_secs(5)));
    let mut drain = pin!(drain);
    assert!(drain.as_mut().now_or_never().is_none());
    let before = count.0.load(Ordering::SeqCst);
    for _ in 0..100 {
        assert!(body.as_mut().poll_frame(&mut cx).is_pending());
    }
    let woken = count.0.load(Ordering::SeqCst) - before;
    assert!(woken <= 1, "it woke itself {woken} times in 100 polls");
}

#[tokio::test(start_paused = true)]
async fn one_whose_task_had_no_budget_left_expires_all_the_same() {
    let hub = Hub::builder().announce_ends().build();
    let mut subscription = hub.subscribe(T).expires_in(Duration::from_secs(60));
    let task = tokio::spawn(async move {
        let mut first = true;
        poll_fn(|cx| {
            if std::mem::take(&mut first) {
                while tokio::task::coop::has_budget_remaining() {
                    let _ = pin!(tokio::task::coop::consume_budget()).poll(cx);
                }
            }
            Pin::new(&mut subscription).poll_next_unpin(cx)
        })
        .await
        .is_none()
    });
    assert!(timeout(Duration::from_secs(3600), task).await.is_ok(), "it has not expired after an hour");
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_event_before_a_drain_is_delivered() {
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T);
    assert!(subscription.next().now_or_never().is_none());
    hub.publish_ephemeral(T, Event::new().data("typing")).unwrap();
    let hub_too = hub.clone();
    tokio::spawn(async move { hub_too.drain(Drain::new().grace(Duration::ZERO)).await });
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(subscription.next().await, Some(Ok(Message::Event(_)))), "lost by drain");
}
#[tokio::test(start_paused = true)]
async fn an_ephemeral_event_before_a_close_is_delivered() {
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T);
    assert!(subscription.next().now_or_never().is_none());
    hub.publish_ephemeral(T, Event::new().data("typing")).unwrap();
    hub.close();
    assert!(matches!(subscription.next().await, Some(Ok(Message::Event(_)))), "lost by close");
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_in_the_middle_of_a_poll_is_answered() {
    let hub = Hub::builder().client_heartbeats(Duration::from_secs(30)).keep_alive(tidings::KeepAlive::off()).build();
    let token = Arc::new(std::sync::OnceLock::<String>::new());
    let (hub_too, token_too) = (hub.clone(), Arc::clone(&token));
    let subscription = hub.subscribe(T).filter(move |_| {
        // As another thread would, at this moment.
        if let Some(token) = token_too.get() {
            assert!(hub_too.heartbeat(token));
        }
        false
    });
    let mut reader = EventReader::new(subscription.into_http_response().into_body());
    let session: serde_json::Value = serde_json::from_str(&reader.next().await.unwrap().data).unwrap();
    let task = tokio::spawn(async move { reader.next().await });
    sleep(Duration::from_millis(1)).await;
    token.set(session["token"].as_str().unwrap().to_owned()).unwrap();
    hub.publish(T, Event::new().data("1")).await.unwrap();
    let pong = timeout(Duration::from_secs(20), task).await;
    assert!(pong.is_ok(), "no pong after 20 s");
    assert_eq!(pong.unwrap().unwrap().unwrap().event_type, "tidings-pong");
}

#[tokio::test(start_paused = true)]
async fn a_limit_given_twice_does_not_end_the_one_that_has_it() {
    let hub = Hub::new();
    let limit = Limit::per("ada", 1);
    let mut one = hub.subscribe(T).limit(limit.clone()).limit(limit);
    assert!(one.next().now_or_never().is_none(), "{:?}", one.end_reason());
}
#[tokio::test(start_paused = true)]
async fn nobody_is_replaced_without_newest_wins() {
    let hub = Hub::new();
    // A user's name, and an address, which one client has made the same.
    let user = |hub: &Hub| hub.subscribe(T).limit(Limit::per("ada", 2));
    let mut one = user(&hub);
    assert!(one.next().now_or_never().is_none());
    let mut two = hub.subscribe(T).limit(Limit::per("ada", 2)).limit(Limit::per("ada", 2));
    let _ = two.next().now_or_never();
    assert!(one.next().now_or_never().is_none(), "{:?}", one.end_reason());
}
#[tokio::test(start_paused = true)]
async fn no_more_are_replaced_than_have_to_be() {
    let hub = Hub::new();
    let subscribe = |user: &str| {
        hub.subscribe(T)
            .limit(Limit::per(format!("user {user}"), 1).newest_wins())
            .limit(Limit::per("address", 2).newest_wins())
    };
    let mut bob = subscribe("bob");
    let mut ada = subscribe("ada");
    assert!(bob.next().now_or_never().is_none());
    assert!(ada.next().now_or_never().is_none());
    let mut ada2 = subscribe("ada");
    assert!(ada2.next().now_or_never().is_none());
    assert!(matches!(ada.next().now_or_never(), Some(None)));
    assert!(bob.next().now_or_never().is_none(), "bob had to go though ada's place was free: {:?}", bob.end_reason());
}

struct Panics;
impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker");
    }
}
#[tokio::test(start_paused = true)]
async fn one_that_came_while_a_watchers_waker_panicked_leaves() {
    let hub = Hub::new();
    let mut changes = hub.presence(T).changes();
    let waker = Waker::from(Arc::new(Panics));
    assert!(changes.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
    let mut subscription = hub.subscribe(T);
    let _ = catch_unwind(AssertUnwindSafe(|| subscription.next().now_or_never().is_none()));
    drop(subscription);
    let mut seen = Vec::new();
    while let Some(Some(change)) = changes.next().now_or_never() {
        seen.push(change);
    }
    assert_eq!((hub.stats().subscriptions, seen.len() % 2), (0, 0), "{seen:?}");
}
#[tokio::test(start_paused = true)]
async fn one_that_left_while_a_watchers_waker_panicked_has_left() {
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T);
    let owner = subscription.subscriber();
    assert!(subscription.next().now_or_never().is_none());
    let mut changes = hub.presence(T).changes();
    let _ = changes.next().await;
    let waker = Waker::from(Arc::new(Panics));
    assert!(changes.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
    let _ = catch_unwind(AssertUnwindSafe(|| drop(subscription)));
    assert!(timeout(Duration::from_secs(60), owner.left()).await.is_ok(), "left() never resolves");
}

#[tokio::test(start_paused = true)]
async fn who_no_longer_waits_for_one_to_leave_is_forgotten() {
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T);
    let owner = subscription.subscriber();
    assert!(subscription.next().now_or_never().is_none());
    let wakers: Vec<_> = (0..1000).map(|_| Arc::new(Count::default())).collect();
    for count in &wakers {
        let waker = Waker::from(Arc::clone(count));
        let left = pin!(owner.left());
        assert!(left.poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let kept = wakers.iter().filter(|count| Arc::strong_count(count) > 1).count();
    assert!(kept <= 1, "{kept} wakers are kept of futures that were dropped");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_the_store_is_behind() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().window_events(1).open(store).await.unwrap();
    let mut subscription = hub.subscribe(T);
    assert!(subscription.next().now_or_never().is_none());
    for n in 0..50 {
        hub.publish(T, Event::new().data(n.to_string())).await.unwrap();
    }
    assert_eq!(hub.stats().lag.max, 50);
    faults.next_read(Fault::Hangs);
    assert!(subscription.next().now_or_never().is_none());
    assert_eq!(hub.stats().lag.max, 50, "it has had nothing of them");
}

#[tokio::test(start_paused = true)]
async fn changes_end_with_the_hub() {
    let hub = Hub::new();
    let presence = hub.presence(T);
    let mut changes = presence.changes();
    drop(hub);
    assert_eq!(timeout(Duration::from_secs(60), changes.next()).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_come_after_a_burst() {
    let (sender, receiver) = tokio::sync::mpsc::channel(1000);
    for n in 0..200 {
        sender.send(Event::new().data(n.to_string())).await.unwrap();
    }
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>);
    let mut body = Box::pin(tidings::Sse::new(stream).into_http_response().into_body());
    let task = tokio::spawn(async move {
        loop {
            let frame = poll_fn(|cx| body.as_mut().poll_frame(cx)).await.unwrap().unwrap().into_data().unwrap();
            if frame.starts_with(b":") {
                return;
            }
        }
    });
    assert!(timeout(Duration::from_secs(3600), task).await.is_ok(), "no heartbeat within an hour");
    drop(sender);
}
