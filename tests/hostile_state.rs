//! Awkward moments of topics that keep state, of subscriptions that rest, of ephemeral events and of producers.

use futures_util::{FutureExt as _, StreamExt, future::poll_immediate};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::service::Service as _;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tidings::{
    EndReason, Event, GapPolicy, Hub, LagBudget, Message, Subscription, Topic, Topics,
    replay::{AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore, Ring, Run},
    test_util::{Fault, FaultyStore, next_event},
};
use tokio::time::Instant;

const T: Topic = Topic::from_static("t");
const U: Topic = Topic::from_static("u");

fn text(text: impl AsRef<str>) -> Event {
    Event::new().data(text.as_ref())
}

async fn available(subscription: &mut Subscription) -> Vec<String> {
    let mut got = Vec::new();
    while let Some(next) = poll_immediate(subscription.next()).await {
        got.push(match next {
            Some(Ok(Message::Event(entry))) => entry.record().data().unwrap_or_default().into_owned(),
            Some(Ok(Message::Gap(gap))) => format!("gap {}", gap.reason),
            Some(other) => panic!("{other:?}"),
            None => {
                got.push(format!("end {:?}", subscription.end_reason()));
                break;
            }
        });
    }
    got
}

#[tokio::test]
async fn end_policy_two_topics_does_not_loop() {
    let ring = Ring::new().events_per_topic(2);
    let hub = Hub::builder().ring(ring).on_gap(GapPolicy::End).build();
    let first = hub.publish(T, text("t1")).await.unwrap();
    hub.publish(T, text("t2")).await.unwrap();
    for n in 0..5 {
        hub.publish(U, text(format!("u{n}"))).await.unwrap();
    }
    let both = || Topics::new([T, U]).unwrap();
    let mut id = first;
    for round in 0..3 {
        let mut subscription = hub.subscribe(both()).resume(id);
        let got = available(&mut subscription).await;
        id = subscription.cursor().unwrap();
        if round > 0 {
            assert!(!got.contains(&"gap evicted".to_owned()), "told of the same gap again: {got:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn end_policy_latest_below_floor_does_not_loop() {
    let hub = Hub::builder().on_gap(GapPolicy::End).build();
    let before = hub.publish(T, text("0")).await.unwrap();
    hub.publish_latest(T, "k", text("state")).await.unwrap();
    hub.publish(T, text("1")).await.unwrap();
    tokio::time::advance(Duration::from_secs(301)).await;
    let mut id = before;
    for round in 0..3 {
        let mut subscription = hub.subscribe(T).resume(id);
        let got = available(&mut subscription).await;
        id = subscription.cursor().unwrap();
        if round > 0 {
            assert!(!got.contains(&"gap evicted".to_owned()), "told of the same gap again: {got:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn resting_is_not_lagging_in_time() {
    let hub = Hub::new();
    let mut s = hub
        .subscribe(T)
        .min_interval(Duration::from_secs(10))
        .lag_budget(LagBudget::new().time(Duration::from_secs(5)));
    hub.publish(T, text("1")).await.unwrap();
    assert_eq!(available(&mut s).await, ["1"]);
    hub.publish(T, text("2")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(available(&mut s).await, ["2"]);
}

#[tokio::test(start_paused = true)]
async fn resting_is_not_lagging_in_events() {
    let hub = Hub::new();
    let mut s = hub.subscribe(T).min_interval(Duration::from_secs(1)).lag_budget(LagBudget::new().events(100));
    hub.publish_latest(T, "k", text("0")).await.unwrap();
    assert_eq!(available(&mut s).await, ["0"]);
    for n in 1..=1000 {
        hub.publish_latest(T, "k", text(n.to_string())).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(available(&mut s).await, ["1000"]);
}

#[tokio::test]
async fn what_was_replaced_before_it_was_read_is_not_lag() {
    let hub = Hub::new();
    let mut s = hub.subscribe(T).lag_budget(LagBudget::new().events(100));
    for n in 1..=1000 {
        hub.publish_latest(T, "k", text(n.to_string())).await.unwrap();
    }
    assert_eq!(available(&mut s).await, ["1000"]);
}

#[tokio::test(start_paused = true)]
async fn a_paced_one_that_is_always_behind_is_ended_too() {
    let hub = Hub::new();
    let mut s = hub
        .subscribe(T)
        .min_interval(Duration::from_millis(1))
        .lag_budget(LagBudget::new().time(Duration::from_secs(5)));
    // Each second ten are published, and it takes nine.
    for n in 0..200 {
        for _ in 0..10 {
            hub.publish(T, text(n.to_string())).await.unwrap();
        }
        for _ in 0..9 {
            match tokio::time::timeout(Duration::from_millis(10), s.next()).await {
                Ok(None) => {
                    assert_eq!(s.end_reason(), Some(EndReason::Lagged));
                    return;
                }
                Ok(Some(Ok(_))) => {}
                other => panic!("{other:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    panic!("never ended");
}

#[tokio::test(start_paused = true)]
async fn abandoned_counts_from_when_the_topic_got_its_producer() {
    let hub = Hub::builder().explicit_topics().build();
    hub.create(T);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let producer = hub.producer(T);
    let start = Instant::now();
    producer.abandoned(Duration::from_secs(60)).await;
    assert_eq!(start.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_is_taken_is_use() {
    let hub = Hub::builder().explicit_topics().forget_idle_topics(Duration::from_secs(60)).build();
    hub.create(T);
    tokio::time::sleep(Duration::from_secs(61)).await;
    if hub.publish(T, text("1")).await.is_ok() {
        hub.publish(T, text("2")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_sent_at_once() {
    let hub = Hub::builder().window_events(50).page(10, 1 << 20).build();
    let id = hub.publish(T, text("0")).await.unwrap();
    for n in 1..=200 {
        hub.publish(T, text(n.to_string())).await.unwrap();
    }
    let mut s = hub.subscribe(T).resume(id).min_interval(Duration::from_secs(60));
    let start = Instant::now();
    for n in 1..=200 {
        assert_eq!(next_event(&mut s).await.record().data().unwrap(), n.to_string());
        assert_eq!(start.elapsed(), Duration::ZERO, "at {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_is_not_delayed() {
    let hub = Hub::new();
    let mut s = hub.subscribe(T).min_interval(Duration::from_secs(60));
    hub.finish(T, Some(text("last"))).await.unwrap();
    let start = Instant::now();
    assert_eq!(next_event(&mut s).await.record().data().unwrap(), "last");
    assert!(s.next().await.is_none());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_endless_interval() {
    let hub = Hub::new();
    let mut s = hub.subscribe(T).min_interval(Duration::MAX);
    hub.publish(T, text("1")).await.unwrap();
    assert_eq!(available(&mut s).await, ["1"]);
    hub.publish(T, text("2")).await.unwrap();
    assert!(available(&mut s).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn each_answer_has_its_own_time() {
    struct Slow(Ring);
    impl ReplayStore for Slow {
        async fn head(&self) -> Result<Cursor, ReadError> {
            self.0.head().await
        }
        async fn append(&self, r: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
            self.0.append(r).await
        }
        async fn read(&self, read: Read) -> Result<Page, ReadError> {
            tokio::time::sleep(Duration::from_millis(600)).await;
            self.0.read(read).await
        }
        async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
            self.0.forget(topic).await
        }
    }
    let ring = Ring::new();
    let topics: Vec<Topic> = (0..10).map(|n| Topic::new(n.to_string()).unwrap()).collect();
    for topic in &topics {
        ring.append([Record::new(topic, text("x"))].into()).await.unwrap();
    }
    let hub = Hub::builder().explicit_topics().open(Slow(ring)).await.unwrap();
    let opened = hub.subscribe(Topics::new(topics).unwrap()).opened().await;
    assert!(opened.is_ok(), "{opened:?}");
}

#[tokio::test(start_paused = true)]
async fn forgets_that_hang_do_not_delay_publishers() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    for _ in 0..10 {
        faults.next_forget(Fault::Hangs);
        let hub = hub.clone();
        tokio::spawn(async move { hub.forget(T).await });
    }
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    let start = Instant::now();
    let _outcome = hub.publish(U, text("1")).await;
    assert!(start.elapsed() <= Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_forget_comes_after_what_was_published_before_it() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    hub.publish(T, text("1")).await.unwrap();
    let producer = hub.producer(T).last_will(text("will"));
    faults.next_append(Fault::Hangs);
    let busy = tokio::spawn({
        let hub = hub.clone();
        async move { hub.publish(U, text("busy")).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(producer);
    let forget = tokio::spawn({
        let hub = hub.clone();
        async move { hub.forget(T).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    faults.release();
    busy.await.unwrap().unwrap();
    forget.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    hub.publish(T, text("2")).await.expect("forgotten after it was finished");
}

#[tokio::test]
async fn the_cursor_does_not_go_back() {
    let hub = Hub::builder().window_events(4).ring(Ring::new().events_per_topic(4)).build();
    let mut s = hub.subscribe(T);
    hub.publish(T, text("0")).await.unwrap();
    next_event(&mut s).await;
    hub.publish(T, text("1")).await.unwrap();
    hub.publish_ephemeral(T, text("e")).unwrap();
    for n in 2..20 {
        hub.publish(T, text(n.to_string())).await.unwrap();
    }
    let mut last = s.cursor().unwrap().position();
    while let Some(Some(Ok(message))) = poll_immediate(s.next()).await {
        let now = s.cursor().unwrap().position();
        assert!(now >= last, "from {last} to {now} at {message:?}");
        last = now;
    }
}

/// A store that answers a read late, with what its log was before.
type Log = (Run, u64, Vec<(Cursor, Record)>);

#[derive(Clone)]
struct Two(Arc<Mutex<Log>>, Arc<tokio::sync::Semaphore>);

impl ReplayStore for Two {
    async fn head(&self) -> Result<Cursor, ReadError> {
        let s = self.0.lock().unwrap();
        Ok(s.0.at(s.1))
    }
    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let mut s = self.0.lock().unwrap();
        let mut out = Vec::new();
        for r in records.iter() {
            s.1 += 1;
            let c = s.0.at(s.1);
            s.2.push((c, r.clone()));
            out.push(Ok(c));
        }
        Ok(out)
    }
    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let page = {
            let s = self.0.lock().unwrap();
            let mut page = Page::new(s.0.at(s.1));
            let tidings::replay::ReadFrom::After(after) = read.from else { panic!() };
            if after.run() != s.0 {
                return Ok(Page::foreign(s.0.at(s.1)));
            }
            for (c, r) in &s.2 {
                if c.position() > after.position() && read.topics.contains(r.topic()) {
                    page.push(*c, r.clone());
                }
            }
            page
        };
        self.1.acquire().await.unwrap().forget();
        Ok(page)
    }
    async fn forget(&self, _: Topic) -> Result<(), ReadError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn ephemerals_of_a_new_run_do_not_get_into_a_page_of_the_old() {
    let run = Run::new_log();
    let store = Two(Arc::new(Mutex::new((run, 0, Vec::new()))), Arc::new(tokio::sync::Semaphore::new(100)));
    let hub = Hub::builder().window_events(2).open(store.clone()).await.unwrap();
    let mut s = hub.subscribe(T);
    assert!(poll_immediate(s.next()).await.is_none());
    for n in 0..20 {
        hub.publish(T, text(format!("old {n}"))).await.unwrap();
    }
    while store.1.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok() {}
    assert!(poll_immediate(s.next()).await.is_none(), "reads a page");
    // The log is opened anew, having lost its end.
    {
        let mut state = store.0.lock().unwrap();
        state.0 = Run { number: 1, ..run };
        state.1 = 3;
        state.2.truncate(3);
    }
    for n in 0..5 {
        hub.publish(T, text(format!("new {n}"))).await.unwrap();
    }
    hub.publish_ephemeral(T, text("ephemeral")).unwrap();
    store.1.add_permits(100);
    let mut had_new = 0;
    while let Ok(Some(next)) = tokio::time::timeout(Duration::from_secs(1), s.next()).await {
        let at = s.cursor();
        if let Ok(Message::Event(e)) = &next {
            if e.record().data().unwrap().starts_with("new") {
                had_new += 1;
            }
        }
        if matches!(next, Ok(Message::Gap(_))) {
            had_new += 1;
        }
        if let Some(at) = at {
            if at.run().number == 1 {
                assert!(had_new > 0, "the cursor is in the new run, of which nothing was handed over");
            }
        }
    }
}

async fn get(hub: &Hub, topics: impl Into<Topics>) -> StatusCode {
    let request = Request::get("/").body(Empty::<bytes::Bytes>::new()).unwrap();
    hub.handler_for(topics).call(request).await.unwrap().status()
}

#[tokio::test]
async fn topics_that_are_created_and_forgotten_cost_nothing() {
    let hub = Hub::builder().explicit_topics().forget_idle_topics(Duration::MAX).build();
    let measured = allocation_counter::measure(|| {
        for _ in 0..100_000 {
            hub.create(T);
            hub.forget(T).now_or_never().unwrap().unwrap();
        }
    });
    assert!(measured.bytes_current < 100_000, "{}", measured.bytes_current);
    assert_eq!(get(&hub, T).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn topics_that_are_finished_and_forgotten_cost_nothing() {
    let hub = Hub::new();
    let measured = allocation_counter::measure(|| {
        for _ in 0..100_000 {
            hub.finish(T, None).now_or_never().unwrap().unwrap();
            hub.forget(T).now_or_never().unwrap().unwrap();
        }
    });
    assert!(measured.bytes_current < 100_000, "{}", measured.bytes_current);
}

#[tokio::test(start_paused = true)]
async fn a_key_comes_once_in_an_interval_also_from_the_store() {
    let hub = Hub::builder().window_events(10).page(20, 1 << 20).build();
    let mut s = hub.subscribe(T).min_interval(Duration::from_secs(60));
    hub.publish_latest(T, "first", text("first")).await.unwrap();
    assert_eq!(available(&mut s).await, ["first"]);
    for n in 0..100 {
        hub.publish_latest(T, n.to_string(), text(n.to_string())).await.unwrap();
    }
    let start = Instant::now();
    let mut seen = std::collections::BTreeMap::new();
    for n in 0..101 {
        let e = next_event(&mut s).await;
        let at = start.elapsed();
        if let Some(before) = seen.insert(e.record().key().unwrap().to_owned(), at) {
            assert!(at > before, "{} came twice at {at:?}", e.record().key().unwrap());
        }
        if n == 10 {
            hub.publish_latest(T, "0", text("0")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn only_a_plain_event_can_be_ephemeral() {
    let hub = Hub::new();
    let mut subscription = hub.subscribe(T);
    for record in [Record::latest(T, "k", text("x")), Record::removal(T, "k", text("x")), Record::finish(T, None)] {
        hub.publish_ephemeral_record(record).unwrap_err();
    }
    assert!(poll_immediate(subscription.next()).await.is_none());
}

#[test]
fn a_last_will_is_published_in_another_runtime_when_that_of_the_hub_is_gone() {
    let home = tokio::runtime::Runtime::new().unwrap();
    let hub = home.block_on(Hub::builder().open(Arc::new(Ring::new()))).unwrap();
    let producer = hub.producer(T).last_will(text("will"));
    drop(home);
    let other = tokio::runtime::Runtime::new().unwrap();
    other.block_on(async {
        // The first to publish finds out that it is gone.
        let _ = hub.publish(U, text("1")).await;
        hub.publish(U, text("2")).await.unwrap();
        let mut reader = hub.subscribe(T);
        drop(producer);
        assert_eq!(next_event(&mut reader).await.record().data().unwrap(), "will");
    });
}
