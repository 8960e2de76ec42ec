//! Commits whose answer does not come.

use crate::{
    DEADLINE, PostgresStore, TOPIC, append, both_kinds, held, next, open,
    proxy::{Fate, Proxy},
    server::Postgres,
};
use std::collections::BTreeSet;
use tidings::{
    Event, Hub,
    replay::{Read, ReadFrom, ReplayStore as _},
};
use tokio::time::timeout;

async fn behind_a_proxy(server: &Postgres) -> (Proxy, PostgresStore) {
    let proxy = Proxy::to(server.socket()).await;
    let store = open(proxy.config()).await;
    append(&store, 0).await.unwrap();
    (proxy, store)
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_to_be_one() {
    let server = Postgres::start();
    let (proxy, store) = behind_a_proxy(&server).await;
    proxy.next_commit(Fate::Unanswered);
    let cursor = append(&store, 1).await.unwrap();
    assert_eq!(proxy.commits(), 1);
    assert_eq!(store.head().await.unwrap(), cursor);
    assert_eq!(held(&store).await, [0, 1]);
}

#[tokio::test]
async fn a_commit_that_never_arrives_is_found_to_be_none() {
    let server = Postgres::start();
    let (proxy, store) = behind_a_proxy(&server).await;
    proxy.next_commit(Fate::Lost);
    let error = append(&store, 1).await.unwrap_err();
    assert_eq!(proxy.commits(), 1);
    assert!(!error.is_unknown(), "{error:?}");
    assert_eq!(held(&store).await, [0]);
}

#[tokio::test]
async fn what_a_read_did_not_find_is_not_committed_later() {
    let server = Postgres::start();
    let (proxy, store) = behind_a_proxy(&server).await;
    proxy.next_commit(Fate::Held);
    let error = append(&store, 1).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    // As long as nobody can see to it, there is no answer.
    store.read(Read::new(TOPIC, ReadFrom::Earliest)).await.unwrap_err();
    assert!(!append(&store, 2).await.unwrap_err().is_unknown());

    proxy.open();
    assert_eq!(held(&store).await, [0]);
    // The server gets its commit now, and does not take it.
    proxy.release().await;
    assert_eq!(held(&store).await, [0]);
    append(&store, 3).await.unwrap();
    assert_eq!(held(&store).await, [0, 3]);
}

#[tokio::test]
async fn what_was_committed_meanwhile_is_read() {
    let server = Postgres::start();
    let (proxy, store) = behind_a_proxy(&server).await;
    proxy.next_commit(Fate::Held);
    assert!(append(&store, 1).await.unwrap_err().is_unknown());
    proxy.release().await;
    proxy.open();
    assert_eq!(held(&store).await, [0, 1]);
}

async fn publish(hub: &Hub, number: u32) -> Result<(), tidings::PublishError> {
    hub.publish(TOPIC, Event::new().data(number.to_string())).await.map(drop)
}

/// Publishes until it is taken; whatever was refused was not stored.
async fn publish_again_and_again(hub: &Hub, number: u32) {
    let published = async {
        while let Err(error) = publish(hub, number).await {
            assert!(!error.is_unknown(), "{error:?}");
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, published).await.expect("it should be taken");
}

#[tokio::test]
async fn a_hub_goes_on_with_every_event_once_whatever_became_of_a_commit() {
    let server = Postgres::start();
    let proxy = Proxy::to(server.socket()).await;
    for hub in both_kinds(&proxy.config()).await {
        let mut subscription = hub.subscribe(TOPIC);
        let mut expected = Vec::new();
        for (n, fate) in [Fate::Passes, Fate::Unanswered, Fate::Lost, Fate::Held, Fate::Held].into_iter().enumerate() {
            let number = u32::try_from(n).unwrap() * 2;
            proxy.next_commit(fate);
            let stored = match publish(&hub, number).await {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error.is_unknown(), fate == Fate::Held, "{fate:?}: {error:?}");
                    // Of the last one the server hears, of the one before not in time.
                    let commits = n == 4;
                    if fate == Fate::Held && commits {
                        proxy.release().await;
                    }
                    proxy.open();
                    commits
                }
            };
            assert_eq!(stored, [true, true, false, false, true][n], "{fate:?}");
            publish_again_and_again(&hub, number + 1).await;
            expected.extend(stored.then_some(number));
            expected.push(number + 1);
            if fate == Fate::Held && !stored {
                proxy.release().await;
            }
        }
        for number in expected {
            assert_eq!(next(&mut subscription).await, Some(number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_that_are_ended_lose_and_repeat_nothing() {
    const EVENTS: u32 = 300;
    let server = Postgres::start();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    for hub in both_kinds(&server.config()).await {
        let operator = server.connect().await;
        // A subscription whose store cannot be read ends; so this one has the window, and the log is read at the end.
        let subscription = hub.subscribe(TOPIC);
        let start = subscription.cursor().unwrap();
        let publisher = tokio::spawn({
            let hub = hub.clone();
            async move {
                let (mut stored, mut unknown) = (Vec::new(), BTreeSet::new());
                for number in 0..EVENTS {
                    match publish(&hub, number).await {
                        Ok(()) => stored.push(number),
                        Err(error) => drop(error.is_unknown().then(|| unknown.insert(number))),
                    }
                }
                (stored, unknown)
            }
        });
        while !publisher.is_finished() {
            operator.query_one(kill, &[]).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let (stored, unknown) = publisher.await.unwrap();
        assert!(!stored.is_empty());
        publish_again_and_again(&hub, EVENTS).await;
        for mut reader in [subscription, hub.subscribe(TOPIC).resume(start)] {
            let mut seen = Vec::new();
            loop {
                let number = next(&mut reader).await.expect("there is no gap");
                if number == EVENTS {
                    break;
                }
                seen.push(number);
            }
            assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
            let sure: Vec<_> = seen.iter().copied().filter(|number| !unknown.contains(number)).collect();
            assert_eq!(sure, stored.iter().copied().filter(|n| !unknown.contains(n)).collect::<Vec<_>>());
        }
    }
}
