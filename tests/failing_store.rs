//! What a store that fails, or does not answer, comes to for publishers and subscribers: nothing is lost or repeated.

use futures_util::StreamExt;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::service::Service as _;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tidings::{
    Event, Handler, Hub, Message, Start, Topic,
    replay::{AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore, Ring},
    test_util::{Fault, Faults, FaultyStore, next_event},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const T: Topic = Topic::from_static("t");

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}

async fn hub() -> (Hub, Faults) {
    let (store, faults) = FaultyStore::new();
    (Hub::builder().window_events(8).page(4, usize::MAX).open(store).await.unwrap(), faults)
}

async fn get(handler: &Handler<tidings::SameTopics>) -> (StatusCode, Option<String>, String) {
    let request = Request::get("/").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = handler.call(request).await.unwrap();
    let retry_after = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, retry_after, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_or_hangs_at_connect_is_a_come_back_later() {
    let (hub, faults) = hub().await;
    let event_source = hub.handler_for(T);
    let other = hub.handler_for(T).event_source_if(|_| false);
    for (fault, seconds) in [(Fault::Refused, 0), (Fault::Hangs, 5)] {
        faults.next_read(fault);
        let asked = Instant::now();
        let (status, _, body) = get(&event_source).await;
        assert_eq!((status, asked.elapsed().as_secs()), (StatusCode::OK, seconds));
        assert!(body.starts_with("retry: ") && body.ends_with("\n\n") && !body.contains("id:"), "{body}");

        faults.next_read(fault);
        let (status, retry_after, body) = get(&other).await;
        assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, ""));
        assert!((2..=5).contains(&retry_after.unwrap().parse().unwrap()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_or_hangs_in_a_catch_up_fails_the_stream_with_a_good_id() {
    for (fault, seconds) in [(Fault::Refused, 0), (Fault::Hangs, 5)] {
        let (hub, faults) = hub().await;
        let mut ids = Vec::new();
        for n in 0..30 {
            ids.push(hub.publish(T, text(n)).await.unwrap());
        }
        let mut behind = hub.subscribe(T).resume(ids[0]).opened().await.unwrap();
        for id in &ids[1..=4] {
            assert_eq!(next_event(&mut behind).await.cursor(), *id);
        }
        faults.next_read(fault);
        let asked = Instant::now();
        assert!(behind.next().await.unwrap().unwrap_err().is_read());
        assert_eq!(asked.elapsed().as_secs(), seconds);
        assert!(behind.next().await.is_none());
        // It is asked no second time: the client comes back, and goes on from there.
        let reads = faults.reads();
        assert_eq!((behind.cursor(), behind.end_reason()), (Some(ids[4]), None));
        assert_eq!(faults.reads(), reads);
        let mut back = hub.subscribe(T).resume(behind.cursor());
        for id in &ids[5..] {
            assert_eq!(next_event(&mut back).await.cursor(), *id);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn recovery_asks_again_less_and_less_often() {
    let (hub, faults) = hub().await;
    faults.next_append(Fault::UnknownButStored);
    for _ in 0..12 {
        faults.next_read(Fault::Refused);
    }
    let begin = Instant::now();
    assert!(hub.publish(T, text("1")).await.unwrap_err().is_unknown());
    let mut asked = Vec::new();
    let mut reads = faults.reads();
    while asked.len() < 12 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if faults.reads() > reads {
            reads = faults.reads();
            asked.push(begin.elapsed().as_millis());
        }
    }
    let apart: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(apart.windows(2).all(|pair| pair[1] >= pair[0]), "{apart:?}");
    assert!(apart[0] <= 101 && apart.iter().max().unwrap().abs_diff(5000) <= 2, "{apart:?}");
    // And then what was stored is known, and publishing goes on.
    let mut all = hub.subscribe(T).start(Start::Earliest);
    assert_eq!(next_event(&mut all).await.record().data().as_deref(), Some("1"));
    while hub.publish(T, text("2")).await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(next_event(&mut all).await.record().data().as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn a_forget_that_fails_or_hangs_is_told_and_leaves_what_the_store_has() {
    for (fault, seconds, gone) in
        [(Fault::Refused, 0, false), (Fault::UnknownButStored, 0, true), (Fault::Hangs, 5, false)]
    {
        let (hub, faults) = hub().await;
        hub.publish(T, text("1")).await.unwrap();
        let mut live = hub.subscribe(T).opened().await.unwrap();
        faults.next_forget(fault);
        let asked = Instant::now();
        hub.forget(T).await.unwrap_err();
        assert_eq!(asked.elapsed().as_secs(), seconds);
        // Whoever publishes after it does not wait for it.
        hub.publish(T, text("2")).await.unwrap();
        assert_eq!(next_event(&mut live).await.record().data().as_deref(), Some("2"));
        let mut all = hub.subscribe(T).start(Start::Earliest);
        let oldest = if gone { "2" } else { "1" };
        assert_eq!(next_event(&mut all).await.record().data().as_deref(), Some(oldest));
    }
}

/// Subscribes until everything was seen, and comes back after every failure.
async fn follow(hub: Hub, mut id: Option<Cursor>, last: String) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let mut subscription = hub.subscribe(T).resume(id);
        loop {
            match subscription.next().await {
                Some(Ok(Message::Event(entry))) => {
                    seen.push(entry.record().data().unwrap().into_owned());
                    if seen.last() == Some(&last) {
                        return seen;
                    }
                }
                Some(Err(error)) => {
                    assert!(error.is_read());
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        id = subscription.cursor();
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..50))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_fails_what_was_stored_arrives_once_and_in_order() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (hub, faults) = hub().await;
        let begin = hub.publish(T, text("begin")).await.unwrap();
        let released = tokio::spawn({
            let faults = faults.clone();
            async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    faults.release();
                }
            }
        });
        let followers: Vec<_> =
            (0..5).map(|_| tokio::spawn(follow(hub.clone(), Some(begin), "end".to_owned()))).collect();
        let (mut sure, mut unsure) = (Vec::new(), BTreeSet::new());
        for n in 0..300 {
            let fault = match random.u8(..10) {
                0 => Some(Fault::Refused),
                1 => Some(Fault::Unknown),
                2 => Some(Fault::UnknownButStored),
                3 => Some(Fault::Hangs),
                _ => None,
            };
            if let Some(fault) = fault {
                faults.next_append(fault);
            }
            if random.u8(..10) == 0 {
                faults.next_read(Fault::Refused);
            }
            // Some publishers are gone before the answer comes.
            let patience = Duration::from_millis(random.u64(1..40));
            match tokio::time::timeout(patience, hub.publish(T, text(n))).await {
                Ok(Ok(_)) => sure.push(n.to_string()),
                Ok(Err(error)) if !error.is_unknown() => {
                    // Refused, also because it is still unknown what the store took before.
                    tokio::time::sleep(Duration::from_millis(random.u64(..100))).await;
                }
                _ => drop(unsure.insert(n.to_string())),
            }
        }
        while hub.publish(T, text("end")).await.is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        released.abort();
        let mut all = Vec::new();
        for follower in followers {
            let seen = follower.await.unwrap();
            assert!(all.is_empty() || all == seen, "all see the same");
            all = seen;
        }
        let acknowledged: Vec<_> = all.iter().filter(|n| *n != "end" && !unsure.contains(*n)).cloned().collect();
        assert_eq!(acknowledged, sure, "what was acknowledged, once and in order, and nothing that was refused");
        let distinct: BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "nothing came twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_forget_that_fails_refuses_nobody_behind_it() {
    let (hub, faults) = hub().await;
    faults.next_append(Fault::Hangs);
    faults.next_forget(Fault::Refused);
    let (busy, forgotten, behind) = tokio::join!(hub.publish(T, text(1)), hub.forget(T), async {
        let behind = hub.publish(T, text(2));
        faults.release();
        behind.await
    });
    assert!(busy.is_ok() && forgotten.is_err());
    behind.unwrap();
}

/// One whose server is away: it tries for some time before it says so.
struct Away(Ring);

const TRIES_FOR: Duration = Duration::from_secs(4);

impl ReplayStore for Away {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.head().await
    }

    async fn append(&self, _: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        sleep(TRIES_FOR).await;
        Err(AppendError::refused("the server is away"))
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        self.0.read(read).await
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.0.forget(topic).await
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_behind_a_batch_that_fails_late_does_not_wait_for_another() {
    let hub = Hub::builder().open(Away(Ring::new())).await.unwrap();
    let mut publishers = JoinSet::new();
    let start = Instant::now();
    // Some come with the first, others while it is tried, and the last one after it has failed.
    for millis in [0, 0, 100, 2000, 3900, 4100] {
        let hub = hub.clone();
        publishers.spawn(async move {
            sleep(Duration::from_millis(millis)).await;
            let error = hub.publish(T, text(millis)).await.unwrap_err();
            assert!(!error.is_unknown(), "nothing of it was stored: {error}");
            (millis, start.elapsed().as_millis())
        });
    }
    let mut answered = publishers.join_all().await;
    answered.sort_unstable();
    assert_eq!(answered, [(0, 4000), (0, 4000), (100, 4000), (2000, 4000), (3900, 4000), (4100, 8100)]);
}
