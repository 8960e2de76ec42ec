//! What only the shelf itself can show.

use super::*;
use crate::{
    Event,
    replay::{Record, Run},
};

fn limits() -> Limits {
    Limits {
        events_per_topic: 10,
        bytes_per_topic: 20_000,
        total_bytes: usize::MAX,
        age: None,
        latest: None,
        finished: None,
    }
}

fn entry(topic: &str, position: u64, bytes: usize) -> Arc<Entry> {
    let record = Record::new(Topic::new(topic).unwrap(), Event::new().data("x".repeat(bytes)));
    Arc::new(Entry::new(Run::new_log().at(position), record))
}

#[test]
fn what_is_gone_is_not_remembered_for_long() {
    let second = Duration::from_secs(1);
    let bounds = Limits { total_bytes: 50_000, age: Some(100 * second), latest: Some(300 * second), ..limits() };
    let mut shelf = Shelf::new(bounds, 0);
    let mut now = Instant::now();
    for position in 1..20_000 {
        now += second;
        shelf.expire(now);
        // A large one makes room by removing several.
        let bytes = if fastrand::u8(..10) == 0 { 15_000 } else { 10 };
        let (topic, key) = (["a", "b", "c"][fastrand::usize(..3)], ["k", "l", "m"][fastrand::usize(..3)]);
        let (topic, event) = (Topic::new(topic).unwrap(), Event::new().data("x".repeat(bytes)));
        let record = match fastrand::u8(..20) {
            0 => Record::finish(topic, Some(event)),
            1..=3 => Record::removal(topic, key, event),
            4..=12 => Record::latest(topic, key, event),
            _ => Record::new(topic, event),
        };
        if fastrand::u8(..50) == 0 {
            shelf.forget(&Topic::from_static("a"), true);
        }
        shelf.push(Arc::new(Entry::new(Run::new_log().at(position), record)), now);
        let named = shelf.order.len() + shelf.lasting.len();
        assert!(named <= 2 * shelf.entries + 64, "{named} for {}", shelf.entries);
        let held = || shelf.rows.iter().flat_map(|(_, row)| &row.entries);
        assert_eq!(shelf.entries, held().count());
        assert_eq!(shelf.bytes, held().map(|entry| entry.cost()).sum::<usize>());
        assert_eq!(shelf.bytes, shelf.rows.iter().map(|(_, row)| row.bytes).sum::<usize>());
        let lasting = shelf.rows.iter().flat_map(|(_, row)| row.entries.iter().filter(|entry| row.lasts(entry)));
        assert_eq!(shelf.lasting_bytes, lasting.map(|entry| entry.cost()).sum::<usize>());
        for (_, row) in &shelf.rows {
            let newest = row.entries.iter().filter_map(|entry| Some((entry.record().replaces()?, entry.position())));
            let mut newest: Vec<_> = newest.collect();
            newest.sort_unstable();
            assert!(newest.into_iter().eq(row.keys.iter().map(|(key, position)| (&**key, *position))));
        }
        assert!(shelf.bytes <= 50_000);
    }
}

#[test]
fn a_topic_of_which_nothing_is_held_or_remembered_has_no_row() {
    let (a, now) = (Topic::from_static("a"), Instant::now());
    let mut shelf = Shelf::new(Limits { events_per_topic: 0, ..limits() }, 0);
    shelf.push(entry("a", 1, 10), now);
    assert_eq!((shelf.rows.len(), shelf.base()), (0, 1));

    let second = Duration::from_secs(1);
    let mut shelf = Shelf::new(Limits { events_per_topic: 0, finished: Some(second), ..limits() }, 0);
    shelf.push(Arc::new(Entry::new(Run::new_log().at(1), Record::finish(&a, None))), now);
    assert_eq!(shelf.rows.len(), 1);
    shelf.expire(now + second);
    assert_eq!((shelf.rows.len(), shelf.base()), (0, 1));

    let mut shelf = Shelf::new(limits(), 0);
    shelf.push(entry("a", 1, 10), now);
    shelf.forget(&a, true);
    assert_eq!((shelf.rows.len(), shelf.base()), (0, 1));
    shelf.lose(&a, 2);
    assert_eq!((shelf.rows.len(), shelf.base()), (0, 2));
    shelf.push(entry("a", 3, 10), now);
    shelf.lose(&a, 4);
    assert_eq!((shelf.rows.len(), shelf.base()), (0, 4));
}

#[test]
fn what_is_cleared_is_empty() {
    let (a, now) = (Topic::from_static("a"), Instant::now());
    let mut shelf = Shelf::new(Limits { finished: Some(Duration::MAX), ..limits() }, 0);
    shelf.push(entry("a", 1, 10), now);
    shelf.push(Arc::new(Entry::new(Run::new_log().at(2), Record::finish(&a, None))), now);
    shelf.clear(9);
    assert!(shelf.rows.is_empty() && shelf.order.is_empty() && shelf.ends.is_empty());
    assert_eq!((shelf.entries, shelf.bytes, shelf.base()), (0, 0, 9));
}

#[test]
fn what_is_lost_is_removed_and_nothing_after_it() {
    let mut shelf = Shelf::new(limits(), 0);
    let row = shelf.pin(&Topic::from_static("a"));
    for position in 1..=3 {
        shelf.push(entry("a", position, 10), Instant::now());
    }
    shelf.lose(&Topic::from_static("a"), 2);
    let mut held = Vec::new();
    let mut room = Room { events: 10, bytes: usize::MAX };
    assert!(shelf.collect([row].into_iter(), (0, u64::MAX), &mut room, &mut held));
    assert_eq!(held.iter().map(|entry| entry.position()).collect::<Vec<_>>(), [3]);
    assert_eq!((shelf.floor(row), shelf.entries), (2, 1));
}

#[test]
fn state_that_takes_half_of_the_room_and_no_more_stays() {
    let record = |record: Record, position| Arc::new(Entry::new(Run::new_log().at(position), record));
    let (a, data) = (Topic::from_static("a"), Event::new().data("x".repeat(1000)));
    let state = record(Record::latest(a, "k", data), 1);
    for (total_bytes, stays) in [(2 * state.cost(), true), (2 * state.cost() - 1, false)] {
        let mut shelf = Shelf::new(Limits { total_bytes, ..limits() }, 0);
        shelf.push(Arc::clone(&state), Instant::now());
        for position in 2..5 {
            shelf.push(entry("b", position, 1000), Instant::now());
        }
        assert_eq!(shelf.row(state.record().topic()).is_some(), stays);
    }
}
