//! Every interleaving of a publisher and followers around the window: no wake-up is lost, no entry skipped or repeated,
//! also where a follower falls off the window and comes back to it.
//!
//! `LOOM_MAX_PREEMPTIONS=3 RUSTFLAGS="--cfg tidings_loom" cargo test --lib loom`

use super::*;
use crate::{
    Event, Topic,
    hub::member::Member,
    replay::{Read, ReadFrom, Record, Ring, Room},
};
use loom::{future::block_on, sync::Arc as LoomArc, thread};
use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

const T: Topic = Topic::from_static("t");
const ONE: Batch = Batch { room: Room { events: 1, bytes: usize::MAX }, up_to: u64::MAX, joined: false };

struct Log {
    window: Window,
    ring: Ring,
}

impl Log {
    fn new(window_events: usize) -> Self {
        let ring = Ring::new();
        let limits = Limits { events_per_topic: window_events, ..ring.limits() };
        let life = TopicLife { explicit: false, idle: Duration::ZERO };
        Self { window: Window::new(ring.head_now(), limits, life), ring }
    }

    /// As the hub does it over the ring: one critical section.
    fn publish(&self) {
        let draft = Record::new(T, Event::new()).into();
        self.window.publish_if_open(|now, show| show(self.ring.push(draft, now).unwrap().0));
    }

    /// The follow loop in short: `count` entries, from the window or else from the ring.
    fn follow(&self, attached: &mut Attached, mut cursor: Cursor, count: usize) -> Vec<u64> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let mut taken = VecDeque::new();
            let standing = block_on(poll_fn(|cx| {
                match self.window.next(attached, &mut cursor, ONE, cx.waker(), &mut taken).standing {
                    Standing::Level => Poll::Pending,
                    other => Poll::Ready(other),
                }
            }));
            match standing {
                Standing::Behind => {}
                Standing::Off => {
                    let age = self.window.age();
                    let page = self.ring.read_now(&Read::new(T, ReadFrom::After(cursor)));
                    self.window.learn(attached, &T.into(), &page, age);
                    assert_eq!((page.floor, page.foreign), (0, false));
                    taken = page.entries.into();
                }
                other => panic!("{other:?}"),
            }
            for entry in taken {
                cursor = entry.cursor();
                seen.push(cursor.position());
            }
        }
        seen
    }
}

#[test]
fn loom_a_follower_that_waits_is_woken_for_every_entry() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(8));
        let (mut attached, cursor) = log.window.attach(&T.into());
        let publisher = {
            let log = LoomArc::clone(&log);
            thread::spawn(move || (0..2).for_each(|_| log.publish()))
        };
        assert_eq!(log.follow(&mut attached, cursor, 2), [1, 2]);
        publisher.join().unwrap();
        log.window.detach(&attached);
    });
}

/// As a body does it: its waker is kept with what it takes, and it looks again only at another version.
#[test]
fn loom_who_took_everything_as_a_frame_is_woken_for_what_comes() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(8));
        let (mut attached, mut cursor) = log.window.attach(&T.into());
        let publisher = {
            let log = LoomArc::clone(&log);
            thread::spawn(move || (0..2).for_each(|_| log.publish()))
        };
        let (mut seen, mut waits) = (Vec::new(), None);
        let batch = Batch { joined: true, ..ONE };
        block_on(poll_fn(|cx| {
            while seen.last() != Some(&2) {
                if waits == Some(log.window.version()) {
                    return Poll::Pending;
                }
                let taken = log.window.next(&mut attached, &mut cursor, batch, cx.waker(), &mut VecDeque::new());
                waits = taken.waits;
                match taken.standing {
                    Standing::Level => return Poll::Pending,
                    // Nothing is known of the topic yet.
                    Standing::Off => {
                        let age = log.window.age();
                        let page = log.ring.read_now(&Read::new(T, ReadFrom::After(cursor)));
                        log.window.learn(&attached, &T.into(), &page, age);
                        cursor = page.through;
                        seen.extend(page.entries.iter().map(|entry| entry.position()));
                    }
                    _ => {
                        let stretch = taken.stretch.unwrap();
                        seen.extend(stretch.first..=stretch.last);
                    }
                }
            }
            Poll::Ready(())
        }));
        assert_eq!(seen, [1, 2]);
        publisher.join().unwrap();
        log.window.detach(&attached);
    });
}

#[test]
fn loom_who_is_told_to_go_has_what_was_published_before_and_is_woken() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(8));
        // So that the topic is known.
        log.publish();
        let (mut attached, mut cursor) = log.window.attach(&T.into());
        let member = LoomArc::new(Member::new(attached.waiter(), log.window.number(&attached), T.into()));
        let publisher = {
            let (log, member) = (LoomArc::clone(&log), LoomArc::clone(&member));
            thread::spawn(move || {
                log.publish();
                log.window.tell([&*member].into_iter(), Goes::WithAll);
                log.publish();
            })
        };
        let mut seen = VecDeque::new();
        block_on(poll_fn(|cx| {
            loop {
                match log.window.next(&mut attached, &mut cursor, ONE, cx.waker(), &mut seen).standing {
                    Standing::Level => return Poll::Pending,
                    Standing::Told => return Poll::Ready(()),
                    Standing::Behind => cursor = seen.back().unwrap().cursor(),
                    other => panic!("{other:?}"),
                }
            }
        }));
        let seen: Vec<_> = seen.iter().map(|entry| entry.position()).collect();
        assert!(seen == [2] || seen == [2, 3], "{seen:?}");
        publisher.join().unwrap();
        log.window.detach(&attached);
    });
}

#[test]
fn loom_a_follower_that_falls_off_the_window_comes_back_without_a_gap_or_a_repeat() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(1));
        let (mut attached, cursor) = log.window.attach(&T.into());
        let publisher = {
            let log = LoomArc::clone(&log);
            thread::spawn(move || (0..3).for_each(|_| log.publish()))
        };
        assert_eq!(log.follow(&mut attached, cursor, 3), [1, 2, 3]);
        publisher.join().unwrap();
    });
}

#[test]
fn loom_two_publishers_give_one_order_to_all() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(1));
        let (mut attached, cursor) = log.window.attach(&T.into());
        let publishers: Vec<_> = (0..2)
            .map(|_| {
                let log = LoomArc::clone(&log);
                thread::spawn(move || log.publish())
            })
            .collect();
        assert_eq!(log.follow(&mut attached, cursor, 2), [1, 2]);
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    });
}

#[test]
fn loom_who_attaches_while_others_publish_misses_nothing_after_its_place() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(1));
        let publisher = {
            let log = LoomArc::clone(&log);
            thread::spawn(move || (0..2).for_each(|_| log.publish()))
        };
        let (mut attached, cursor) = log.window.attach(&T.into());
        let missing = 2 - usize::try_from(cursor.position()).unwrap();
        let expected: Vec<u64> = (cursor.position() + 1..=2).collect();
        assert_eq!(log.follow(&mut attached, cursor, missing), expected);
        publisher.join().unwrap();
        log.window.detach(&attached);
    });
}

#[test]
fn loom_closing_wakes_those_who_wait() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(1));
        let (mut attached, mut cursor) = log.window.attach(&T.into());
        let page = log.ring.read_now(&Read::new(T, ReadFrom::After(cursor)));
        log.window.learn(&attached, &T.into(), &page, log.window.age());
        let closer = {
            let log = LoomArc::clone(&log);
            thread::spawn(move || log.window.close())
        };
        let standing = block_on(poll_fn(|cx| {
            match log.window.next(&mut attached, &mut cursor, ONE, cx.waker(), &mut VecDeque::new()).standing {
                Standing::Level => Poll::Pending,
                other => Poll::Ready(other),
            }
        }));
        assert_eq!(standing, Standing::Closed);
        closer.join().unwrap();
    });
}

#[test]
fn loom_ephemeral_events_come_once_and_in_their_place() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(1));
        let (mut attached, cursor) = log.window.attach(&T.into());
        let publisher = {
            let log = LoomArc::clone(&log);
            thread::spawn(move || {
                log.publish();
                log.window.publish_ephemeral(Record::new(T, Event::new())).unwrap();
                log.publish();
            })
        };
        let seen = log.follow(&mut attached, cursor, 2);
        // Who reads the second event from the store is past what came between.
        assert!(seen == [1, 1] || seen == [1, 2], "{seen:?}");
        publisher.join().unwrap();
        log.window.detach(&attached);
    });
}

#[test]
fn loom_a_producer_learns_that_its_last_reader_left() {
    loom::model(|| {
        let log = LoomArc::new(Log::new(1));
        let row = log.window.hold(&T);
        let (attached, _) = log.window.attach(&T.into());
        let reader = {
            let log = LoomArc::clone(&log);
            thread::spawn(move || log.window.detach(&attached))
        };
        let mut watch = log.window.watch(row);
        block_on(poll_fn(|cx| watch.poll(cx.waker(), |life| life.unread_since().map(drop))));
        drop(watch);
        reader.join().unwrap();
        log.window.release(row);
    });
}
