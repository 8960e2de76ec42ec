//! Hostile stores: slow, late, rewound, panicking, with runs that change under a living hub.

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, poll_immediate},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tidings::{
    Event, GapReason, Hub, Message, Subscription, Topic,
    replay::{AppendError, Cursor, Kind, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Ring, Run},
    test_util::{Fault, FaultyStore, next_event, next_message},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}
#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}
async fn silent(subscription: &mut Subscription) -> bool {
    sleep(Duration::from_millis(1)).await;
    poll_immediate(subscription.next()).await.is_none()
}

type Outcomes = Result<Vec<Result<Cursor, Refused>>, AppendError>;
type OnAppend = Box<dyn Fn(Arc<Ring>, Arc<[Record]>) -> BoxFuture<'static, Outcomes> + Send + Sync>;
type OnRead = Box<dyn Fn(Arc<Ring>, Read) -> BoxFuture<'static, Result<Page, ReadError>> + Send + Sync>;

/// A ring behind hooks.
struct Hooked {
    ring: Arc<Ring>,
    append: OnAppend,
    read: OnRead,
}
impl Hooked {
    fn new(ring: Arc<Ring>) -> Self {
        Self {
            ring,
            append: Box::new(|ring, records| async move { ring.append(records).await }.boxed()),
            read: Box::new(|ring, read| async move { ring.read(read).await }.boxed()),
        }
    }
}
impl ReplayStore for Hooked {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.ring.head().await
    }
    async fn append(&self, records: Arc<[Record]>) -> Outcomes {
        (self.append)(self.ring.clone(), records).await
    }
    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        (self.read)(self.ring.clone(), read).await
    }
    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.ring.forget(topic).await
    }
}

/// A log with runs and finished topics, that can be opened anew under a living hub, as a failover does.
#[derive(Clone)]
struct Log(Arc<Mutex<LogState>>);
struct LogState {
    run: Run,
    began: Vec<u64>,
    position: u64,
    records: Vec<(u64, Record)>,
    finished: BTreeMap<Topic, u64>,
}
impl Log {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(LogState {
            run: Run::new_log(),
            began: vec![0],
            position: 0,
            records: Vec::new(),
            finished: BTreeMap::new(),
        })))
    }
    /// A new run; the newest `lost` positions were lost.
    fn fail_over(&self, lost: u64) {
        let mut log = self.0.lock().unwrap();
        log.position -= lost;
        let position = log.position;
        log.records.retain(|(p, _)| *p <= position);
        log.finished.retain(|_, p| *p <= position);
        log.run.number += 1;
        log.began.push(position);
    }
    fn append_now(&self, records: &[Record]) -> Vec<Result<Cursor, Refused>> {
        let mut log = self.0.lock().unwrap();
        records
            .iter()
            .map(|record| {
                if log.finished.contains_key(record.topic()) {
                    return Err(Refused::Finished);
                }
                log.position += 1;
                let position = log.position;
                if record.kind() == Kind::Finish {
                    log.finished.insert(record.topic().clone(), position);
                }
                log.records.push((position, record.clone()));
                Ok(log.run.at(position))
            })
            .collect()
    }
    fn read_now(&self, read: &Read) -> Page {
        let log = self.0.lock().unwrap();
        let head = log.run.at(log.position);
        let after = match read.from {
            ReadFrom::After(after) => {
                let later = usize::try_from(after.run().number).unwrap().saturating_add(1);
                let good = log.began.iter().skip(later).min().copied().unwrap_or(log.position);
                let same = after.run().epoch == log.run.epoch && after.run().number <= log.run.number;
                if !same || after.position() > good {
                    return Page::foreign(head);
                }
                after.position()
            }
            _ => 0,
        };
        let mut page = Page::new(head);
        for (position, record) in &log.records {
            if *position > after && read.topics.contains(record.topic()) {
                if page.entries.len() == read.max_events {
                    page.through = log.run.at(page.entries.last().unwrap().cursor().position());
                    break;
                }
                page.push(log.run.at(*position), record.clone());
            }
        }
        let through = page.through.position();
        page.finished = log
            .finished
            .iter()
            .filter(|(t, p)| read.topics.contains(t) && **p <= through)
            .map(|(t, _)| t.clone())
            .collect();
        page
    }
}
impl ReplayStore for Log {
    async fn head(&self) -> Result<Cursor, ReadError> {
        let log = self.0.lock().unwrap();
        Ok(log.run.at(log.position))
    }
    async fn append(&self, records: Arc<[Record]>) -> Outcomes {
        Ok(self.append_now(&records))
    }
    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        Ok(self.read_now(&read))
    }
    async fn forget(&self, _: Topic) -> Result<(), ReadError> {
        unreachable!()
    }
}

/// `recover` shows what it reads and never looks at `page.floor`.
#[tokio::test(start_paused = true)]
async fn recovery_reports_what_the_store_no_longer_has() {
    let (store, faults) = FaultyStore::over(Ring::new().events_per_topic(5));
    let hub = Hub::builder().open(store).await.unwrap();
    let mut live = hub.subscribe(topic("t")).opened().await.unwrap();
    faults.next_append(Fault::UnknownButStored);
    hub.publish_all((0..20).map(|n| (topic("t"), text(n)))).await;
    match next_message(&mut live).await.unwrap() {
        Message::Gap(gap) => assert_eq!(gap.reason, GapReason::Evicted),
        Message::Event(entry) => panic!("0 to 14 are gone and nobody was told: first is {:?}", entry.record().data()),
        _ => unreachable!(),
    }
}

/// The same where nothing is left to show.
#[tokio::test(start_paused = true)]
async fn recovery_reports_a_loss_when_nothing_is_left() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    let mut live = hub.subscribe(topic("t")).opened().await.unwrap();
    faults.next_append(Fault::UnknownButStored);
    faults.next_read(Fault::Refused);
    assert!(hub.publish(topic("t"), text("lost")).await.unwrap_err().is_unknown());
    faults.evict();
    sleep(Duration::from_secs(60)).await;
    hub.publish(topic("t"), text("next")).await.unwrap();
    match next_message(&mut live).await.unwrap() {
        Message::Gap(_) => {}
        Message::Event(entry) => panic!("`lost` was stored, is gone, and nobody was told: {:?}", entry.record().data()),
        _ => unreachable!(),
    }
}

/// Forgotten in the store behind the hub, then used again: the window still says that the topic is finished.
#[tokio::test(start_paused = true)]
async fn a_finished_topic_that_was_forgotten_and_used_again_is_alive() {
    let ring = Arc::new(Ring::new());
    let hub = Hub::builder().open(Hooked::new(ring.clone())).await.unwrap();
    hub.finish(topic("t"), None).await.unwrap();
    ring.forget(topic("t")).await.unwrap();
    let id = hub.publish(topic("t"), text("alive")).await.unwrap();
    let resumed = hub.subscribe(topic("t")).resume(id).opened().await.unwrap();
    assert_eq!(resumed.into_http_response().status(), 200, "204 stops an EventSource for good; the topic goes on");
    let mut live = hub.subscribe(topic("t")).resume(id);
    hub.publish(topic("t"), text("more")).await.unwrap();
    assert_eq!(next_event(&mut live).await.record().data().unwrap(), "more");
    assert!(silent(&mut live).await, "it ended");
}

/// Its first read waits.
struct Slow(Log, Arc<Notify>, Arc<AtomicUsize>);
impl ReplayStore for Slow {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.head().await
    }
    async fn append(&self, records: Arc<[Record]>) -> Outcomes {
        self.0.append(records).await
    }
    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let page = self.0.read_now(&read);
        if self.2.fetch_add(1, SeqCst) == 0 {
            self.1.notified().await;
        }
        Ok(page)
    }
    async fn forget(&self, _: Topic) -> Result<(), ReadError> {
        unreachable!()
    }
}

/// A page of the old run, taken over after the window was reset, says that the topic is finished.
#[tokio::test(start_paused = true)]
async fn a_stale_page_does_not_finish_a_topic_of_the_new_run() {
    let log = Log::new();
    let gate = Arc::new(Notify::new());
    let held = Arc::new(AtomicUsize::new(0));
    // Of an earlier hub: 1 event, then the end, which the failover will lose.
    let t = topic("t");
    log.append_now(&[Record::new(&t, text("one")), Record::finish(&t, None)]);
    let hub = Hub::builder().open(Slow(log.clone(), gate.clone(), held)).await.unwrap();
    let run = ReplayStore::head(&log).await.unwrap().run();
    let mut slow = hub.subscribe(&t).resume(run.at(1));
    assert!(poll_immediate(slow.next()).await.is_none(), "its read hangs");
    log.fail_over(1);
    hub.publish(topic("other"), text("x")).await.unwrap(); // resets the window
    gate.notify_one();
    let _ = poll_immediate(slow.next()).await; // takes the page of the old run
    let id = hub.publish(&t, text("two")).await.unwrap();
    let mut live = hub.subscribe(&t).resume(id).opened().await.unwrap();
    hub.publish(&t, text("three")).await.unwrap();
    assert_eq!(next_event(&mut live).await.record().data().unwrap(), "three");
    assert!(silent(&mut live).await, "the topic is not finished in this run, but the stream ended");
}

/// In-process consumers who keep their place with `cursor()` while a gap is unreported start anew, silently.
#[tokio::test]
async fn the_place_of_a_subscription_with_an_unreported_gap_still_leads_to_the_gap() {
    let hub = Hub::builder().ring(Ring::new().events_per_topic(2)).build();
    let t = topic("t");
    let first = hub.publish(&t, text(0)).await.unwrap();
    for n in 1..9 {
        hub.publish(&t, text(n)).await.unwrap();
    }
    let cut = hub.subscribe(&t).resume(first).opened().await.unwrap();
    let mut again = hub.subscribe(&t).resume(cut.cursor());
    assert!(matches!(poll_immediate(again.next()).await, Some(Some(Ok(Message::Gap(_))))), "nobody is ever told");
}

/// Until somebody publishes, a store that began a new run is unreadable for everyone who is not on the window.
#[tokio::test(start_paused = true)]
async fn a_new_run_of_the_store_is_a_gap_and_not_a_failure() {
    let log = Log::new();
    let t = topic("t");
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(hub.publish(&t, text(n)).await.unwrap());
    }
    log.fail_over(2);
    // A client with an id past the point of the failover; its topic is new to the window.
    let mut client = hub.subscribe(topic("quiet")).resume(ids[3]);
    match client.next().await {
        Some(Ok(Message::Gap(gap))) => assert_eq!(gap.reason, GapReason::Foreign),
        other => panic!("expected a gap, got {other:?}"),
    }
}

/// The same for a good id: the events come, then the stream fails instead of following.
#[tokio::test(start_paused = true)]
async fn a_good_id_of_an_older_run_is_followed_in_the_new_one() {
    let log = Log::new();
    let t = topic("t");
    log.append_now(&[Record::new(&t, text(0)), Record::new(&t, text(1))]);
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let run = ReplayStore::head(&log).await.unwrap().run();
    log.fail_over(0);
    let mut client = hub.subscribe(&t).resume(run.at(1));
    assert_eq!(next_event(&mut client).await.record().data().unwrap(), "1");
    match poll_immediate(client.next()).await {
        None => {}
        other => panic!("expected to wait, got {other:?}"),
    }
}

/// A page that was right when the store made it is taken for a store that goes nowhere.
#[tokio::test(start_paused = true)]
async fn a_burst_while_a_page_is_on_its_way_fails_nobody() {
    let mut store = Hooked::new(Arc::new(Ring::new()));
    store.read = Box::new(|ring, read| {
        async move {
            let page = ring.read(read).await;
            sleep(Duration::from_millis(50)).await; // the network
            page
        }
        .boxed()
    });
    let hub = Hub::builder().open(store).await.unwrap();
    let t = topic("t");
    let mut fresh = hub.subscribe(&t);
    assert!(poll_immediate(fresh.next()).await.is_none());
    for outcome in hub.publish_all((0..1025).map(|n| (&t, text(n)))).await {
        outcome.unwrap();
    }
    match fresh.next().await {
        Some(Ok(Message::Event(entry))) => assert_eq!(entry.record().data().unwrap(), "0"),
        other => panic!("{other:?}"),
    }
}

/// A fresh client is told an id past a loss before it is told of the loss.
#[tokio::test(start_paused = true)]
async fn no_id_past_a_gap_before_the_gap() {
    let log = Log::new();
    let t = topic("t");
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let response = hub.subscribe(&t); // attached at position 0 of the first run
    for n in 0..3 {
        hub.publish(topic("other"), text(n)).await.unwrap();
    }
    log.fail_over(1);
    hub.publish(&t, text("in the new run")).await.unwrap();
    // A restored copy that shares nothing.
    let new_log = Log::new();
    std::mem::swap(&mut *log.0.lock().unwrap(), &mut *new_log.0.lock().unwrap());
    hub.publish(&t, text("in the new log")).await.unwrap();
    let mut body = std::pin::pin!(response.into_http_response().into_body());
    let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(body.as_mut(), cx)).await.unwrap().unwrap();
    let first = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
    assert!(!first.contains("id:"), "the id is past the gap that was not yet reported: {first:?}");
}

/// Another follower's page tells the window that the topic finished "at" a place that the window has not reached.
#[tokio::test(start_paused = true)]
async fn a_finished_topic_ends_all_its_streams_without_a_heartbeat() {
    let ring = Arc::new(Ring::new());
    let t = topic("t");
    let first =
        ring.append([Record::new(&t, text(0)), Record::finish(&t, None)].into()).await.unwrap()[0].clone().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let go = Arc::new(Notify::new());
    let mut store = Hooked::new(ring.clone());
    let (counter, gate) = (calls.clone(), go.clone());
    store.read = Box::new(move |ring, read| {
        let (n, gate) = (counter.fetch_add(1, SeqCst), gate.clone());
        async move {
            let page = ring.read(read).await;
            if n == 0 {
                gate.notified().await;
            }
            page
        }
        .boxed()
    });
    store.append = Box::new(|ring, records| {
        async move {
            let outcomes = ring.append(records).await;
            sleep(Duration::from_millis(100)).await; // stored, and not yet answered
            outcomes
        }
        .boxed()
    });
    let hub = Hub::builder().open(store).await.unwrap();
    let mut b = hub.subscribe(&t).resume(first);
    assert!(poll_immediate(b.next()).await.is_none(), "its page is on the way");
    let publisher = tokio::spawn({
        let hub = hub.clone();
        async move { hub.publish(topic("other"), text("x")).await.unwrap() }
    });
    sleep(Duration::from_millis(10)).await;
    let mut a = hub.subscribe(&t).resume(first);
    assert!(a.next().await.is_none(), "a is told the end");
    go.notify_one();
    let b = tokio::spawn(async move { b.next().await.is_none() });
    publisher.await.unwrap();
    assert!(timeout(Duration::from_secs(600), b).await.expect("b never ends").unwrap());
}

/// The reset forgets that a topic is finished; who is already in the new run waits for ever.
#[tokio::test(start_paused = true)]
async fn a_reset_does_not_leave_a_finished_stream_open() {
    let log = Log::new();
    let t = topic("t");
    log.append_now(&[Record::new(&t, text(0)), Record::new(&t, text(1)), Record::finish(&t, None)]);
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let run = ReplayStore::head(&log).await.unwrap().run();
    log.fail_over(0);
    let mut client = hub.subscribe(&t).resume(run.at(1));
    assert_eq!(next_event(&mut client).await.record().data().unwrap(), "1"); // of a page in the new run
    hub.publish(topic("other"), text("x")).await.unwrap(); // the window learns of the new run
    let end = timeout(Duration::from_secs(600), client.next()).await;
    assert!(matches!(end, Ok(None)), "finished, but: {end:?}");
}

/// "how long a publisher waits": not while the recovery's read hangs.
#[tokio::test(start_paused = true)]
async fn a_publisher_does_not_wait_for_ever_for_a_recovery() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    faults.next_append(Fault::UnknownButStored);
    faults.next_read(Fault::Hangs);
    assert!(hub.publish(topic("t"), text(1)).await.unwrap_err().is_unknown());
    let behind = timeout(Duration::from_secs(3600), hub.publish(topic("t"), text(2))).await;
    assert!(behind.is_ok(), "an hour is more than the 5 seconds of append_timeout");
}

/// The appending task lives on the runtime of whoever came first. A current-thread runtime is driven only in `block_on`.
#[test]
fn a_runtime_that_nobody_drives_stops_no_other_publisher() {
    let mut store = Hooked::new(Arc::new(Ring::new()));
    store.append = Box::new(|ring, records| {
        async move {
            sleep(Duration::from_millis(100)).await;
            ring.append(records).await
        }
        .boxed()
    });
    let main = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let hub = main.block_on(Hub::builder().open(store)).unwrap();
    let synchronous = std::thread::spawn({
        let hub = hub.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(hub.publish(topic("t"), text("from a synchronous thread"))).unwrap();
            std::thread::sleep(Duration::from_secs(4)); // does something else, and keeps its runtime for the next time
            drop(runtime);
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    let started = std::time::Instant::now();
    let outcome =
        main.block_on(async { timeout(Duration::from_secs(3), hub.publish(topic("t"), text("from main"))).await });
    let took = started.elapsed();
    synchronous.join().unwrap();
    assert!(matches!(outcome, Ok(Ok(_))), "after {took:?}: {outcome:?}");
}

/// `append_timeout(Duration::ZERO)` polls the store's future in a loop that never waits.
#[test]
fn holds_no_append_timeout_spins() {
    let polls = Arc::new(AtomicUsize::new(0));
    let mut store = Hooked::new(Arc::new(Ring::new()));
    let p = polls.clone();
    store.append = Box::new(move |_, _| {
        let p = p.clone();
        std::future::poll_fn(move |_| {
            p.fetch_add(1, SeqCst);
            std::task::Poll::Pending
        })
        .boxed()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let hub = Hub::builder().append_timeout(Duration::ZERO).open(store).await.unwrap();
        let _ = timeout(Duration::from_millis(100), hub.publish(topic("t"), text(1))).await;
        sleep(Duration::from_millis(300)).await;
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    let polls = polls.load(SeqCst);
    assert!(polls < 1000, "the store's future was polled {polls} times in 0.4 s");
}

/// A store that panics after it has stored: nobody recovers until somebody publishes again.
#[tokio::test(start_paused = true)]
async fn an_event_that_was_stored_before_a_panic_is_shown() {
    let mut store = Hooked::new(Arc::new(Ring::new()));
    let first = AtomicUsize::new(0);
    store.append = Box::new(move |ring, records| {
        let panics = first.fetch_add(1, SeqCst) == 0;
        async move {
            let outcomes = ring.append(records).await;
            assert!(!panics, "a bug in the store");
            outcomes
        }
        .boxed()
    });
    let hub = Hub::builder().open(store).await.unwrap();
    let mut live = hub.subscribe(topic("t")).opened().await.unwrap();
    let error = hub.publish(topic("t"), text("stored")).await.unwrap_err();
    assert!(error.is_unknown());
    let seen = timeout(Duration::from_secs(3600), live.next()).await;
    assert!(
        seen.is_ok(),
        "`is_unknown`: \"if it has, subscribers will receive it\"; they did not in an hour ({error})"
    );
}
