//! Delivering a live event to one more subscriber allocates nothing and copies nothing.

use axum::response::{IntoResponse as _, sse};
use futures_util::{
    FutureExt as _, StreamExt,
    stream::{self, BoxStream},
};
use http_body::Body;
use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tidings::{Event, EventId, EventType, Hub, KeepAlive, Message, SubscriptionBody, Topic};

const UPDATE: EventType = EventType::from_static("update");

/// How many allocations it takes to publish one event and to deliver it to `count` responses.
fn allocations(count: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let (hub, topic) = (Hub::new(), Topic::new("t").unwrap());
    let mut bodies: Vec<Pin<Box<SubscriptionBody>>> =
        (0..count).map(|_| Box::pin(hub.subscribe(&topic).into_http_response().into_body())).collect();
    let mut cx = Context::from_waker(Waker::noop());
    for body in &mut bodies {
        assert!(body.as_mut().poll_frame(&mut cx).is_ready(), "the opening block");
        assert!(body.as_mut().poll_frame(&mut cx).is_pending());
    }
    let mut round = |text: &str| {
        hub.publish_now(&topic, Event::new().event_type(UPDATE).data(text)).unwrap();
        for body in &mut bodies {
            assert!(matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(Some(Ok(_)))));
            assert!(body.as_mut().poll_frame(&mut cx).is_pending());
        }
    };
    // Lists grow to the number of subscribers.
    for _ in 0..3 {
        round("warm up");
    }
    allocation_counter::measure(|| round("measured")).count_total
}

#[test]
fn a_live_event_costs_no_allocation_for_one_more_subscriber() {
    let (one, many) = (allocations(1), allocations(1_000));
    assert_eq!(one, many, "999 more subscribers");
    assert!(one <= 8, "and few for the event itself: {one}");
}

#[test]
fn all_subscribers_share_the_bytes_of_an_event() {
    let (hub, topic) = (Hub::new(), Topic::new("t").unwrap());
    let mut subscriptions: Vec<_> = (0..100).map(|_| hub.subscribe(&topic).keep_alive(KeepAlive::off())).collect();
    hub.publish_now(&topic, Event::new().data("shared")).unwrap();
    let frames: Vec<_> = subscriptions
        .iter_mut()
        .map(|subscription| match futures_util::FutureExt::now_or_never(subscription.next()) {
            Some(Some(Ok(Message::Event(entry)))) => entry.frame().as_ptr(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(frames.iter().all(|frame| *frame == frames[0]));
}

#[test]
fn an_event_is_encoded_with_one_copy() {
    let text = "x".repeat(16 * 1024);
    let measured = allocation_counter::measure(|| {
        let event = Event::new().event_type(UPDATE).data(&text);
        std::hint::black_box(event.encode(None));
    });
    assert!(measured.bytes_total < 17 * 1024, "{measured:?}");
}

/// How many allocations 100 events take that come one by one, from their making to their frames.
fn allocations_of_a_stream<T, B>(event: fn() -> T, response: impl FnOnce(BoxStream<'static, T>) -> B) -> u64
where
    T: Send + 'static,
    B: Body<Data = bytes::Bytes>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut ready = false;
    let events = stream::poll_fn(move |_| {
        ready = !ready;
        if ready { Poll::Ready(Some(event())) } else { Poll::Pending }
    });
    let mut body = Box::pin(response(events.boxed()));
    let mut frames = |count| {
        let mut cx = Context::from_waker(Waker::noop());
        let mut left = count;
        while left > 0 {
            left -= u64::from(body.as_mut().poll_frame(&mut cx).is_ready());
        }
    };
    frames(3);
    // What is allocated once, whenever that may be, does not count.
    (0..3).map(|_| allocation_counter::measure(|| frames(100)).count_total).min().unwrap()
}

#[test]
fn an_event_of_a_single_stream_takes_one_allocation() {
    let ours = allocations_of_a_stream(
        || Event::new().data("a token"),
        |events| tidings::Sse::new(events).into_http_response().into_body(),
    );
    let axums = allocations_of_a_stream(
        || Ok::<_, std::convert::Infallible>(sse::Event::default().data("a token")),
        |events| sse::Sse::new(events).into_response().into_body(),
    );
    assert_eq!(ours, 100, "with axum {axums}");
    let with_ids = allocations_of_a_stream(
        || (EventId::from(u64::MAX), Event::new().event_type(UPDATE).data("x".repeat(2000).leak())),
        |events| tidings::Sse::new(events).into_http_response().into_body(),
    );
    assert_eq!(with_ids, 200, "one is the text's own");
}

const TOPICS: usize = 100_000;

fn idle_topics() -> impl Iterator<Item = Topic> {
    (0..TOPICS).map(|n| Topic::new(format!("answers/{n:016x}")).unwrap())
}

/// What is still allocated after a piece of work, for each of the topics.
struct Kept(i64);

impl Kept {
    fn after(&mut self, work: impl FnOnce()) -> i64 {
        self.0 += allocation_counter::measure(work).bytes_current;
        self.0 / i64::try_from(TOPICS).unwrap()
    }
}

/// The figures are those of the documentation of `HubBuilder::forget_idle_topics` and of `Ring::keep_finished`.
#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_idle_topics_take_little_and_give_it_back() {
    let explicit = Hub::builder().explicit_topics().build();
    let mut kept = Kept(0);
    let created = kept.after(|| idle_topics().for_each(|topic| assert!(explicit.create(topic))));
    assert!(created <= 512, "{created} bytes for each topic that was created");
    tokio::time::sleep(Duration::from_secs(3601)).await;
    // What is no longer needed goes with the next call.
    let forgotten = kept.after(|| assert!(explicit.create(Topic::from_static("another"))));
    assert!(forgotten <= 16, "{forgotten} bytes for each topic that was forgotten");

    let hub = Hub::new();
    let publish = |topic: &Topic| assert!(hub.publish_now(topic, Event::new().data("hello")).is_ok());
    let finish = |topic| assert!(hub.finish(topic, None).now_or_never().unwrap().is_ok());
    let mut kept = Kept(0);
    let published = kept.after(|| idle_topics().for_each(|topic| (publish(&topic), finish(topic)).1));
    assert!(published <= 1536, "{published} bytes for each topic with an event and an end");
    tokio::time::sleep(Duration::from_secs(301)).await;
    let remembered = kept.after(|| publish(&Topic::from_static("another")));
    assert!(remembered <= 512, "{remembered} bytes for each topic that is remembered as finished");
    tokio::time::sleep(Duration::from_secs(3601)).await;
    let gone = kept.after(|| publish(&Topic::from_static("another")));
    assert!(gone <= 16, "{gone} bytes for each topic of which nothing is left");
}
