//! [`Repeats`]: the idempotency keys of late, by which the [`Ring`](super::Ring) knows a record again.
//!
//! Invariant: a key is known for as long as it is to be, whatever becomes of its record, unless the keys after it need
//! the room.

use super::Record;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// What the keys take in all: some 100,000 of the usual ones.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// What one takes beside its text, about: its places in both lists.
const COST: usize = 128;

pub(super) struct Repeats {
    /// For how long a key is known.
    pub(super) time: Duration,
    places: HashMap<Arc<str>, u64>,
    order: VecDeque<(Instant, Arc<str>)>,
    bytes: usize,
}

impl Repeats {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, places: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// The key of a record together with its topic, whose name has no line breaks.
    pub(super) fn name(record: &Record) -> Option<Arc<str>> {
        Some(format!("{}\n{}", record.topic().as_key(), record.idempotency_key()?).into())
    }

    /// Where the record is that had this name.
    pub(super) fn find(&mut self, name: &str, now: Instant) -> Option<u64> {
        while self.order.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= self.time) {
            self.pop();
        }
        self.places.get(name).copied()
    }

    pub(super) fn insert(&mut self, name: Arc<str>, position: u64, now: Instant) {
        self.bytes += name.len() + COST;
        self.places.insert(Arc::clone(&name), position);
        self.order.push_back((now, name));
        while self.bytes > MOST_BYTES {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, name)) = self.order.pop_front() {
            self.bytes -= name.len() + COST;
            self.places.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, Topic};

    #[test]
    fn keys_give_way_to_newer_ones_when_there_is_no_room() {
        let now = Instant::now();
        let mut repeats = Repeats::new(Duration::from_secs(300));
        let long = "k".repeat(MOST_BYTES / 4);
        let names = ["1", "2", "3", "4", "5"].map(|n| Arc::from(format!("{n}{long}")));
        for (position, name) in (1..).zip(&names) {
            repeats.insert(Arc::clone(name), position, now);
        }
        let known = names.map(|name| repeats.find(&name, now));
        assert_eq!(known, [None, None, Some(3), Some(4), Some(5)]);
        assert!(repeats.bytes <= MOST_BYTES && repeats.order.len() == repeats.places.len());
    }

    #[test]
    fn the_name_of_a_key_is_that_of_no_other_topic() {
        let name = |topic: Topic, key| Repeats::name(&Record::new(topic, Event::new()).with_idempotency_key(key));
        let scoped = Topic::scoped("a", "b").unwrap();
        assert_ne!(name(scoped, "c"), name(Topic::new("a").unwrap(), "b\nc"));
        assert_ne!(name(Topic::new("ab").unwrap(), "c"), name(Topic::new("a").unwrap(), "b\nc"));
        assert_eq!(Repeats::name(&Record::new(Topic::new("a").unwrap(), Event::new())), None);
    }
}
