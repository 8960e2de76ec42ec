//! Publishing events of 128 bytes, the making of the event included, to a hub over the in-memory log that is full: each
//! event that comes lets an old one go.
//!
//! ```sh
//! cargo bench --bench publish
//! ```
//!
//! The items are events, of all threads together: threads are started for each sample, and each publishes its part of the
//! same number of events.
//!
//! - `no_subscriber`: to one topic.
//! - `idle_topics`: the same beside 10,000 other topics that have an event each, or a subscriber each that is idle.
//! - `one_topic`, `eight_topics`: by number of threads.
//!
//! The baseline is `send` of tokio's broadcast channel, with a payload that is made each time and can be shared. It keeps
//! 1,024 events, and for one receiver that never reads, because it would keep nothing for none. It has no ids, no log
//! beyond that, and nothing is encoded. With eight topics, it is eight channels.

mod common;

use crate::common::NEWS;
use divan::{Bencher, counter::ItemsCount};
use std::{hint::black_box, sync::Arc, thread};
use tidings::{Hub, Topic};
use tokio::sync::broadcast::{Receiver, Sender};

const IDLE: usize = 10_000;
const CHANNEL: usize = 1024;

fn main() {
    divan::main();
}

fn channel() -> (Sender<Arc<str>>, Receiver<Arc<str>>) {
    let sender = Sender::new(CHANNEL);
    let receiver = sender.subscribe();
    (0..CHANNEL).for_each(|_| send(&sender, "old"));
    (sender, receiver)
}

fn send(sender: &Sender<Arc<str>>, text: &str) {
    sender.send(Arc::from(black_box(text))).unwrap();
}

#[divan::bench_group(sample_size = 1000)]
mod no_subscriber {
    use super::{Bencher, Hub, ItemsCount, NEWS, channel, common, send};

    #[divan::bench]
    fn tidings(bencher: Bencher<'_, '_>) {
        let (hub, text) = (common::fill(Hub::new(), &[NEWS]), common::text(128));
        bencher.counter(ItemsCount::new(1_u8)).bench_local(|| common::publish(&hub, &NEWS, &text));
    }

    #[divan::bench]
    fn broadcast(bencher: Bencher<'_, '_>) {
        let ((sender, _receiver), text) = (channel(), common::text(128));
        bencher.counter(ItemsCount::new(1_u8)).bench_local(|| send(&sender, &text));
    }
}

#[divan::bench_group(sample_size = 1000)]
mod idle_topics {
    use super::{Bencher, Hub, IDLE, ItemsCount, NEWS, Topic, common};

    fn idle() -> impl Iterator<Item = Topic> {
        (0..IDLE).map(|n| Topic::new(format!("idle/{n}")).unwrap())
    }

    #[divan::bench]
    fn tidings_event_held(bencher: Bencher<'_, '_>) {
        let (hub, text) = (common::fill(Hub::new(), &[NEWS]), common::text(128));
        idle().for_each(|topic| common::publish(&hub, &topic, &text));
        bencher.counter(ItemsCount::new(1_u8)).bench_local(|| common::publish(&hub, &NEWS, &text));
    }

    #[divan::bench]
    fn tidings_idle_subscriber(bencher: Bencher<'_, '_>) {
        let runtime = common::runtime();
        let _entered = runtime.enter();
        let (hub, text) = (common::fill(Hub::new(), &[NEWS]), common::text(128));
        let _subscribers: Vec<_> = idle().map(|topic| common::subscriber(&hub, &topic)).collect();
        bencher.counter(ItemsCount::new(1_u8)).bench_local(|| common::publish(&hub, &NEWS, &text));
    }
}

const THREADS: [usize; 3] = [1, 2, 8];

/// In a sample: so many that starting the threads is little beside them.
const EVENTS: usize = 32_000;

fn by_threads(bencher: Bencher<'_, '_>, threads: usize, publish: impl Fn(usize) + Sync) {
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        thread::scope(|scope| {
            for thread in 0..threads {
                let publish = &publish;
                scope.spawn(move || (0..EVENTS / threads).for_each(|n| publish(thread + n)));
            }
        });
    });
}

#[divan::bench_group(sample_count = 30)]
mod one_topic {
    use super::{Bencher, Hub, NEWS, THREADS, by_threads, channel, common, send};

    #[divan::bench(args = THREADS)]
    fn tidings(bencher: Bencher<'_, '_>, threads: usize) {
        let (hub, text) = (common::fill(Hub::new(), &[NEWS]), common::text(128));
        by_threads(bencher, threads, |_| common::publish(&hub, &NEWS, &text));
    }

    #[divan::bench(args = THREADS)]
    fn broadcast(bencher: Bencher<'_, '_>, threads: usize) {
        let ((sender, _receiver), text) = (channel(), common::text(128));
        by_threads(bencher, threads, |_| send(&sender, &text));
    }
}

/// Each thread goes from topic to topic.
#[divan::bench_group(sample_count = 30)]
mod eight_topics {
    use super::{Bencher, Hub, THREADS, Topic, by_threads, channel, common, send};

    #[divan::bench(args = THREADS)]
    fn tidings(bencher: Bencher<'_, '_>, threads: usize) {
        let topics = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| Topic::new(format!("topic/{n}")).unwrap());
        let (hub, text) = (common::fill(Hub::new(), &topics), common::text(128));
        by_threads(bencher, threads, |n| common::publish(&hub, &topics[n % topics.len()], &text));
    }

    #[divan::bench(args = THREADS)]
    fn broadcast(bencher: Bencher<'_, '_>, threads: usize) {
        let (channels, text) = ([(); 8].map(|()| channel()), common::text(128));
        by_threads(bencher, threads, |n| send(&channels[n % channels.len()].0, &text));
    }
}
