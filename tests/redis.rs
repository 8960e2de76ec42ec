//! The store on a real Redis: the contract, several nodes on one log, and servers that are away, restarted or restored.
//!
//! Needs Debian's `redis-server`, and is run by name: `cargo test --test redis`.

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use support::redis::Redis;
use tidings::replay::{RedisStore, conformance};

/// A log of its own each time.
fn fresh() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("log {}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

async fn open_kept(redis: &Redis, name: &str, keep: conformance::Keep) -> RedisStore {
    let store = RedisStore::builder(redis.url()).name(name);
    let store = match keep.events_per_topic {
        Some(events) => store.events_per_topic(events),
        None => store,
    };
    store.open().await.unwrap()
}

async fn conforms(redis: &Redis) {
    conformance::check(async |keep| open_kept(redis, &fresh(), keep).await).await.unwrap();
}

#[tokio::test]
async fn conforms_on_one_thread() {
    conforms(&Redis::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_on_several_threads() {
    conforms(&Redis::start().await).await;
}
