//! Random operations on a [`Shelf`] and on a list that is searched from end to end: they hold the same.

use super::{Limits, Room, Shelf};
use crate::{
    Event, Topic,
    replay::{Entry, Kind, Record, Run},
    response::FRAME_TARGET,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

const TOPICS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Push {
        topic: usize,
        kind: Kind,
        key: usize,
        size: usize,
    },
    Wait(u64),
    Forget(usize),
    Lose(usize, u64),
    Pin(usize),
    Unpin(usize),
    Clear(u64),
    /// Read what a topic has, by frames.
    Follow(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let kind =
        prop_oneof![4 => Just(Kind::Event), 6 => Just(Kind::Latest), 2 => Just(Kind::Removal), 1 => Just(Kind::Finish)];
    prop_oneof![
        30 => (0..TOPICS, kind, 0..4usize, 0..600usize)
            .prop_map(|(topic, kind, key, size)| Step::Push { topic, kind, key, size }),
        8 => (0..8u64).prop_map(Step::Wait),
        2 => (0..TOPICS).prop_map(Step::Forget),
        2 => (0..TOPICS, 0..6u64).prop_map(|(topic, back)| Step::Lose(topic, back)),
        3 => (0..TOPICS).prop_map(Step::Pin),
        3 => (0..TOPICS).prop_map(Step::Unpin),
        1 => (0..3u64).prop_map(Step::Clear),
        8 => (0..TOPICS, 0..12u64).prop_map(|(topic, back)| Step::Follow(topic, back)),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let age = || prop::option::of((1..20u64).prop_map(Duration::from_secs));
    (0..8usize, 800..4000usize, 1500..8000usize, age(), age(), age()).prop_map(
        |(events_per_topic, bytes_per_topic, total_bytes, age, latest, finished)| Limits {
            events_per_topic,
            bytes_per_topic,
            total_bytes,
            age,
            latest,
            finished,
        },
    )
}

fn topic(index: usize) -> Topic {
    Topic::new(index.to_string()).unwrap()
}

/// One entry of the model.
#[derive(Clone)]
struct Held {
    entry: Arc<Entry>,
    topic: usize,
    at: Instant,
    /// Its turn to go.
    turn: u64,
    lasting: bool,
}

#[derive(Clone, Default)]
struct Known {
    floor: u64,
    pins: u32,
    finished: Option<u64>,
    /// Until when that is remembered, and since when.
    end: Option<(u64, Instant)>,
}

struct Model {
    limits: Limits,
    held: Vec<Held>,
    rows: BTreeMap<usize, Known>,
    base: u64,
    turns: u64,
}

impl Model {
    fn of(&self, topic: usize) -> impl Iterator<Item = &Held> {
        self.held.iter().filter(move |held| held.topic == topic)
    }

    fn row(&mut self, topic: usize) -> &mut Known {
        let floor = self.base;
        self.rows.entry(topic).or_insert(Known { floor, ..Known::default() })
    }

    fn bytes(&self) -> usize {
        self.held.iter().map(|held| held.entry.cost()).sum()
    }

    fn evict(&mut self, index: usize) {
        let held = self.held.remove(index);
        let row = self.row(held.topic);
        row.floor = row.floor.max(held.entry.position());
        self.tidy(held.topic);
    }

    fn tidy(&mut self, topic: usize) {
        let empty = self.of(topic).next().is_none();
        let Some(row) = self.rows.get(&topic) else { return };
        let remembered = row.finished.is_some() && self.limits.finished.is_some();
        if empty && row.pins == 0 && !remembered {
            self.base = self.base.max(row.floor);
            self.rows.remove(&topic);
        }
    }

    fn first_of(&self, topic: usize) -> Option<usize> {
        self.held.iter().position(|held| held.topic == topic)
    }

    fn next_to_go(&self, lasting: bool) -> Option<usize> {
        let (index, _) = self
            .held
            .iter()
            .enumerate()
            .filter(|(_, held)| held.lasting == lasting)
            .min_by_key(|(_, held)| held.turn)?;
        Some(index)
    }

    fn push(&mut self, topic: usize, entry: &Arc<Entry>, now: Instant) {
        let kind = entry.record().kind();
        self.row(topic).finished = None;
        if let Some(key) = entry.record().replaces() {
            self.held.retain(|held| held.topic != topic || held.entry.record().replaces() != Some(key));
        }
        if kind == Kind::Finish {
            let row = self.row(topic);
            row.finished = Some(entry.position());
            row.end = Some((entry.position(), now));
            for held in &mut self.held {
                if held.topic == topic && held.lasting {
                    self.turns += 1;
                    (held.lasting, held.at, held.turn) = (false, now, self.turns);
                }
            }
        }
        self.turns += 1;
        let lasting = kind == Kind::Latest;
        self.held.push(Held { entry: Arc::clone(entry), topic, at: now, turn: self.turns, lasting });
        loop {
            let (count, bytes) = self.of(topic).fold((0, 0), |(n, bytes), held| (n + 1, bytes + held.entry.cost()));
            if count <= self.limits.events_per_topic && bytes <= self.limits.bytes_per_topic {
                break;
            }
            // The row stays in place until the end of the push.
            let index = self.first_of(topic).unwrap();
            let gone = self.held.remove(index);
            let row = self.row(topic);
            row.floor = row.floor.max(gone.entry.position());
        }
        while self.bytes() > self.limits.total_bytes {
            let lasting = self.held.iter().filter(|held| held.lasting).map(|held| held.entry.cost()).sum::<usize>();
            let first = lasting > self.limits.total_bytes / 2;
            let index = self.next_to_go(first).or_else(|| self.next_to_go(!first)).unwrap();
            self.evict(index);
        }
        self.tidy(topic);
    }

    fn expire(&mut self, now: Instant) {
        for (lasting, age) in [(false, self.limits.age), (true, self.limits.latest)] {
            let Some(age) = age else { continue };
            while let Some(index) =
                self.held.iter().position(|held| held.lasting == lasting && now.duration_since(held.at) >= age)
            {
                self.evict(index);
            }
        }
        let Some(keep) = self.limits.finished.max(self.limits.age) else { return };
        if self.limits.finished.is_none() {
            return;
        }
        for topic in 0..TOPICS {
            if let Some(row) = self.rows.get_mut(&topic) {
                let over = row.end.is_some_and(|(position, since)| {
                    row.finished == Some(position) && now.duration_since(since) >= keep
                });
                if over {
                    row.finished = None;
                    self.tidy(topic);
                }
            }
        }
    }
}

fn check(shelf: &Shelf, model: &Model) {
    assert_eq!(shelf.bytes, model.bytes());
    assert_eq!(shelf.entries, model.held.len());
    assert_eq!(shelf.base, model.base, "base");
    assert_eq!(shelf.rows.len(), model.rows.len(), "rows");
    assert_eq!(shelf.index.len(), shelf.rows.len());
    assert!(shelf.order.len() + shelf.lasting.len() <= 2 * shelf.entries + 64, "stale");
    for (&index, known) in &model.rows {
        let row = shelf.row(&topic(index)).expect("the row is there");
        let it = &shelf.rows[row];
        assert_eq!(it.floor, known.floor, "floor of {index}");
        assert_eq!(it.finished, known.finished);
        assert_eq!(it.pins, known.pins);
        assert_eq!(it.bytes, model.of(index).map(|held| held.entry.cost()).sum::<usize>());
        let mine: Vec<u64> = it.entries.iter().map(|entry| entry.position()).collect();
        let theirs: Vec<u64> = model.of(index).map(|held| held.entry.position()).collect();
        assert_eq!(mine, theirs);
        let keys: BTreeMap<Box<str>, u64> = model
            .of(index)
            .filter_map(|held| Some((held.entry.record().replaces()?.into(), held.entry.position())))
            .collect();
        assert_eq!(it.keys, keys);
        for held in model.of(index) {
            let queue = if held.lasting { &shelf.lasting } else { &shelf.order };
            let named = |placed: &&super::Placed| placed.row == row && placed.position == held.entry.position();
            assert!(queue.iter().any(|placed| named(&placed)), "{:?} is in no queue", held.entry);
        }
    }
    for after in [0, 3, 10] {
        let rows: Vec<usize> = (0..TOPICS).filter_map(|index| shelf.row(&topic(index))).collect();
        let mut got = Vec::new();
        let mut room = Room { events: usize::MAX, bytes: usize::MAX };
        assert!(shelf.collect(rows.iter().copied(), (after, u64::MAX), &mut room, &mut got));
        let got: Vec<u64> = got.iter().map(|entry| entry.position()).collect();
        let want: Vec<u64> = model.held.iter().map(|held| held.entry.position()).filter(|at| *at > after).collect();
        assert_eq!(got, want);
    }
}

/// Stretches have the bytes of the entries, except of an end without an event, and are no longer than a frame.
fn follow(shelf: &mut Shelf, model: &Model, index: usize, after: u64) {
    let mut left = model.of(index).map(|held| &held.entry).skip_while(|entry| entry.position() <= after).peekable();
    let newest = model.of(index).last().map(|held| held.entry.position());
    let mut after = after;
    while let Some(next) = left.peek() {
        let found = shelf.stretch_after(shelf.row(&topic(index)).into_iter(), after);
        let Some((stretch, all)) = found else {
            assert!(next.record().is_bare_finish());
            after = left.next().unwrap().position();
            continue;
        };
        assert_eq!(stretch.first, next.position());
        let covered: Vec<_> = std::iter::from_fn(|| left.next_if(|entry| entry.position() <= stretch.last)).collect();
        let bytes: Vec<u8> = covered.iter().flat_map(|entry| entry.frame().to_vec()).collect();
        assert_eq!(stretch.frame, bytes);
        assert!(
            covered.len() == 1 || bytes.len() <= FRAME_TARGET && !covered.iter().any(|e| e.record().is_bare_finish())
        );
        assert_eq!(all, newest == Some(stretch.last));
        after = stretch.last;
    }
    assert!(shelf.stretch_after(shelf.row(&topic(index)).into_iter(), after).is_none());
}

fn run(limits: Limits, script: Vec<Step>) {
    let log = Run::new_log();
    let mut now = Instant::now();
    let mut shelf = Shelf::new(limits.clone(), 0);
    let mut model = Model { limits, held: Vec::new(), rows: BTreeMap::new(), base: 0, turns: 0 };
    let mut position = 0;
    let mut pinned = Vec::new();
    for step in script {
        match step {
            Step::Push { topic: index, kind, key, size } => {
                shelf.expire(now);
                model.expire(now);
                if model.rows.get(&index).is_some_and(|row| row.finished.is_some()) {
                    continue;
                }
                position += 1;
                let event = Event::new().data("x".repeat(size));
                let record = match kind {
                    Kind::Event => Record::new(topic(index), event).with_key(key.to_string()),
                    Kind::Finish => Record::finish(topic(index), None),
                    Kind::Latest => Record::latest(topic(index), key.to_string(), event),
                    Kind::Removal => Record::removal(topic(index), key.to_string(), event),
                };
                let entry = Arc::new(Entry::new(log.at(position), record));
                shelf.push(Arc::clone(&entry), now);
                model.push(index, &entry, now);
            }
            Step::Wait(seconds) => {
                now += Duration::from_secs(seconds);
                shelf.expire(now);
                model.expire(now);
            }
            Step::Forget(index) => {
                shelf.forget(&topic(index), true);
                if model.rows.contains_key(&index) {
                    let highest = model.of(index).map(|held| held.entry.position()).max().unwrap_or(0);
                    model.held.retain(|held| held.topic != index);
                    let row = model.row(index);
                    row.floor = row.floor.max(highest);
                    row.finished = None;
                    model.tidy(index);
                }
            }
            Step::Lose(index, back) => {
                let below = position.saturating_sub(back);
                shelf.lose(&topic(index), below);
                if model.rows.contains_key(&index) {
                    model.held.retain(|held| held.topic != index || held.entry.position() > below);
                    let row = model.row(index);
                    row.floor = row.floor.max(below);
                    row.finished = None;
                    model.tidy(index);
                } else {
                    model.base = model.base.max(below);
                }
            }
            Step::Pin(index) => {
                pinned.push((index, shelf.pin(&topic(index))));
                model.row(index).pins += 1;
            }
            Step::Unpin(nth) => {
                if !pinned.is_empty() {
                    let (index, row) = pinned.remove(nth % pinned.len());
                    assert_eq!(shelf.row(&topic(index)), Some(row), "a pinned row stays in place");
                    shelf.unpin(row);
                    model.row(index).pins -= 1;
                    model.tidy(index);
                }
            }
            Step::Clear(on) => {
                position += on;
                shelf.clear(position);
                model.held.clear();
                model.base = position;
                model.rows.retain(|_, row| row.pins > 0);
                for row in model.rows.values_mut() {
                    *row = Known { floor: position, pins: row.pins, ..Known::default() };
                }
            }
            Step::Follow(index, back) => follow(&mut shelf, &model, index, position.saturating_sub(back)),
        }
        check(&shelf, &model);
        assert_eq!(
            shelf.joined,
            shelf.rows.iter().map(|(_, row)| row.joined_cost()).sum::<usize>(),
            "of what is joined"
        );
    }
}

fn scripts() -> ProptestConfig {
    let cases = std::env::var("TIDINGS_SCRIPTS").ok().and_then(|count| count.parse().ok()).unwrap_or(500);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(scripts())]

    #[test]
    fn the_shelf_holds_what_a_list_would(limits in limits(), script in prop::collection::vec(step(), 1..120)) {
        run(limits, script);
    }
}
