//! How many there may be, and for how long each may stay.

use futures_util::{FutureExt as _, StreamExt as _};
use http::Request;
use http_body_util::BodyExt as _;
use std::time::Duration;
use tidings::{
    EndReason, Event, Hub, LeaveReason, Limit, Subscription, Topic,
    test_util::{EventReader, next_event},
};
use tokio::time::Instant;
use tower_service::Service;

const T: Topic = Topic::from_static("t");

async fn is_turned_away(mut subscription: Subscription) -> bool {
    subscription.next().await.is_some_and(|first| first.is_err_and(|error| error.is_over_limit()))
}

#[tokio::test(start_paused = true)]
async fn one_too_many_is_turned_away_until_there_is_room() {
    let hub = Hub::builder().max_subscriptions(2).build();
    let mut handler = hub.handler_for(T);
    let one = Service::call(&mut handler, Request::new(())).await.unwrap();
    let _two = hub.subscribe(T).into_http_response();

    let three = Service::call(&mut handler, Request::new(())).await.unwrap();
    let text = String::from_utf8(three.into_body().collect().await.unwrap().to_bytes().into()).unwrap();
    let retry: u64 = text.strip_prefix("retry: ").and_then(|text| text.trim_end().parse().ok()).expect(&text);
    assert!((1500..=4500).contains(&retry));
    let mut others = handler.clone().event_source_if(|_| false);
    assert_eq!(Service::call(&mut others, Request::new(())).await.unwrap().status(), 503);
    assert!(is_turned_away(hub.subscribe(T)).await);
    let mut reader = EventReader::new(hub.subscribe(T).into_http_response().into_body());
    assert!(reader.next().await.is_none() && reader.retry_ms().is_some());
    assert_eq!((hub.stats().subscriptions, hub.stats().refused.over_limit), (2, 4));

    drop(one);
    let mut three = hub.subscribe(T);
    hub.publish(T, Event::new().data("1")).await.unwrap();
    next_event(&mut three).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_has_its_own_limit_and_all_of_several_hold() {
    let hub = Hub::new();
    let of = |user: &str, address: &str| {
        hub.subscribe(T).limit(Limit::per(user, 2)).limit(Limit::per(format!("address {address}"), 3))
    };
    let _ada = [of("ada", "a").into_http_response(), of("ada", "a").into_http_response()];
    assert!(is_turned_away(of("ada", "b")).await, "two of ada");
    let bob = of("bob", "a").into_http_response();
    assert!(is_turned_away(of("eve", "a")).await, "three of one address");
    assert!(of("eve", "b").next().now_or_never().is_none());
    drop(bob);
    drop(of("bob", "a").into_http_response());
    assert!(is_turned_away(hub.subscribe(T).limit(Limit::per("nobody", 0))).await);
    assert!(is_turned_away(hub.subscribe(T).limit(Limit::per("nobody", 0).newest_wins())).await);
    // Whoever was turned away took nobody's place.
    assert_eq!(hub.stats().subscriptions, 2);
    let _ = of("bob", "a").into_http_response();
}

#[tokio::test(start_paused = true)]
async fn the_newest_wins_where_that_is_asked_for() {
    let hub = Hub::new();
    let of_ada = || hub.subscribe(T).limit(Limit::per("ada", 2).newest_wins());
    let (mut one, mut two) = (of_ada(), of_ada());
    assert!(one.next().now_or_never().is_none() && two.next().now_or_never().is_none());
    let first = one.subscriber();
    // One that has stopped reading is in nobody's way.
    let mut three = of_ada();
    assert!(three.next().now_or_never().is_none());
    let mut four = of_ada();
    assert!(four.next().now_or_never().is_none());
    assert!(one.next().await.is_none() && two.next().await.is_none());
    assert_eq!(one.end_reason(), Some(EndReason::Replaced));
    assert_eq!(first.left().await.0, LeaveReason::Ended(EndReason::Replaced));
    hub.publish(T, Event::new().data("1")).await.unwrap();
    next_event(&mut three).await;
    next_event(&mut four).await;
    assert_eq!((hub.stats().subscriptions, hub.stats().left.replaced), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn streams_that_came_together_leave_one_after_the_other() {
    let hub = Hub::builder().max_lifetime(Duration::from_secs(100)).build();
    let start = Instant::now();
    let ends = (0..1000).map(|_| {
        let mut subscription = hub.subscribe(T);
        tokio::spawn(async move {
            assert!(subscription.next().await.is_none());
            assert_eq!(subscription.end_reason(), Some(EndReason::Expired));
            start.elapsed().as_secs_f64()
        })
    });
    let mut seconds = [0; 21];
    for end in ends.collect::<Vec<_>>() {
        let end = end.await.unwrap();
        assert!((80.0..=100.1).contains(&end), "{end}");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of seconds")]
        let second = end as usize - 80;
        seconds[second] += 1;
    }
    assert!(seconds[..20].iter().all(|count| (15..=100).contains(count)), "{seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn what_expires_sends_nothing_after_that_and_its_id_is_good() {
    let hub = Hub::builder().max_lifetime(Duration::from_secs(100)).announce_ends().build();
    let subscription = hub.subscribe(T).expires_in(Duration::from_secs(10));
    let mut reader = EventReader::new(subscription.into_http_response().into_body());
    let id = hub.publish(T, Event::new().data("1")).await.unwrap();
    assert_eq!(reader.next().await.unwrap().data, "1");
    tokio::time::sleep(Duration::from_secs(10)).await;
    hub.publish(T, Event::new().data("2")).await.unwrap();
    assert_eq!(reader.next().await.unwrap().data, r#"{"reason":"expired"}"#);
    assert!(reader.next().await.is_none());
    assert_eq!(reader.last_event_id(), id.to_string());

    let mut expired = hub.subscribe(T).expires_in(Duration::ZERO);
    hub.publish(T, Event::new().data("3")).await.unwrap();
    assert!(expired.next().await.is_none(), "not one event");
    let mut endless = hub.subscribe(T).expires_in(Duration::MAX).max_lifetime(Duration::MAX);
    hub.publish(T, Event::new().data("4")).await.unwrap();
    next_event(&mut endless).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_comes_though_events_never_stop() {
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T).expires_in(Duration::from_secs(1));
    let start = Instant::now();
    let mut received = 0;
    loop {
        hub.publish(T, Event::new().data("1")).await.unwrap();
        if subscription.next().await.is_none() {
            break;
        }
        received += 1;
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert_eq!(received, 100);
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}
