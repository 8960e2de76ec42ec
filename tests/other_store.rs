//! A hub over a store that is not the ring: turns, batches, unknown outcomes, and how often the store is asked.

use futures_util::{StreamExt, future::poll_immediate};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tidings::{
    Event, Hub, LastEventId, Message, Resume, Start, Subscription, Topic,
    replay::{AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore, Ring},
    test_util::{Fault, Faults, FaultyStore, next_event},
};
use tokio::time::{Instant, timeout};

const HOUR: Duration = Duration::from_secs(3600);

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}

async fn hub() -> (Hub, Faults) {
    let (store, faults) = FaultyStore::new();
    (Hub::builder().open(store).await.unwrap(), faults)
}

async fn data(subscription: &mut Subscription) -> String {
    next_event(subscription).await.record().data().unwrap().into_owned()
}

async fn is_silent(subscription: &mut Subscription) -> bool {
    // Whatever is on its way has arrived when everything else waits for the clock.
    tokio::time::sleep(Duration::from_millis(1)).await;
    poll_immediate(subscription.next()).await.is_none()
}

#[tokio::test(start_paused = true)]
async fn what_is_published_is_stored_and_followed_in_order() {
    let (hub, _) = hub().await;
    let mut live = hub.subscribe(topic());
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(hub.publish(topic(), text(n)).await.unwrap());
    }
    for n in 0..10 {
        assert_eq!(data(&mut live).await, n.to_string());
    }
    let mut resumed = hub.subscribe(topic()).resume(ids[6]).opened().await.unwrap();
    assert_eq!(resumed.outcome(), Some(Resume::Resumed));
    assert_eq!(data(&mut resumed).await, "7");
    let mut all = hub.subscribe(topic()).start(Start::Earliest);
    assert_eq!(data(&mut all).await, "0");
}

#[tokio::test(start_paused = true)]
async fn publishers_who_come_while_an_append_is_under_way_share_the_next_batch() {
    let (hub, faults) = hub().await;
    let mut live = hub.subscribe(topic());
    faults.next_append(Fault::Hangs);
    let publishers: Vec<_> = (0..20)
        .map(|n| {
            let hub = hub.clone();
            tokio::spawn(async move { hub.publish(topic(), text(n)).await.unwrap() })
        })
        .collect();
    assert!(is_silent(&mut live).await);
    faults.release();
    let mut ids = Vec::new();
    for publisher in publishers {
        ids.push(publisher.await.unwrap().position());
    }
    assert_eq!(faults.appends(), 2);
    assert!(ids.is_sorted());
    for n in 0..20 {
        assert_eq!(data(&mut live).await, n.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_store_takes_is_followed_even_if_its_publisher_is_gone() {
    let (hub, faults) = hub().await;
    let mut live = hub.subscribe(topic());
    faults.next_append(Fault::Hangs);
    let mut publish = Box::pin(hub.publish(topic(), text("kept")));
    assert!(poll_immediate(&mut publish).await.is_none());
    drop(publish);
    assert!(is_silent(&mut live).await);
    faults.release();
    assert_eq!(data(&mut live).await, "kept");
}

#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_is_followed_by_nobody() {
    let (hub, faults) = hub().await;
    let mut live = hub.subscribe(topic()).opened().await.unwrap();
    let reads = faults.reads();
    faults.next_append(Fault::Refused);
    let error = hub.publish(topic(), text("refused")).await.unwrap_err();
    assert!(!error.is_unknown());
    assert!(std::error::Error::source(&error).is_some(), "the store's own error is told");
    assert!(is_silent(&mut live).await);
    hub.publish(topic(), text("taken")).await.unwrap();
    assert_eq!(data(&mut live).await, "taken");
    assert_eq!(faults.reads(), reads, "it is known that nothing was stored");
}

#[tokio::test(start_paused = true)]
async fn after_an_unknown_outcome_what_was_stored_is_followed_without_another_publish() {
    let (hub, faults) = hub().await;
    let mut live = hub.subscribe(topic());
    faults.next_append(Fault::UnknownButStored);
    assert!(hub.publish(topic(), text("stored")).await.unwrap_err().is_unknown());
    assert_eq!(data(&mut live).await, "stored");
    faults.next_append(Fault::Unknown);
    assert!(hub.publish(topic(), text("not stored")).await.unwrap_err().is_unknown());
    hub.publish(topic(), text("next")).await.unwrap();
    assert_eq!(data(&mut live).await, "next");
    assert!(is_silent(&mut live).await, "nothing is repeated");
}

#[tokio::test(start_paused = true)]
async fn while_it_is_not_known_what_was_stored_nothing_is_appended() {
    let (hub, faults) = hub().await;
    let mut live = hub.subscribe(topic()).opened().await.unwrap();
    faults.next_append(Fault::UnknownButStored);
    for _ in 0..3 {
        faults.next_read(Fault::Refused);
    }
    assert!(hub.publish(topic(), text("stored")).await.unwrap_err().is_unknown());
    let error = hub.publish(topic(), text("too early")).await.unwrap_err();
    assert!(!error.is_unknown(), "it was never given to the store");
    assert_eq!(faults.appends(), 1);
    assert_eq!(data(&mut live).await, "stored", "the hub asks again by itself");
    hub.publish(topic(), text("next")).await.unwrap();
    assert_eq!(data(&mut live).await, "next");
}

#[tokio::test(start_paused = true)]
async fn a_publisher_waits_no_longer_than_the_timeout_and_the_append_goes_on() {
    let (hub, faults) = hub().await;
    let mut live = hub.subscribe(topic());
    faults.next_append(Fault::Hangs);
    let start = Instant::now();
    let late = hub.publish(topic(), text("late"));
    let behind = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        hub.publish(topic(), text("behind")).await
    };
    let (late, behind) = tokio::join!(late, behind);
    assert!(late.unwrap_err().is_unknown());
    assert!(!behind.unwrap_err().is_unknown(), "it was never given to the store");
    assert_eq!(start.elapsed(), Duration::from_secs(10), "5 seconds each is the default");
    assert!(is_silent(&mut live).await);
    faults.release();
    assert_eq!(data(&mut live).await, "late");
    hub.publish(topic(), text("next")).await.unwrap();
    assert_eq!(data(&mut live).await, "next");
}

#[tokio::test(start_paused = true)]
async fn publish_now_is_for_stores_that_answer_at_once() {
    let (hub, faults) = hub().await;
    assert!(hub.publish_now(topic(), text(0)).unwrap_err().is_busy());
    hub.publish(topic(), text(1)).await.unwrap();
    assert_eq!(faults.reads(), 0, "it is known that nothing was stored");
}

#[tokio::test(start_paused = true)]
async fn publish_now_over_a_store_that_answers_at_once_is_as_publish() {
    let hub = Hub::builder().open(Arc::new(Ring::new())).await.unwrap();
    let mut live = hub.subscribe(topic());
    let first = hub.publish_now(topic(), text(0)).unwrap();
    let second = hub.publish(topic(), text(1)).await.unwrap();
    let third = hub.publish_now(topic(), text(2)).unwrap();
    assert!(first.position() < second.position() && second.position() < third.position());
    for n in 0..3 {
        assert_eq!(data(&mut live).await, n.to_string());
    }
    hub.finish(topic(), None).await.unwrap();
    assert!(hub.publish_now(topic(), text(3)).unwrap_err().is_finished());
    assert!(live.next().await.is_none());
    hub.close();
    assert!(hub.publish_now(topic(), text(4)).unwrap_err().is_closed());
    assert!(hub.publish(topic(), text(5)).await.unwrap_err().is_closed());
}

/// A ring whose answers are lost on their way.
struct Mumbles(Ring, Arc<AtomicBool>);

impl ReplayStore for Mumbles {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.head().await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let outcomes = self.0.append(records).await;
        if self.1.load(Relaxed) { Ok(Vec::new()) } else { outcomes }
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        self.0.read(read).await
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.0.forget(topic).await
    }

    fn try_append(&self, records: &Arc<[Record]>) -> Option<Result<Vec<Result<Cursor, Refused>>, AppendError>> {
        let outcomes = self.0.try_append(records);
        if self.1.load(Relaxed) { Some(Err(AppendError::unknown("lost"))) } else { outcomes }
    }
}

#[tokio::test(start_paused = true)]
async fn what_publish_now_does_not_know_is_found_out_without_another_publish() {
    let mumbles = Arc::new(AtomicBool::new(true));
    let hub = Hub::builder().open(Mumbles(Ring::new(), Arc::clone(&mumbles))).await.unwrap();
    let mut live = hub.subscribe(topic()).opened().await.unwrap();
    assert!(hub.publish_now(topic(), text("stored")).unwrap_err().is_unknown());
    mumbles.store(false, Relaxed);
    assert_eq!(timeout(HOUR, data(&mut live)).await.unwrap(), "stored");
    hub.publish(topic(), text("next")).await.unwrap();
    assert_eq!(data(&mut live).await, "next");
    hub.publish_now(topic(), text("at once")).unwrap();
    assert_eq!(data(&mut live).await, "at once");
}

#[test]
fn what_publish_now_does_not_know_outside_of_a_runtime_is_found_out_by_the_next_publish() {
    let mumbles = Arc::new(AtomicBool::new(true));
    let open = Hub::builder().open(Mumbles(Ring::new(), Arc::clone(&mumbles)));
    let hub = futures_util::FutureExt::now_or_never(open).unwrap().unwrap();
    assert!(hub.publish_now(topic(), text("stored")).unwrap_err().is_unknown());
    mumbles.store(false, Relaxed);
    assert!(hub.publish_now(topic(), text("too early")).unwrap_err().is_busy());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut live = hub.subscribe(topic());
        hub.publish(topic(), text("next")).await.unwrap();
        assert_eq!(data(&mut live).await, "stored");
        assert_eq!(data(&mut live).await, "next");
    });
}

#[test]
fn what_publish_now_does_not_know_outside_of_a_runtime_is_found_out_by_the_next_one_inside() {
    let mumbles = Arc::new(AtomicBool::new(true));
    let open = Hub::builder().open(Mumbles(Ring::new(), Arc::clone(&mumbles)));
    let hub = futures_util::FutureExt::now_or_never(open).unwrap().unwrap();
    assert!(hub.publish_now(topic(), text("stored")).unwrap_err().is_unknown());
    mumbles.store(false, Relaxed);
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
        assert!(hub.publish_now(topic(), text("too early")).unwrap_err().is_busy());
        tokio::time::sleep(Duration::from_secs(60)).await;
        hub.publish_now(topic(), text("next")).unwrap();
        let mut all = hub.subscribe(topic()).start(Start::Earliest);
        assert_eq!(data(&mut all).await, "stored");
        assert_eq!(data(&mut all).await, "next");
    });
}

/// A ring that keeps the name of each thread that appends.
struct Threads(Ring, Arc<std::sync::Mutex<Vec<String>>>);

impl ReplayStore for Threads {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.head().await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        self.1.lock().unwrap().push(std::thread::current().name().unwrap_or_default().to_owned());
        self.0.append(records).await
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        self.0.read(read).await
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.0.forget(topic).await
    }
}

#[test]
fn a_store_is_appended_to_in_the_runtime_of_the_hub_whoever_publishes() {
    let home =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("home").enable_all().build().unwrap();
    let threads = Arc::default();
    let hub = home.block_on(Hub::builder().open(Threads(Ring::new(), Arc::clone(&threads)))).unwrap();
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for n in 0..3 {
        other.block_on(hub.publish(topic(), text(n))).unwrap();
        // Each time anew, and not by the task that is still there.
        while home.metrics().num_alive_tasks() > 0 {
            std::thread::yield_now();
        }
    }
    assert_eq!(*threads.lock().unwrap(), ["home"; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_for_fewer_records_than_it_was_given_is_asked_what_it_took() {
    let hub = Hub::builder().open(Mumbles(Ring::new(), Arc::new(true.into()))).await.unwrap();
    let mut live = hub.subscribe(topic()).opened().await.unwrap();
    assert!(hub.publish(topic(), text("stored")).await.unwrap_err().is_unknown());
    assert_eq!(timeout(HOUR, data(&mut live)).await.unwrap(), "stored");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_of_a_loss_that_a_recovery_finds() {
    let (hub, faults) = hub().await;
    let mut live = hub.subscribe(topic()).opened().await.unwrap();
    let waiting = tokio::spawn(async move { live.next().await });
    tokio::task::yield_now().await;
    faults.next_append(Fault::UnknownButStored);
    faults.next_read(Fault::Refused);
    assert!(hub.publish(topic(), text("lost")).await.unwrap_err().is_unknown());
    faults.evict();
    let told = timeout(HOUR, waiting).await.expect("it is woken").unwrap();
    assert!(matches!(told, Some(Ok(Message::Gap(_)))), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_failure() {
    let (hub, faults) = hub().await;
    hub.publish(topic(), text(0)).await.unwrap();
    for id in [None, Some("nonsense")] {
        faults.next_read(Fault::Refused);
        let mut failed =
            hub.subscribe(topic()).start(Start::Earliest).resume(id.map_or(LastEventId::absent(), Into::into));
        assert!(failed.next().await.unwrap().unwrap_err().is_read());
        assert!(failed.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_read_is_asked_less_and_less_often_and_not_at_all_once_the_hub_is_gone() {
    let (store, faults) = FaultyStore::new();
    let store = Arc::new(store);
    let hub = Hub::builder().open(Arc::clone(&store)).await.unwrap();
    faults.next_append(Fault::Unknown);
    for _ in 0..10_000 {
        faults.next_read(Fault::Refused);
    }
    assert!(hub.publish(topic(), text("unknown")).await.unwrap_err().is_unknown());
    let mut reads = Vec::new();
    for _ in 0..3 {
        let before = faults.reads();
        tokio::time::sleep(Duration::from_secs(60)).await;
        reads.push(faults.reads() - before);
    }
    assert!((12..=20).contains(&reads[0]) && (11..=13).contains(&reads[1]) && reads[2] == reads[1], "{reads:?}");
    drop(hub);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(Arc::strong_count(&store), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_to_be_sent_is_not_lost_with_what_the_store_lets_go() {
    let (hub, faults) = hub().await;
    let mut slow = hub.subscribe(topic()).opened().await.unwrap();
    hub.publish(topic(), text("shown")).await.unwrap();
    faults.evict();
    faults.next_append(Fault::Unknown);
    assert!(hub.publish(topic(), text("not stored")).await.unwrap_err().is_unknown());
    hub.publish(topic(), text("next")).await.unwrap();
    assert_eq!(data(&mut slow).await, "shown");
    assert_eq!(data(&mut slow).await, "next");
}

#[test]
fn publishing_outside_of_a_runtime_is_an_error_and_not_a_panic() {
    let (hub, _) = futures_util::FutureExt::now_or_never(hub()).unwrap();
    let outcome = futures_util::FutureExt::now_or_never(hub.publish(topic(), text(0))).unwrap();
    assert!(outcome.unwrap_err().to_string().contains("runtime"));
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_ends_in_the_middle_leaves_a_hub_that_works() {
    let opened = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (hub, faults) = hub().await;
            faults.next_append(Fault::Hangs);
            let mut publish = Box::pin(hub.publish(topic(), text("lost")));
            while faults.appends() == 0 {
                assert!(poll_immediate(&mut publish).await.is_none());
                tokio::task::yield_now().await;
            }
            drop(publish);
            hub
        })
    });
    let hub = opened.join().unwrap();
    let mut live = hub.subscribe(topic());
    hub.publish(topic(), text("next")).await.unwrap();
    assert_eq!(data(&mut live).await, "next");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_application_in_the_middle_of_an_append_is_no_more_than_that() {
    for behind in [false, true] {
        let (sender, receiver) = std::sync::mpsc::channel();
        let panicked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (hub, faults) = hub().await;
                sender.send(hub.clone()).unwrap();
                faults.next_append(Fault::Hangs);
                let mut publish = Box::pin(hub.publish(topic(), text("lost")));
                while faults.appends() == 0 {
                    assert!(poll_immediate(&mut publish).await.is_none());
                    tokio::task::yield_now().await;
                }
                if behind {
                    assert!(poll_immediate(hub.publish(topic(), text("behind"))).await.is_none());
                }
                panic!("a bug in the application");
            })
        });
        assert!(panicked.join().is_err());
        let hub = receiver.recv().unwrap();
        let mut live = hub.subscribe(topic());
        hub.publish(topic(), text("next")).await.unwrap();
        assert_eq!(data(&mut live).await, "next");
    }
}

#[tokio::test(start_paused = true)]
async fn finished_topics_are_known_from_the_store_after_a_restart() {
    let (store, _) = FaultyStore::new();
    let store = std::sync::Arc::new(store);
    let hub = Hub::builder().open(store.clone()).await.unwrap();
    let first = hub.publish(topic(), text(0)).await.unwrap();
    let last = hub.finish(topic(), Some(text(1))).await.unwrap();
    drop(hub);

    let hub = Hub::builder().open(store).await.unwrap();
    let resumed = hub.subscribe(topic()).resume(last).opened().await.unwrap();
    assert_eq!(resumed.into_http_response().status(), 204);
    let resumed = hub.subscribe(topic()).resume(first).opened().await.unwrap();
    assert_eq!(resumed.into_http_response().status(), 200);
    let mut fresh = hub.subscribe(topic());
    assert_eq!(data(&mut fresh).await, "0");
    assert_eq!(data(&mut fresh).await, "1");
    assert!(fresh.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_quiet_subscriptions_cost_no_read_and_no_wake_up_while_another_topic_is_busy() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().window_events(16).open(store).await.unwrap();
    let mut quiet = Vec::new();
    for n in 0..1000 {
        let topic = Topic::new(format!("quiet-{n}")).unwrap();
        // Every other one has a past.
        if n % 2 == 0 {
            hub.publish(&topic, text("past")).await.unwrap();
        }
        quiet.push((topic.clone(), hub.subscribe(&topic).opened().await.unwrap()));
    }
    let wakes = std::sync::Arc::new(Wakes::default());
    let counting = std::task::Waker::from(wakes.clone());
    let mut context = std::task::Context::from_waker(&counting);
    for (_, subscription) in &mut quiet {
        assert!(subscription.poll_next_unpin(&mut context).is_pending());
    }
    let reads = faults.reads();
    let busy = Topic::new("busy").unwrap();
    for n in 0..5_000 {
        hub.publish(&busy, text(n)).await.unwrap();
        let (_, subscription) = &mut quiet[n % 1000];
        assert!(subscription.poll_next_unpin(&mut context).is_pending());
    }
    assert_eq!(faults.reads(), reads);
    assert_eq!(wakes.0.load(std::sync::atomic::Ordering::Relaxed), 0);
    for (n, (topic, subscription)) in quiet.iter_mut().enumerate() {
        hub.publish(&*topic, text(n)).await.unwrap();
        let Some(Ok(Message::Event(entry))) = subscription.next().await else { panic!() };
        assert_eq!(entry.record().data().unwrap(), n.to_string());
    }
    assert_eq!(faults.reads(), reads);
    assert_eq!(wakes.0.load(std::sync::atomic::Ordering::Relaxed), 1000);
}

#[derive(Default)]
struct Wakes(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_is_not_yet_reported_grows_and_is_reported_once() {
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().window_events(0).open(store).await.unwrap();
    let mut subscription = hub.subscribe(topic()).resume("nonsense");
    let lost = hub.publish(topic(), text(1)).await.unwrap();
    faults.evict();
    hub.publish(topic(), text(2)).await.unwrap();
    let Some(Ok(Message::Gap(gap))) = subscription.next().await else { panic!() };
    assert_eq!((gap.reason, gap.after, gap.through), (tidings::GapReason::Malformed, None, lost));
    assert_eq!(data(&mut subscription).await, "2");
    assert!(is_silent(&mut subscription).await);
}

#[tokio::test(start_paused = true)]
async fn forgetting_waits_for_an_append_that_is_under_way() {
    let (hub, faults) = hub().await;
    faults.next_append(Fault::Hangs);
    let (finisher, forgetter) = (hub.clone(), hub.clone());
    let finish = tokio::spawn(async move { finisher.finish(topic(), None).await });
    while faults.appends() == 0 {
        tokio::task::yield_now().await;
    }
    let forget = tokio::spawn(async move { forgetter.forget(topic()).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!forget.is_finished());
    faults.release();
    finish.await.unwrap().unwrap();
    forget.await.unwrap().unwrap();
    let mut live = hub.subscribe(topic());
    hub.publish(topic(), text("alive")).await.unwrap();
    assert_eq!(data(&mut live).await, "alive");
    assert!(is_silent(&mut live).await, "it did not end");
}

#[tokio::test(start_paused = true)]
async fn forgetting_does_not_wait_for_ever_for_a_store_that_cannot_be_read() {
    let (hub, faults) = hub().await;
    faults.next_append(Fault::UnknownButStored);
    for _ in 0..100_000 {
        faults.next_read(Fault::Refused);
    }
    assert!(hub.publish(topic(), text("stored")).await.unwrap_err().is_unknown());
    let hour = Duration::from_secs(3600);
    let forgotten = tokio::time::timeout(hour, hub.forget(topic())).await;
    assert!(forgotten.expect("the hub answers").is_err());
}
