//! Hostile interleavings of what a subscription does: forgetting, snapshots, lag and filters.

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, poll_immediate},
};
use http_body_util::BodyExt;
use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tidings::{
    Event, GapPolicy, Hub, LagBudget, Message, Snapshots, Subscription, Topic, Topics,
    replay::{AppendError, Cursor, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Ring, Run},
};
use tokio::{
    sync::Notify,
    time::{advance, sleep},
};

fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}
#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn text(text: impl ToString) -> Event {
    Event::new().data(text.to_string())
}
async fn all(s: &mut Subscription) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(next) = poll_immediate(s.next()).await {
        seen.push(match next {
            None => format!("END {:?}", s.end_reason()),
            Some(Ok(Message::Event(e))) => e.record().data().unwrap_or_default().into_owned(),
            Some(Ok(Message::Gap(gap))) => format!("GAP {} {}", gap.reason, gap.through.position()),
            Some(Ok(Message::Snapshot(_))) => "SNAPSHOT".to_owned(),
            Some(other) => panic!("{other:?}"),
        });
        if seen.last().unwrap().starts_with("END") {
            break;
        }
    }
    seen
}

/// A store whose first read answers late, with the page as it was.
struct Late(Ring, Arc<Notify>, AtomicUsize);
impl ReplayStore for Late {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.0.head().await
    }
    async fn append(&self, r: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        self.0.append(r).await
    }
    async fn read(&self, r: Read) -> Result<Page, ReadError> {
        let page = self.0.read(r).await;
        if self.2.fetch_add(1, SeqCst) == 0 {
            self.1.notified().await;
        }
        page
    }
    async fn forget(&self, t: Topic) -> Result<(), ReadError> {
        self.0.forget(t).await
    }
}

/// A page that was read before `Hub::forget` and is taken over after it brings the end back.
#[tokio::test(start_paused = true)]
async fn a_forgotten_end_does_not_come_back() {
    let (ring, t) = (Ring::new(), topic("t"));
    let first =
        ring.append([Record::new(&t, text(0)), Record::finish(&t, None)].into()).await.unwrap()[0].clone().unwrap();
    let go = Arc::new(Notify::new());
    let hub = Hub::builder().open(Late(ring, go.clone(), AtomicUsize::new(0))).await.unwrap();
    let mut slow = hub.subscribe(&t).resume(first);
    assert!(poll_immediate(slow.next()).await.is_none());
    hub.forget(&t).await.unwrap();
    go.notify_one();
    let _ = poll_immediate(slow.next()).await;
    let id = hub.publish(&t, text("again")).await.unwrap();
    let mut live = hub.subscribe(&t).resume(id).opened().await.unwrap();
    assert_eq!(all(&mut live).await, [""; 0], "the topic is alive again");
}

/// A ring that was filled before the hub had it: the window never forgets the end that it learned.
#[tokio::test(start_paused = true)]
async fn a_learned_end_is_forgotten_with_the_rings() {
    let (ring, t) = (Ring::new().keep_finished(Duration::from_secs(60)).max_age(Duration::from_secs(60)), topic("t"));
    ring.append([Record::finish(&t, None)].into()).await.unwrap();
    let hub = Hub::builder().ring(ring).build();
    drop(hub.subscribe(&t).opened().await.unwrap());
    advance(Duration::from_secs(3600)).await;
    let id = hub.publish(&t, text("again")).await.unwrap();
    let mut live = hub.subscribe(&t).resume(id);
    assert_eq!(all(&mut live).await, [""; 0], "the topic is alive again");
}

/// Who joins a snapshot that began before its gap loses what was evicted in between.
#[tokio::test(start_paused = true)]
async fn a_shared_snapshot_covers_the_gap_of_everyone_who_shares_it() {
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let snapshots = Snapshots::new(move |_: Topics| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            Ok::<_, Infallible>(vec![text("state")])
        }
    });
    let hub = Hub::builder()
        .window_events(1)
        .ring(Ring::new().events_per_topic(3))
        .on_gap(GapPolicy::Snapshot(snapshots))
        .build();
    let t = topic("t");
    let old = hub.publish(&t, text(1)).await.unwrap();
    for n in 2..=9 {
        hub.publish(&t, text(n)).await.unwrap();
    }
    let mut a = hub.subscribe(&t).resume(old);
    assert_eq!(all(&mut a).await, ["GAP evicted 6"]); // and its snapshot is being taken, from position 9
    for n in 10..=20 {
        hub.publish(&t, text(n)).await.unwrap();
    }
    let mut b = hub.subscribe(&t).resume(old);
    assert_eq!(all(&mut b).await, ["GAP evicted 17"]); // joins it
    go.notify_one();
    sleep(Duration::from_millis(1)).await;
    all(&mut a).await;
    let seen = all(&mut b).await;
    assert_eq!(seen[0], "SNAPSHOT");
    assert!(
        seen[1].starts_with("GAP"),
        "the snapshot has what was up to 9; 10 to 17 are neither in it nor sent: {seen:?}"
    );
}

/// A log that can begin a new run.
#[derive(Clone)]
struct Log(Arc<Mutex<State>>);

/// The run, the newest position, the records, and where each run began.
type State = (Run, u64, Vec<(u64, Record)>, Vec<u64>);
impl ReplayStore for Log {
    async fn head(&self) -> Result<Cursor, ReadError> {
        let log = self.0.lock().unwrap();
        Ok(log.0.at(log.1))
    }
    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let mut log = self.0.lock().unwrap();
        Ok(records
            .iter()
            .map(|record| {
                log.1 += 1;
                let position = log.1;
                log.2.push((position, record.clone()));
                Ok(log.0.at(position))
            })
            .collect())
    }
    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let log = self.0.lock().unwrap();
        let after = match read.from {
            ReadFrom::After(c) => {
                let good = log.3.iter().skip(c.run().number as usize + 1).min().copied().unwrap_or(log.1);
                if c.run().epoch != log.0.epoch || c.position() > good {
                    return Ok(Page::foreign(log.0.at(log.1)));
                }
                c.position()
            }
            _ => 0,
        };
        let mut page = Page::new(log.0.at(log.1));
        for (p, record) in &log.2 {
            if *p > after && read.topics.contains(record.topic()) {
                page.push(log.0.at(*p), record.clone());
            }
        }
        Ok(page)
    }
    fn forget(&self, _: Topic) -> impl Future<Output = Result<(), ReadError>> + Send {
        let f: BoxFuture<'static, _> = async { unreachable!() }.boxed();
        f
    }
}

/// After a new run, what is handed over no longer counts, and what is published does.
#[tokio::test(start_paused = true)]
async fn a_reader_that_keeps_up_does_not_lag_in_a_new_run() {
    let log = Log(Arc::new(Mutex::new((Run::new_log(), 0, Vec::new(), vec![0]))));
    let hub = Hub::builder().lag_budget(LagBudget::new().events(5)).open(log.clone()).await.unwrap();
    let t = topic("t");
    let mut live = hub.subscribe(&t).opened().await.unwrap();
    hub.publish(&t, text(0)).await.unwrap();
    assert_eq!(all(&mut live).await, ["0"]);
    {
        let mut log = log.0.lock().unwrap();
        log.0.number += 1;
        let at = log.1;
        log.3.push(at);
    }
    for n in 1..20 {
        hub.publish(&t, text(n)).await.unwrap();
        assert_eq!(all(&mut live).await, [n.to_string()]);
    }
}

/// "The position moves past what is left out, and heartbeats tell the client so."
#[tokio::test(start_paused = true)]
async fn a_heartbeat_tells_of_what_was_left_out_behind_an_event() {
    let hub = Hub::new();
    let t = topic("t");
    let response = hub.subscribe(&t).filter(|record| record.data().as_deref() != Some("no")).into_http_response();
    hub.publish(&t, text("yes")).await.unwrap();
    let left_out = hub.publish(&t, text("no")).await.unwrap();
    let mut body = pin!(response.into_body());
    let mut next =
        async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
    assert!(next().await.starts_with("retry"));
    assert!(next().await.contains("yes"));
    let heartbeat = next().await;
    assert!(heartbeat.contains(&left_out.to_string()), "{heartbeat:?}");
}

/// A client whose filter wants nothing is read for in one poll, however much there is.
#[tokio::test]
async fn one_poll_does_a_bounded_amount_of_work() {
    let hub = Hub::builder()
        .ring(Ring::new().events_per_topic(1 << 20).bytes_per_topic(1 << 30).total_bytes(1 << 30))
        .build();
    let t = topic("t");
    for n in 0..100_000 {
        hub.publish_now(&t, text(n)).unwrap();
    }
    let calls = Arc::new(AtomicUsize::new(0));
    let counting = calls.clone();
    let mut s = hub.subscribe(&t).start(tidings::Start::Earliest).filter(move |_| {
        counting.fetch_add(1, SeqCst);
        false
    });
    let _ = poll_immediate(s.next()).await;
    let calls = calls.load(SeqCst);
    assert!(calls <= 10_000, "{calls} events were read and dropped in one poll");
}
