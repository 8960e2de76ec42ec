//! Hubs on one log.

use crate::{A, DEADLINE, fresh, open, support::redis::Redis};
use std::time::Duration;
use tidings::{Event, Hub, Message, test_util::next_message};
use tokio::{task::JoinSet, time::timeout};

/// Clients are cut again and again, and come back to another node with their last id; the channel is cut as well.
#[tokio::test(flavor = "multi_thread")]
async fn clients_who_move_between_nodes_have_every_event_once_and_in_one_order() {
    const EVENTS: usize = 600;
    let redis = Redis::start().await;
    let name = fresh();
    let mut hubs = Vec::new();
    for window in [1024, 20, 100] {
        hubs.push(Hub::builder().window_events(window).open(open(&redis, &name).await).await.unwrap());
    }
    let start = hubs[0].subscribe(A).cursor().unwrap();
    let mut publishers = JoinSet::new();
    for n in 0..6 {
        let hub = hubs[n % 3].clone();
        publishers.spawn(async move {
            for event in 0..EVENTS / 6 {
                hub.publish(A, Event::new().data(format!("{n}.{event}"))).await.unwrap();
            }
        });
    }
    let mut clients = JoinSet::new();
    for n in 0..10 {
        let hubs = hubs.clone();
        clients.spawn(async move {
            let (mut seen, mut at) = (Vec::new(), start);
            for round in n.. {
                let mut subscription = hubs[round % 3].subscribe(A).resume(at);
                for _ in 0..=fastrand::usize(..40) {
                    match timeout(DEADLINE, next_message(&mut subscription)).await.unwrap().unwrap() {
                        Message::Event(event) => {
                            at = event.cursor();
                            seen.push((at, event.record().data().unwrap().into_owned()));
                        }
                        other => panic!("{other:?}"),
                    }
                    if seen.len() == EVENTS {
                        return seen;
                    }
                }
            }
            seen
        });
    }
    for _ in 0..5 {
        let _: i64 = redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    publishers.join_all().await;
    let seen = clients.join_all().await;
    assert!(seen.iter().all(|events| *events == seen[0]));
}
