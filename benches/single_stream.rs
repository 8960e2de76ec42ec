//! One stream for one reader: the tokens of an answer, without a hub. Heartbeats are on.
//!
//! ```sh
//! cargo bench --bench single_stream
//! ```
//!
//! The items are events.
//!
//! - `one_by_one`: the stream is pending after each event, so that each becomes a frame of its own. The body is polled
//!   twice for each: for the frame, and to find that there is no other.
//! - `always_ready`: a stream of 1,000 events, from the making of the body to its end. `tidings` joins events into frames
//!   of some 4 KiB, `axum` does not.
//!
//! `tidings` and `axum` are the `Sse` of each.

mod common;

use bytes::Bytes;
use divan::{Bencher, counter::ItemsCount};
use http_body::Body;
use std::{fmt::Debug, hint::black_box};
use tidings::Event;

fn main() {
    divan::main();
}

fn event() -> Event {
    Event::new().data(black_box(common::TOKEN))
}

fn axum_event() -> axum::response::sse::Event {
    axum::response::sse::Event::default().data(black_box(common::TOKEN))
}

#[divan::bench_group(sample_size = 1000)]
mod one_by_one {
    use super::{Bencher, Body, Bytes, Debug, ItemsCount, axum_event, common, event};
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    };

    #[divan::bench]
    fn tidings(bencher: Bencher<'_, '_>) {
        rounds(bencher, |ready| common::sse(common::one_by_one(ready, event)));
    }

    #[divan::bench]
    fn axum(bencher: Bencher<'_, '_>) {
        rounds(bencher, |ready| common::axum_sse(common::one_by_one(ready, axum_event)));
    }

    fn rounds<B>(bencher: Bencher<'_, '_>, body: impl FnOnce(Arc<AtomicBool>) -> B)
    where
        B: Body<Data = Bytes, Error: Debug> + Unpin,
    {
        let runtime = common::runtime();
        let _entered = runtime.enter();
        let ready = Arc::default();
        let mut body = body(Arc::clone(&ready));
        bencher.counter(ItemsCount::new(1_u8)).bench_local(|| {
            ready.store(true, Relaxed);
            common::deliver(&mut body);
        });
    }
}

#[divan::bench_group(sample_size = 10)]
mod always_ready {
    use super::{Bencher, Body, Bytes, Debug, ItemsCount, axum_event, common, event};
    use futures_util::stream;

    const EVENTS: usize = 1000;

    #[divan::bench]
    fn tidings(bencher: Bencher<'_, '_>) {
        streams(bencher, || common::sse(stream::iter((0..EVENTS).map(|_| event()))));
    }

    #[divan::bench]
    fn axum(bencher: Bencher<'_, '_>) {
        streams(bencher, || common::axum_sse(stream::iter((0..EVENTS).map(|_| axum_event()))));
    }

    fn streams<B>(bencher: Bencher<'_, '_>, body: impl Fn() -> B)
    where
        B: Body<Data = Bytes, Error: Debug> + Unpin,
    {
        let runtime = common::runtime();
        let _entered = runtime.enter();
        bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| common::read(&mut body()));
    }
}
