//! Who is there: a count, a list, who comes and who goes, and that everybody who came goes once, however that happens.

use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use http::Request;
use std::{sync::Arc, time::Duration};
use tidings::{
    EndReason, Event, Hub, LagBudget, LeaveReason, Limit, Lost, Peer, PresenceChange, Subscriber, Subscription, Topic,
    replay::Cursor,
    test_util::{EventReader, Fault, FaultyStore},
};
use tower_service::Service;

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");
const BYE: EndReason = EndReason::application("bye");

/// What has changed, and nothing that is still to come.
fn changes(watching: &mut BoxStream<'static, PresenceChange>) -> Vec<PresenceChange> {
    std::iter::from_fn(|| watching.next().now_or_never().flatten()).collect()
}

fn watch(hub: &Hub, topic: Topic) -> BoxStream<'static, PresenceChange> {
    hub.presence(topic).changes().boxed()
}

fn left(change: &PresenceChange) -> (Subscriber, LeaveReason, Option<Cursor>) {
    match change {
        PresenceChange::Left { subscriber, reason, last } => (subscriber.clone(), *reason, *last),
        other => panic!("expected somebody to leave, but there is {other:?}"),
    }
}

fn joined(change: &PresenceChange) -> Subscriber {
    match change {
        PresenceChange::Joined(subscriber) => subscriber.clone(),
        other => panic!("expected somebody to join, but there is {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_there_once_it_is_served_and_gone_once_it_is_dropped() {
    let hub = Hub::new();
    let mut watching = watch(&hub, T);
    let subscription = hub.subscribe(T).label("user", "ada").label("device", "phone");
    assert_eq!((hub.presence(T).count(), changes(&mut watching)), (0, vec![]), "it is not served yet");

    let response = subscription.into_http_response();
    let ada = joined(&changes(&mut watching)[0]);
    assert_eq!((ada.label("user"), ada.label("device"), ada.label("name")), (Some("ada"), Some("phone"), None));
    assert_eq!(hub.presence(T).subscribers(), std::slice::from_ref(&ada));
    assert_eq!(hub.subscribers(), std::slice::from_ref(&ada));
    assert_eq!((hub.presence(T).count(), hub.presence(U).count()), (1, 0));
    assert!(ada.follows(&T) && !ada.follows(&U) && ada.since().is_some());

    let mut reader = EventReader::new(response.into_body());
    let id = hub.publish(T, Event::new().data("1")).await.unwrap();
    reader.next().await.unwrap();
    drop(reader);
    let gone = left(&changes(&mut watching)[0]);
    assert_eq!(gone, (ada.clone(), LeaveReason::Disconnected, Some(id)), "with the last id that was handed over");
    assert_eq!(hub.presence(T).count(), 0);
    assert_eq!(ada.left().await, (LeaveReason::Disconnected, Some(id)), "also for who asks later");
}

#[tokio::test(start_paused = true)]
async fn who_watches_later_begins_with_those_who_are_there() {
    let hub = Hub::new();
    let (one, two) = (hub.subscribe(T).into_http_response(), hub.subscribe(T).into_http_response());
    let mut watching = watch(&hub, T);
    assert_eq!(changes(&mut watching).iter().map(joined).count(), 2);
    drop(one);
    drop(two);
    assert_eq!(changes(&mut watching).iter().map(left).count(), 2);
    drop(hub);
    assert_eq!(watching.next().await, None, "it ends with the hub");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_of_several_topics_is_there_in_each() {
    let hub = Hub::new();
    let (mut t, mut u) = (watch(&hub, T), watch(&hub, U));
    let both = hub.subscribe(tidings::Topics::new([T, U]).unwrap()).into_http_response();
    assert_eq!(joined(&changes(&mut t)[0]), joined(&changes(&mut u)[0]));
    drop(both);
    assert_eq!((changes(&mut t).len(), changes(&mut u).len()), (1, 1));
}

/// A subscription that is read as a stream, or as a body, until its end.
async fn read_to_its_end(hub: &Hub, subscription: Subscription, as_body: bool) {
    if as_body {
        let mut reader = EventReader::new(subscription.into_http_response().into_body());
        while let Ok(Some(_)) = reader.try_next().await {}
    } else {
        let mut subscription = subscription;
        while let Some(Ok(_)) = subscription.next().await {}
        // It has left though it is still held.
        assert_eq!(hub.presence(T).count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn every_way_to_go_has_its_reason_and_comes_once() {
    for as_body in [false, true] {
        let hub = Hub::builder().lag_budget(LagBudget::new().events(2)).build();
        // What comes before the topic is known is read from the log, and does not count as lag.
        hub.publish(T, Event::new().data("known")).await.unwrap();
        let mut watching = watch(&hub, T);
        let mut reasons = |what: &str| match &changes(&mut watching)[..] {
            [come, go] => {
                assert_eq!(joined(come), left(go).0, "{what}");
                left(go).1
            }
            other => panic!("{what}: {other:?}"),
        };

        read_to_its_end(&hub, hub.subscribe(T).expires_in(Duration::from_secs(3)), as_body).await;
        assert_eq!(reasons("expired"), LeaveReason::Ended(EndReason::Expired));

        let subscription = hub.subscribe(T);
        for n in 0..3 {
            hub.publish(T, Event::new().data(n.to_string())).await.unwrap();
        }
        read_to_its_end(&hub, subscription, as_body).await;
        assert_eq!(reasons("lagged"), LeaveReason::Ended(EndReason::Lagged));

        let subscription = hub.subscribe(T);
        hub.finish(T, None).await.unwrap();
        read_to_its_end(&hub, subscription, as_body).await;
        assert_eq!(reasons("finished"), LeaveReason::Ended(EndReason::Finished));
        hub.forget(T).await.unwrap();

        let subscription = hub.subscribe(T);
        assert!(subscription.subscriber().end(BYE), "also before it is served");
        read_to_its_end(&hub, subscription, as_body).await;
        assert_eq!(reasons("told"), LeaveReason::Ended(BYE));

        let subscription = hub.subscribe(T);
        hub.close();
        read_to_its_end(&hub, subscription, as_body).await;
        assert_eq!(reasons("closed"), LeaveReason::Ended(EndReason::Closed));
        assert_eq!(hub.stats().left.total(), 5);
        assert_eq!(hub.stats().opened.total(), 5);
        assert_eq!(hub.stats().subscriptions, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_says_so() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    let mut watching = watch(&hub, T);
    let mut reader = EventReader::new(hub.subscribe(T).into_http_response().into_body());
    assert!(reader.next().now_or_never().is_none());
    hub.publish(T, Event::new().data("1")).await.unwrap();
    // What it needs is only in the store.
    tidings::test_util::evict(&hub);
    faults.next_read(Fault::Refused);
    while let Ok(Some(_)) = reader.try_next().await {}
    drop(reader);
    let changes = changes(&mut watching);
    assert_eq!(left(&changes[1]).1, LeaveReason::Failed);
    assert_eq!((changes.len(), hub.stats().store_errors.read), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn who_knows_the_connection_says_how_it_was_lost() {
    let hub = Hub::new();
    let mut watching = watch(&hub, T);
    for (lost, word) in [(Lost::Stalled, "stalled"), (Lost::Vanished, "vanished"), (Lost::Cut, "cut")] {
        let peer = Peer::new();
        let mut request = Request::new(());
        request.extensions_mut().insert(peer.clone());
        let response = Service::call(&mut hub.handler_for(T), request).await.unwrap();
        assert_eq!(hub.presence(T).count(), 1);
        peer.set_lost(lost);
        peer.set_lost(Lost::Cut);
        drop(response);
        let reason = left(&changes(&mut watching)[1]).1;
        assert_eq!((reason, reason.as_str()), (LeaveReason::Lost(lost), word));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_only_asks_or_is_turned_away_was_never_there() {
    let hub = Hub::builder().explicit_topics().build();
    let mut watching = watch(&hub, T);
    hub.create(T);
    let mut handler = hub.handler_for(T);
    let head = Request::head("/").body(()).unwrap();
    assert_eq!(Service::call(&mut handler, head).await.unwrap().status(), 200);
    assert_eq!(hub.subscribe(U).into_http_response().status(), 404);
    let end = hub.finish(T, None).await.unwrap();
    let last = Request::get("/").header("last-event-id", end.to_string()).body(()).unwrap();
    assert_eq!(Service::call(&mut handler, last).await.unwrap().status(), 204);
    assert_eq!(changes(&mut watching), []);
    assert_eq!(hub.stats().opened.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_ones_own_takes_from_the_request_what_ours_does() {
    let hub = Hub::new();
    let limit = Limit::per("ada", 1).newest_wins();
    let (peer, ids) =
        (Peer::new(), [hub.publish(T, Event::new()).await.unwrap(), hub.publish(T, Event::new()).await.unwrap()]);
    let mut request = Request::get("/?lastEventId=what").header("last-event-id", ids[0].to_string()).body(()).unwrap();
    request.extensions_mut().insert(peer.clone());
    let (mut request, ()) = request.into_parts();
    let subscription = hub.subscribe(T).limit(limit.clone()).for_request(&request);
    assert_eq!(subscription.cursor(), Some(ids[0]));
    let (owner, response) = (subscription.subscriber(), subscription.into_http_response());

    // axum's `get` also serves HEAD: whoever only asks takes nobody's place.
    request.method = http::Method::HEAD;
    let head = hub.subscribe(T).limit(limit).for_request(&request).into_http_response();
    assert_eq!(head.status(), 200);
    drop(head);
    assert_eq!((hub.stats().opened.total(), hub.stats().left.total()), (1, 0));
    peer.set_lost(Lost::Stalled);
    drop(response);
    assert_eq!(owner.left().await.0, LeaveReason::Lost(Lost::Stalled));
    assert_eq!(hub.subscribers(), []);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_who_does_not_look_is_told_how_much_it_missed() {
    let hub = Hub::new();
    let mut watching = watch(&hub, T);
    for _ in 0..40_000 {
        drop(hub.subscribe(T).into_http_response());
    }
    let seen = changes(&mut watching);
    assert_eq!(seen.len(), 65_536 + 1);
    assert_eq!(seen.last(), Some(&PresenceChange::Missed(80_000 - 65_536)));
    drop(hub.subscribe(T).into_http_response());
    assert_eq!(changes(&mut watching).len(), 2, "and then goes on");
}

#[test]
fn a_storm_of_those_who_come_and_go_adds_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let hub = Hub::new();
        let mut watching = hub.presence(T).changes();
        let counting = tokio::spawn(async move {
            let mut there = std::collections::HashSet::new();
            let (mut joins, mut leaves) = (0, 0);
            while let Some(change) = watching.next().await {
                match change {
                    PresenceChange::Joined(subscriber) => {
                        joins += 1;
                        assert!(there.insert(subscriber.id()), "joined twice");
                    }
                    PresenceChange::Left { subscriber, .. } => {
                        leaves += 1;
                        assert!(there.remove(&subscriber.id()), "left twice, or without having joined");
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(there.is_empty());
            (joins, leaves)
        });
        let hub = Arc::new(hub);
        let storm = (0..8).map(|task| {
            let hub = Arc::clone(&hub);
            tokio::spawn(async move {
                for n in 0..500 {
                    let mut subscription = hub.subscribe(T).limit(tidings::Limit::per("all", 5).newest_wins());
                    match (task + n) % 4 {
                        0 => drop(subscription.into_http_response()),
                        1 => {
                            hub.publish(T, Event::new().data("1")).await.unwrap();
                            let _ = subscription.next().await;
                        }
                        2 => {
                            let mut reader = EventReader::new(subscription.into_http_response().into_body());
                            hub.end_topic(T, EndReason::application("over"));
                            while reader.next().await.is_some() {}
                        }
                        _ => drop(subscription.next().now_or_never()),
                    }
                }
            })
        });
        for task in storm.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let stats = hub.stats();
        assert_eq!((stats.subscriptions, hub.presence(T).count()), (0, 0));
        drop(hub);
        let (joins, leaves) = counting.await.unwrap();
        assert_eq!((joins, leaves), (stats.opened.total(), stats.left.total()));
        assert_eq!(joins, leaves);
    });
}
