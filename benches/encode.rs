//! From a text to the bytes of the wire, the making of the event included.
//!
//! ```sh
//! cargo bench --bench encode
//! ```
//!
//! - `tidings`: an `Event` with a type, encoded with an id made of a number.
//! - `axum`: its `Event` with the same fields, by way of the body of an `Sse` over a stream that is always ready, which
//!   is the only way to its bytes. Its frames have one event each.
//! - `copy`: one search for line breaks and one copy into a new buffer, which is the least that can be done.

mod common;

use divan::{Bencher, counter::BytesCount};
use futures_util::stream;
use std::hint::black_box;
use tidings::EventId;

const SIZES: [usize; 4] = [16, 128, 1024, 16 * 1024];

fn main() {
    divan::main();
}

#[divan::bench(args = SIZES, sample_size = 1000)]
fn tidings(bencher: Bencher<'_, '_>, size: usize) {
    let text = common::text(size);
    let mut id = 0;
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        id += 1;
        drop(black_box(common::event(black_box(&text)).encode(Some(&EventId::from(id)))));
    });
}

#[divan::bench(args = SIZES, sample_size = 1000)]
fn axum(bencher: Bencher<'_, '_>, size: usize) {
    let text = common::text(size);
    let mut id = 0;
    let events = stream::repeat_with(move || {
        id += 1;
        Ok::<_, std::convert::Infallible>(common::axum_event(id, black_box(&text)))
    });
    // No heartbeats, as there are none in what it is compared with.
    let mut body = axum::response::IntoResponse::into_response(axum::response::Sse::new(events)).into_body();
    bencher.counter(BytesCount::new(size)).bench_local(|| drop(black_box(common::poll(&mut body))));
}

#[divan::bench(args = SIZES, sample_size = 1000)]
fn copy(bencher: Bencher<'_, '_>, size: usize) {
    let text = common::text(size);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        let text = black_box(text.as_bytes());
        black_box(memchr::memchr2(b'\r', b'\n', text));
        let mut buf = Vec::with_capacity(text.len());
        buf.extend_from_slice(text);
        drop(black_box(buf));
    });
}
