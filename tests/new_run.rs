//! A store other than the ring that begins a new run under a living hub, leads nowhere, or answers late.

use futures_util::{StreamExt, future::poll_immediate};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tidings::{
    Event, GapReason, Hub, Message, Resume, Snapshots, Start, Subscription, SubscriptionError, Topic,
    replay::{AppendError, Cursor, Kind, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Run},
    test_util::next_event,
};
use tokio::{sync::Notify, time::timeout};

const T: Topic = Topic::from_static("t");
const OTHER: Topic = Topic::from_static("other");
const HOUR: Duration = Duration::from_secs(3600);

fn text(n: u32) -> Event {
    Event::new().data(n.to_string())
}

async fn publish(hub: &Hub, numbers: std::ops::Range<u32>) -> Vec<Cursor> {
    let mut ids = Vec::new();
    for n in numbers {
        ids.push(hub.publish(T, text(n)).await.unwrap());
    }
    ids
}

/// Waits for the numbers, and for no more than that.
async fn expect(subscription: &mut Subscription, numbers: impl IntoIterator<Item = u32>) {
    for n in numbers {
        let entry = timeout(HOUR, next_event(subscription)).await.expect("the event comes");
        assert_eq!(entry.record().data().unwrap(), n.to_string());
    }
    assert!(timeout(HOUR, subscription.next()).await.is_err(), "nothing follows");
}

async fn foreign(subscription: &mut Subscription) -> bool {
    let next = timeout(HOUR, subscription.next()).await.expect("it is told");
    matches!(next, Some(Ok(Message::Gap(gap))) if gap.reason == GapReason::Foreign)
}

/// A log that can begin a new run, as after a failover. It counts what it is asked.
#[derive(Clone, Default)]
struct Log(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    heads: AtomicUsize,
    reads: AtomicUsize,
    /// Whether the next append fails over instead, and says that it does not know.
    breaks: AtomicBool,
    /// Whether the next head or read, once it is made, waits until it is let go.
    holds: AtomicBool,
    go: Notify,
}

#[derive(Default)]
struct State {
    epoch: u64,
    /// Where each run began.
    began: Vec<u64>,
    newest: u64,
    records: BTreeMap<u64, Record>,
    finished: BTreeMap<Topic, u64>,
}

impl Log {
    fn new() -> Self {
        let log = Self::default();
        (log.0.state.lock().unwrap().epoch, log.0.state.lock().unwrap().began) = (Run::new_log().epoch, vec![0]);
        log
    }

    /// A new run, without the newest `lost` positions.
    fn fail_over(&self, lost: u64) -> Run {
        let mut state = self.0.state.lock().unwrap();
        state.newest -= lost;
        let newest = state.newest;
        state.records.retain(|position, _| *position <= newest);
        state.finished.retain(|_, position| *position <= newest);
        state.began.push(newest);
        state.run()
    }

    fn heads(&self) -> usize {
        self.0.heads.load(SeqCst)
    }

    fn reads(&self) -> usize {
        self.0.reads.load(SeqCst)
    }

    fn hold_next(&self) {
        self.0.holds.store(true, SeqCst);
    }

    fn let_go(&self) {
        self.0.go.notify_one();
    }

    async fn wait_if_held(&self) {
        if self.0.holds.swap(false, SeqCst) {
            self.0.go.notified().await;
        }
    }
}

impl State {
    fn run(&self) -> Run {
        Run { epoch: self.epoch, number: (self.began.len() - 1).try_into().unwrap() }
    }

    fn is_foreign(&self, cursor: Cursor) -> bool {
        let later = usize::try_from(cursor.run().number).unwrap().saturating_add(1);
        let good = self.began.iter().skip(later).min().copied().unwrap_or(self.newest);
        cursor.run().epoch != self.epoch || later > self.began.len() || cursor.position() > good
    }

    fn page(&self, read: &Read) -> Page {
        let mut page = Page::new(self.run().at(self.newest));
        let after = match read.from {
            ReadFrom::After(cursor) if self.is_foreign(cursor) => return Page::foreign(page.through),
            ReadFrom::After(cursor) => cursor.position(),
            _ => 0,
        };
        for (position, record) in self.records.range(after + 1..).filter(|(_, of)| read.topics.contains(of.topic())) {
            if page.entries.len() == read.max_events {
                page.through = page.entries.last().unwrap().cursor();
                break;
            }
            page.push(self.run().at(*position), record.clone());
        }
        let through = page.through.position();
        let ended = self.finished.iter().filter(|(topic, at)| read.topics.contains(topic) && **at <= through);
        page.finished = ended.map(|(topic, _)| topic.clone()).collect();
        page
    }
}

impl ReplayStore for Log {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.heads.fetch_add(1, SeqCst);
        let head = {
            let state = self.0.state.lock().unwrap();
            state.run().at(state.newest)
        };
        self.wait_if_held().await;
        Ok(head)
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        if self.0.breaks.swap(false, SeqCst) {
            self.fail_over(1);
            return Err(AppendError::unknown("the connection was cut"));
        }
        let mut state = self.0.state.lock().unwrap();
        let append = |record: &Record| {
            state.newest += 1;
            let position = state.newest;
            if record.kind() == Kind::Finish {
                state.finished.insert(record.topic().clone(), position);
            }
            state.records.insert(position, record.clone());
            Ok(state.run().at(position))
        };
        Ok(records.iter().map(append).collect())
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        assert!(self.0.reads.fetch_add(1, SeqCst) < 1000, "it is read again and again");
        let page = self.0.state.lock().unwrap().page(&read);
        self.wait_if_held().await;
        Ok(page)
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        let mut state = self.0.state.lock().unwrap();
        state.records.retain(|_, record| *record.topic() != topic);
        state.finished.remove(&topic);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn catching_up_takes_as_many_reads_as_there_are_pages_and_no_other_question() {
    let log = Log::new();
    let hub = Hub::builder().window_events(0).page(1, 1 << 20).open(log.clone()).await.unwrap();
    let ids = publish(&hub, 0..100).await;
    let mut behind = hub.subscribe(T).resume(ids[0]);
    expect(&mut behind, 1..100).await;
    assert_eq!((log.heads(), log.reads()), (1, 99));
}

#[tokio::test(start_paused = true)]
async fn who_is_at_the_tip_of_a_topic_that_is_known_costs_no_read() {
    let log = Log::new();
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let _keeps_it_known = hub.subscribe(T).opened().await.unwrap();
    let ids = publish(&hub, 0..3).await;
    let reads = log.reads();
    for subscription in [hub.subscribe(T), hub.subscribe(T).resume(ids[2]), hub.subscribe(T).start(Start::Now)] {
        assert!(subscription.outcome().is_some());
        expect(&mut { subscription }, []).await;
    }
    assert_eq!(log.reads(), reads);
    assert!(hub.subscribe(T).start(Start::Earliest).outcome().is_none(), "the store is to be asked");
    let snapshots = Snapshots::new(|_| async { Ok::<_, ReadError>(Vec::new()) });
    let quiet = hub.subscribe(Topic::from_static("quiet")).snapshot_first(&snapshots);
    assert_eq!(quiet.outcome(), Some(Resume::Fresh));
}

#[tokio::test(start_paused = true)]
async fn who_finds_a_new_run_goes_on_in_it_and_asks_only_once() {
    let log = Log::new();
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let ids = publish(&hub, 0..3).await;
    let mut live = hub.subscribe(T).opened().await.unwrap();
    expect(&mut live, []).await;
    log.fail_over(0);
    let quiet = Topic::from_static("quiet");
    let mut first = hub.subscribe(quiet).resume(ids[0]);
    expect(&mut first, []).await;
    assert_eq!(first.cursor().unwrap().run().number, 1);
    // The others learn of it, without a publish.
    expect(&mut live, []).await;
    assert_eq!(live.cursor().unwrap().run().number, 1);
    assert!(log.heads() == 2 && log.reads() <= 4, "{} heads, {} reads", log.heads(), log.reads());
    publish(&hub, 3..4).await;
    expect(&mut live, [3]).await;
    expect(&mut hub.subscribe(T).resume(ids[1]), [2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_failover_lost_is_shown_to_nobody() {
    let log = Log::new();
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let mut slow = hub.subscribe(T).opened().await.unwrap();
    publish(&hub, 0..2).await;
    expect(&mut slow, 0..2).await;
    for n in 0..10 {
        hub.publish(Topic::new(format!("old-{n}")).unwrap(), text(n)).await.unwrap();
    }
    publish(&hub, 2..4).await;
    let run = log.fail_over(2);
    publish(&hub, 4..5).await;
    expect(&mut hub.subscribe(T).resume(run.at(0)), [0, 1, 4]).await;
    expect(&mut hub.subscribe(T).resume(run.at(12)), [4]).await;
    expect(&mut slow, [4]).await;
    let held = format!("{hub:?}");
    assert!(held.contains("topics: 1,") && held.contains("entries: 1,"), "{held}");
}

#[tokio::test(start_paused = true)]
async fn a_failover_in_the_middle_of_an_append_is_told_without_another_publish() {
    let log = Log::new();
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let mut live = hub.subscribe(T);
    publish(&hub, 0..3).await;
    expect(&mut live, 0..3).await;
    let waiting = tokio::spawn(async move {
        assert!(foreign(&mut live).await);
        live
    });
    tokio::task::yield_now().await;
    log.0.breaks.store(true, SeqCst);
    assert!(hub.publish(T, text(3)).await.unwrap_err().is_unknown());
    let mut live = timeout(HOUR / 2, waiting).await.expect("it is woken").unwrap();
    expect(&mut live, []).await;
    publish(&hub, 4..5).await;
    expect(&mut live, [4]).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_does_not_move_the_hub_back() {
    let log = Log::new();
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    let ids = publish(&hub, 0..2).await;
    log.fail_over(0);
    // It finds the new run, and asks where that ends.
    let quiet = Topic::from_static("quiet");
    let mut first = hub.subscribe(quiet).resume(ids[0]);
    let heads = log.heads();
    log.hold_next();
    let held = log.reads();
    assert!(poll_immediate(first.next()).await.is_none());
    assert_eq!((log.heads(), log.reads()), (heads, held + 1));
    log.let_go();
    log.hold_next();
    assert!(poll_immediate(first.next()).await.is_none());
    assert_eq!(log.heads(), heads + 1);
    // Meanwhile others publish.
    publish(&hub, 2..4).await;
    log.let_go();
    expect(&mut first, []).await;
    let mut fresh = hub.subscribe(T);
    expect(&mut fresh, []).await;
    publish(&hub, 4..5).await;
    expect(&mut fresh, [4]).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_read_before_it_was_forgotten_ends_nobody() {
    let log = Log::new();
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    publish(&hub, 0..1).await;
    let last = hub.finish(T, None).await.unwrap();
    drop(hub);
    let hub = Hub::builder().open(log.clone()).await.unwrap();
    log.hold_next();
    let mut late = hub.subscribe(T).resume(last);
    assert!(poll_immediate(late.next()).await.is_none());
    hub.forget(T).await.unwrap();
    log.let_go();
    expect(&mut late, []).await;
    expect(&mut hub.subscribe(T), []).await;
    publish(&hub, 1..2).await;
    expect(&mut late, [1]).await;
}

/// A store that is read wrongly.
struct Broken(Log, fn(&Read, Page) -> Page);

impl ReplayStore for Broken {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.head().await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        self.0.append(records).await
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        Ok(self.1(&read, self.0.read(read.clone()).await?))
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.0.forget(topic).await
    }
}

/// How a subscription fails that resumes after the second of four events, with a store that is read like this.
async fn failure(read: fn(&Read, Page) -> Page) -> Option<SubscriptionError> {
    let hub = Hub::builder().window_events(0).open(Broken(Log::new(), read)).await.unwrap();
    let ids = publish(&hub, 0..4).await;
    timeout(HOUR, hub.subscribe(T).resume(ids[1]).next()).await.ok()??.err()
}

#[tokio::test(start_paused = true)]
async fn a_store_that_leads_nowhere_or_back_fails_the_subscription() {
    let nowhere = failure(|read, page| match read.from {
        ReadFrom::After(cursor) => Page::new(cursor),
        _ => page,
    });
    assert!(nowhere.await.unwrap().is_read());
    let nowhere_and_foreign = failure(|read, page| match read.from {
        ReadFrom::After(cursor) => Page::foreign(cursor),
        _ => page,
    });
    assert!(nowhere_and_foreign.await.unwrap().is_read());
    let back = failure(|read, page| match read.from {
        ReadFrom::After(cursor) if cursor.position() == 2 => Page::new(cursor.run().at(1)),
        _ => page,
    });
    assert!(back.await.unwrap().is_read());
}

#[tokio::test(start_paused = true)]
async fn an_id_ahead_of_the_log_is_foreign_and_no_failure() {
    let hub = Hub::builder().open(Log::new()).await.unwrap();
    let ids = publish(&hub, 0..4).await;
    let mut ahead = hub.subscribe(T).resume(ids[0].run().at(100));
    assert!(foreign(&mut ahead).await);
    expect(&mut ahead, []).await;
    hub.publish(OTHER, text(0)).await.unwrap();
    publish(&hub, 4..5).await;
    expect(&mut ahead, [4]).await;
}

#[tokio::test(start_paused = true)]
async fn one_gap_is_told_once_where_a_store_has_one_floor_for_all() {
    let coarse = |_: &Read, mut page: Page| {
        page.floor = page.floor.max(3);
        page
    };
    let hub = Hub::builder().window_events(0).page(1, 1 << 20).open(Broken(Log::new(), coarse)).await.unwrap();
    let ids = publish(&hub, 0..4).await;
    let mut behind = hub.subscribe(T).resume(ids[0]);
    let next = behind.next().await;
    assert!(matches!(next, Some(Ok(Message::Gap(gap))) if gap.reason == GapReason::Evicted), "{next:?}");
    expect(&mut behind, 1..4).await;
}
