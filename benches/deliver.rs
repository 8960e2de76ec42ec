//! One event of 128 bytes for all who follow a topic: the publishing, and its way through their response bodies.
//!
//! ```sh
//! cargo bench --bench deliver
//! ```
//!
//! The items are deliveries. Bodies are made once; heartbeats are on, as by default; the hub's log is full.
//!
//! - `by_hand`: by number of subscribers. One thread publishes, and polls each body twice: for the frame, and to find that
//!   there is no other. No waker does anything.
//! - `by_tasks`: by number of a runtime's worker threads. 1,000 tasks read a body each; a round ends when all have the
//!   event. Here it also counts what it takes to wake them.
//!
//! `tidings` is a hub. `axum` is its `Sse` over a broadcast channel whose payload is shared: each subscriber encodes it.

mod common;

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use http_body::Body;
use std::{hint::black_box, sync::Arc};
use tidings::Hub;
use tokio::sync::broadcast;

/// More than are ever waiting.
const CHANNEL: usize = 16;

fn main() {
    divan::main();
}

#[divan::bench_group(sample_size = 10)]
mod by_hand {
    use super::{Bencher, Body, Bytes, ItemsCount, channel, common, hub};
    use std::fmt::Debug;

    const SUBSCRIBERS: [usize; 4] = [1, 100, 1000, 10_000];

    #[divan::bench(args = SUBSCRIBERS)]
    fn tidings(bencher: Bencher<'_, '_>, subscribers: usize) {
        let runtime = common::runtime();
        let _entered = runtime.enter();
        let (hub, publish) = hub();
        let bodies = (0..subscribers).map(|_| common::subscriber(&hub, &common::NEWS)).collect();
        rounds(bencher, bodies, publish);
    }

    #[divan::bench(args = SUBSCRIBERS)]
    fn axum(bencher: Bencher<'_, '_>, subscribers: usize) {
        let runtime = common::runtime();
        let _entered = runtime.enter();
        let (sender, publish) = channel();
        let bodies = (0..subscribers).map(|_| common::axum_subscriber(&sender)).collect();
        rounds(bencher, bodies, publish);
    }

    fn rounds<B>(bencher: Bencher<'_, '_>, mut bodies: Vec<B>, mut publish: impl FnMut())
    where
        B: Body<Data = Bytes, Error: Debug> + Unpin,
    {
        bencher.counter(ItemsCount::new(bodies.len())).bench_local(|| {
            publish();
            bodies.iter_mut().for_each(common::deliver);
        });
    }
}

#[divan::bench_group]
mod by_tasks {
    use super::{Arc, Bencher, Body, Bytes, ItemsCount, black_box, channel, common, hub};
    use http_body_util::BodyExt as _;
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };
    use tokio::runtime::{Builder, Runtime};

    const WORKERS: [usize; 2] = [1, 2];
    const SUBSCRIBERS: usize = 1000;

    #[divan::bench(args = WORKERS)]
    fn tidings(bencher: Bencher<'_, '_>, workers: usize) {
        let runtime = runtime(workers);
        let _entered = runtime.enter();
        let (hub, publish) = hub();
        rounds(bencher, || common::subscriber(&hub, &common::NEWS), publish);
    }

    #[divan::bench(args = WORKERS)]
    fn axum(bencher: Bencher<'_, '_>, workers: usize) {
        let runtime = runtime(workers);
        let _entered = runtime.enter();
        let (sender, publish) = channel();
        rounds(bencher, || common::axum_subscriber(&sender), publish);
    }

    fn runtime(workers: usize) -> Runtime {
        Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
    }

    fn rounds<B>(bencher: Bencher<'_, '_>, body: impl Fn() -> B, mut publish: impl FnMut())
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let (round_ends, end) = mpsc::channel();
        let left = Arc::new(AtomicUsize::new(0));
        for _ in 0..SUBSCRIBERS {
            let (mut body, left, round_ends) = (body(), Arc::clone(&left), round_ends.clone());
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    drop(black_box(frame));
                    if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                        let _ = round_ends.send(());
                    }
                }
            });
        }
        bencher.counter(ItemsCount::new(SUBSCRIBERS)).bench_local(|| {
            left.store(SUBSCRIBERS, Ordering::Relaxed);
            publish();
            end.recv().unwrap();
        });
    }
}

fn hub() -> (Hub, impl FnMut()) {
    let (hub, text) = (common::fill(Hub::new(), &[common::NEWS]), common::text(128));
    (hub.clone(), move || common::publish(&hub, &common::NEWS, &text))
}

fn channel() -> (broadcast::Sender<(u64, Arc<str>)>, impl FnMut()) {
    let (sender, text) = (broadcast::Sender::new(CHANNEL), common::text(128));
    let mut id = 0;
    (sender.clone(), move || {
        id += 1;
        sender.send((id, Arc::from(black_box(&*text)))).unwrap();
    })
}
