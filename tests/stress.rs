//! Many threads at once, over everything that a log can have.

use futures_util::{StreamExt, future::poll_immediate};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tidings::{
    Event, Hub, LastEventId, Message, Resume, Topic, Topics,
    replay::{Kind, Record, Ring},
};

const TOPICS: usize = 4;

fn topic(index: usize) -> Topic {
    Topic::new(index.to_string()).unwrap()
}

#[derive(Clone, Copy)]
struct Published {
    topic: usize,
    key: Option<usize>,
}

#[derive(Debug)]
enum Seen {
    Event(u64),
    Gap(u64),
}

async fn hub(other: bool) -> Hub {
    let ring = Ring::new().events_per_topic(200).bytes_per_topic(60_000).total_bytes(150_000);
    let builder = Hub::builder().window_events(20).page(7, 1 << 20);
    if other { builder.open(Arc::new(ring)).await.unwrap() } else { builder.ring(ring).build() }
}

async fn publisher(hub: Hub, over: Arc<AtomicBool>, truth: Arc<Mutex<HashMap<u64, Published>>>) {
    while !over.load(Ordering::Relaxed) {
        let (index, key) = (fastrand::usize(..TOPICS), fastrand::usize(..5));
        let event = Event::new().data("x".repeat(fastrand::usize(..50)));
        let (record, key) = match fastrand::u8(..10) {
            0..=3 => (Record::new(topic(index), event), None),
            4..=7 => (Record::latest(topic(index), key.to_string(), event), Some(key)),
            8 => (Record::removal(topic(index), key.to_string(), event), Some(key)),
            _ => {
                hub.publish_ephemeral(topic(index), event).unwrap();
                continue;
            }
        };
        assert_ne!(record.kind(), Kind::Finish);
        let cursor = hub.publish_record(record).await.unwrap();
        truth.lock().unwrap().insert(cursor.position(), Published { topic: index, key });
        if fastrand::u8(..8) == 0 {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..400))).await;
        }
    }
}

async fn client(hub: Hub, over: Arc<AtomicBool>, topics: Vec<usize>) -> (Vec<usize>, u64, Vec<Seen>) {
    let mut seen = Vec::new();
    let mut id: Option<String> = None;
    let mut began = 0;
    loop {
        let last = over.load(Ordering::Relaxed);
        let followed = Topics::new(topics.iter().copied().map(topic)).unwrap();
        let mut subscription = hub.subscribe(followed).resume(LastEventId::from(id.clone()));
        if fastrand::bool() && !last {
            subscription = subscription.min_interval(Duration::from_millis(2));
        }
        let mut subscription = subscription.opened().await.unwrap();
        if subscription.outcome() == Some(Resume::Fresh) {
            began = subscription.cursor().unwrap().position();
        }
        let count = if last { usize::MAX } else { fastrand::usize(..200) };
        for _ in 0..count {
            let next = if last {
                match tokio::time::timeout(Duration::from_millis(200), subscription.next()).await {
                    Ok(next) => next,
                    Err(_) => break,
                }
            } else if fastrand::u8(..4) == 0 {
                tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
                continue;
            } else {
                let Some(next) = poll_immediate(subscription.next()).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                next
            };
            match next.expect("no end").unwrap() {
                Message::Event(entry) if entry.is_ephemeral() => {}
                Message::Event(entry) => seen.push(Seen::Event(entry.cursor().position())),
                Message::Gap(gap) => seen.push(Seen::Gap(gap.through.position())),
                other => panic!("{other:?}"),
            }
        }
        id = subscription.cursor().map(|cursor| cursor.to_string());
        if last {
            return (topics, began, seen);
        }
    }
}

fn judge(truth: &HashMap<u64, Published>, topics: &[usize], began: u64, seen: &[Seen]) {
    let mut all: Vec<(u64, Published)> =
        truth.iter().map(|(at, it)| (*at, *it)).filter(|(at, it)| *at > began && topics.contains(&it.topic)).collect();
    all.sort_by_key(|(at, _)| *at);
    let mut newest = HashMap::new();
    for (at, it) in &all {
        if let Some(key) = it.key {
            newest.insert((it.topic, key), *at);
        }
    }
    let replaced = |at: u64, it: &Published| it.key.is_some_and(|key| newest[&(it.topic, key)] > at);
    let (mut next, mut excused) = (0, 0);
    for one in seen {
        match *one {
            Seen::Gap(through) => excused = excused.max(through),
            Seen::Event(at) => loop {
                let (position, it) =
                    all.get(next).copied().unwrap_or_else(|| panic!("{at} came again, or is not known"));
                next += 1;
                if position == at {
                    break;
                }
                assert!(position < at, "{at} came again, or late");
                assert!(position <= excused || replaced(position, &it), "{position} was skipped before {at}");
            },
        }
    }
    for (position, it) in &all[next..] {
        assert!(*position <= excused || replaced(*position, it), "{position} never came");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_event_once_or_its_newer_one_or_a_gap() {
    for other in [false, true] {
        let hub = hub(other).await;
        let over = Arc::new(AtomicBool::new(false));
        let truth = Arc::new(Mutex::new(HashMap::new()));
        let publishing = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> =
            (0..3).map(|_| tokio::spawn(publisher(hub.clone(), Arc::clone(&publishing), Arc::clone(&truth)))).collect();
        let clients: Vec<_> = [vec![0], vec![1], vec![0, 1], vec![0, 1, 2, 3], vec![2, 3], vec![3]]
            .map(|topics| tokio::spawn(client(hub.clone(), Arc::clone(&over), topics)))
            .into();
        let millis = std::env::var("TIDINGS_MILLIS").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
        let end = tokio::time::Instant::now() + Duration::from_millis(millis);
        while tokio::time::Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
            hub.forget(topic(fastrand::usize(..TOPICS))).await.unwrap();
        }
        publishing.store(true, Ordering::Relaxed);
        for publisher in publishers {
            publisher.await.unwrap();
        }
        over.store(true, Ordering::Relaxed);
        let truth_of = |all: &Mutex<HashMap<u64, Published>>| all.lock().unwrap().clone();
        let (mut events, mut gaps) = (0, 0);
        for client in clients {
            let (topics, began, seen) = client.await.unwrap();
            events += seen.iter().filter(|seen| matches!(seen, Seen::Event(_))).count();
            gaps += seen.len();
            judge(&truth_of(&truth), &topics, began, &seen);
        }
        println!("other {other}: {} published, {events} seen, {} gaps", truth.lock().unwrap().len(), gaps - events);
    }
}

/// Topics come and go on several threads: nothing panics, and nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn topics_come_and_go() {
    let hub = Hub::builder().explicit_topics().forget_idle_topics(Duration::from_millis(3)).build();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let hub = hub.clone();
            tokio::spawn(async move {
                let mut producers = Vec::new();
                let mut readers = Vec::new();
                let rounds = std::env::var("TIDINGS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
                for _ in 0..rounds {
                    let topic = topic(fastrand::usize(..TOPICS));
                    match fastrand::u8(..12) {
                        0 => drop(hub.create(&topic)),
                        1 => producers.push(hub.producer(&topic).last_will(Event::new().data("will"))),
                        2 => producers.push(hub.producer(&topic)),
                        3 if !producers.is_empty() => {
                            drop(producers.swap_remove(fastrand::usize(..producers.len())));
                        }
                        4 => hub.forget(&topic).await.unwrap(),
                        5 => readers.push(hub.subscribe(&topic)),
                        6 if !readers.is_empty() => {
                            drop(readers.swap_remove(fastrand::usize(..readers.len())));
                        }
                        7 => drop(hub.stop(&topic)),
                        8 => drop(hub.publish(&topic, Event::new().data("x")).await),
                        9 => {
                            if let Some(producer) = producers.last() {
                                let _ = tokio::time::timeout(Duration::from_micros(300), producer.stopped()).await;
                            }
                        }
                        10 => {
                            if let Some(producer) = producers.last() {
                                let wait = producer.abandoned(Duration::from_micros(100));
                                let _ = tokio::time::timeout(Duration::from_micros(300), wait).await;
                            }
                        }
                        _ => {
                            if let Some(reader) = readers.last_mut() {
                                poll_immediate(reader.next()).await;
                            }
                        }
                    }
                    let most = 20;
                    producers.truncate(most);
                    readers.truncate(most);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for index in 0..TOPICS {
        hub.forget(topic(index)).await.unwrap();
        assert!(hub.publish(topic(index), Event::new()).await.unwrap_err().is_unknown_topic());
    }
    let left = format!("{hub:?}");
    assert!(left.contains("topics: 0") && left.contains("subscriptions: 0"), "{left}");
}
