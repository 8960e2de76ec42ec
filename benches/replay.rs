//! Clients that come back with an id and have missed 1,000 events of 128 bytes: from the request to the last frame.
//!
//! ```sh
//! cargo bench --bench replay
//! ```
//!
//! By number of clients, 100 being a storm: all subscribe, and then read a frame each in turn until they have everything.
//! All miss the same. The items are events.
//!
//! - `window`: the hub still has all of it ready to be sent.
//! - `ring`: it has the last 256 of them ready, and reads the others from its log page by page.
//! - `copy`: the events, encoded before, copied into frames of 4 KiB: what any server has to do that sends large frames.

mod common;

use bytes::{Bytes, BytesMut};
use divan::{Bencher, counter::ItemsCount};
use std::{hint::black_box, mem};
use tidings::{EventId, Hub};

const CLIENTS: [usize; 2] = [1, 100];
const FRAME: usize = 4 * 1024;

fn main() {
    divan::main();
}

#[divan::bench(args = CLIENTS)]
fn window(bencher: Bencher<'_, '_>, clients: usize) {
    replay(bencher, clients, Hub::new());
}

#[divan::bench(args = CLIENTS)]
fn ring(bencher: Bencher<'_, '_>, clients: usize) {
    replay(bencher, clients, Hub::builder().window_events(256).build());
}

fn replay(bencher: Bencher<'_, '_>, clients: usize, hub: Hub) {
    let runtime = common::runtime();
    let _entered = runtime.enter();
    let (hub, id) = common::hub_with_missed(hub);
    assert!(common::read(&mut common::resumed(&hub, &id)) > common::MISSED * 128, "all of it");
    bencher.counter(ItemsCount::new(clients * common::MISSED)).bench_local(|| {
        let mut bodies: Vec<_> = (0..clients).map(|_| common::resumed(&hub, &id)).collect();
        while !bodies.is_empty() {
            bodies.retain_mut(|body| black_box(common::poll(body)).is_ready());
        }
    });
}

#[divan::bench(args = CLIENTS)]
fn copy(bencher: Bencher<'_, '_>, clients: usize) {
    let text = common::text(128);
    let encoded: Vec<Bytes> =
        (0..).map(EventId::from).map(|id| common::event(&text).encode(Some(&id))).take(common::MISSED).collect();
    bencher.counter(ItemsCount::new(clients * common::MISSED)).bench_local(|| {
        for _ in 0..clients {
            let mut frame = BytesMut::with_capacity(FRAME);
            for event in &encoded {
                if frame.len() + event.len() > FRAME {
                    let full = mem::replace(&mut frame, BytesMut::with_capacity(FRAME));
                    drop(black_box(full.freeze()));
                }
                frame.extend_from_slice(event);
            }
            drop(black_box(frame.freeze()));
        }
    });
}
