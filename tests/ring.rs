//! The bounds of the ring, at their edges.

use std::time::Duration;
use tidings::{
    Event, Topic,
    replay::{Page, Read, ReadFrom, Record, ReplayStore, Ring},
};

const T: Topic = Topic::from_static("t");

async fn page(ring: &Ring) -> Page {
    let mut read = Read::new(T, ReadFrom::Earliest);
    (read.max_events, read.max_bytes) = (usize::MAX, usize::MAX);
    ring.read(read).await.unwrap()
}

async fn held(ring: &Ring) -> usize {
    page(ring).await.entries.len()
}

async fn append(ring: &Ring, record: Record) {
    ring.append([record].into()).await.unwrap().remove(0).unwrap();
}

#[tokio::test]
async fn bytes_are_those_of_the_event_its_key_and_its_labels_and_a_little_for_the_books() {
    for (key, name, value) in [(0, 0, 0), (5000, 0, 0), (0, 5000, 3), (0, 3, 5000)] {
        for ring in [Ring::new().bytes_per_topic(100_000), Ring::new().total_bytes(100_000)] {
            for _ in 0..50 {
                let record = Record::new(T, Event::new().data("x".repeat(5000)));
                let record = record.with_key("k".repeat(key)).with_label("n".repeat(name), "v".repeat(value));
                append(&ring, record).await;
            }
            let (held, size) = (held(&ring).await, 5000 + key + name + value);
            assert!((100_000 / (size + 500)..=100_000 / size).contains(&held), "{held} of {size} bytes each");
        }
    }
}

#[tokio::test]
async fn what_one_bound_removed_does_not_count_for_another() {
    let ring = Ring::new().events_per_topic(5).total_bytes(100_000);
    for _ in 0..1000 {
        append(&ring, Record::new(T, Event::new().data("x".repeat(1000)))).await;
        assert!(held(&ring).await > 0);
    }
    assert_eq!(held(&ring).await, 5);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_busy_topic_goes_when_it_is_old_or_others_need_the_room() {
    for other in [None, Some(Record::new(Topic::from_static("other"), Event::new().data("x".repeat(99_000))))] {
        let ring = Ring::new().events_per_topic(5).max_age(Duration::from_secs(60)).total_bytes(100_000);
        for _ in 0..1000 {
            append(&ring, Record::new(T, Event::new().data("x"))).await;
        }
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(held(&ring).await, 5);
        match other {
            Some(other) => append(&ring, other).await,
            None => tokio::time::advance(Duration::from_secs(1)).await,
        }
        assert!(held(&ring).await < 3, "{}", held(&ring).await);
    }
}

#[tokio::test]
async fn a_page_ends_with_the_event_that_reaches_its_bytes() {
    let ring = Ring::new();
    for _ in 0..3 {
        append(&ring, Record::new(T, Event::new().data("x"))).await;
    }
    let frame = page(&ring).await.entries[0].frame().len();
    for (max_bytes, events) in [(1, 1), (frame, 1), (frame + 1, 2), (2 * frame, 2), (2 * frame + 1, 3)] {
        let mut read = Read::new(T, ReadFrom::Earliest);
        read.max_bytes = max_bytes;
        assert_eq!(ring.read(read).await.unwrap().entries.len(), events);
    }
}

#[tokio::test]
async fn what_is_not_too_large_is_held() {
    let bounds: [fn(usize) -> Ring; 2] =
        [|bytes| Ring::new().bytes_per_topic(bytes), |bytes| Ring::new().total_bytes(bytes)];
    for bounded in bounds {
        let mut taken = 0;
        for bytes in 0..1000 {
            let ring = bounded(bytes);
            let outcomes = ring.append([Record::new(T, Event::new().data("x"))].into()).await.unwrap();
            assert_eq!(held(&ring).await, usize::from(outcomes[0].is_ok()), "{bytes} bytes");
            taken += held(&ring).await;
        }
        assert!((500..1000).contains(&taken), "{taken}");
    }
}

#[tokio::test(start_paused = true)]
async fn state_goes_after_its_time_however_often_other_state_was_replaced() {
    let ring = Ring::new().keep_latest(Duration::from_secs(60));
    append(&ring, Record::latest(T, "seldom", Event::new().data("x"))).await;
    for _ in 0..1000 {
        append(&ring, Record::latest(T, "often", Event::new().data("x"))).await;
    }
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(held(&ring).await, 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(held(&ring).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_end_is_remembered_for_its_time_however_many_others_were_forgotten() {
    let ring = Ring::new().keep_finished(Duration::from_secs(3600));
    append(&ring, Record::finish(T, None)).await;
    for _ in 0..1000 {
        let other = Topic::from_static("other");
        append(&ring, Record::finish(other.clone(), None)).await;
        ring.forget(other).await.unwrap();
    }
    let again = || ring.append([Record::new(T, Event::new())].into());
    tokio::time::advance(Duration::from_secs(3599)).await;
    assert!(again().await.unwrap()[0].is_err());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(again().await.unwrap()[0].is_ok());
}
