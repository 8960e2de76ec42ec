//! Idempotency keys.

use super::{
    follow::joined,
    judge::positions,
    rule::{Positions, Rule, Verdict, ensure},
    trial::{Trial, append, read_page, topic, topics},
};
use crate::{
    Event, Topic, Topics,
    replay::{Read, ReadFrom, Record, Refused, ReplayStore},
};
use std::sync::Arc;
use tokio::task::{JoinSet, yield_now};

impl<S: ReplayStore> Trial<S> {
    pub(super) fn keyed(&mut self, topic: &Topic, key: &str) -> Record {
        self.event(topic).with_idempotency_key(key)
    }
}

pub(super) async fn known<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, scoped) = (topic("a"), topic("b"), super::record::scoped("a", "b"));
    let all = topics([&a, &b, &scoped]);
    // In one batch, in the next, and among others.
    let batch = [log.keyed(&a, "k"), log.event(&a), log.keyed(&a, "k"), log.keyed(&b, "k"), log.keyed(&a, "l")];
    log.append(batch).await?;
    log.read_around(&all).await?;
    let batch = [log.event(&b), log.keyed(&a, "k"), log.keyed(&b, "k"), log.event(&a)];
    log.append(batch).await?;
    log.read_around(&all).await?;
    // Whatever else it is.
    let batch = [
        log.latest(&a, "state").with_idempotency_key("k"),
        log.removal(&a, "state").with_idempotency_key("l"),
        log.finish(&a).with_idempotency_key("k"),
    ];
    log.append(batch).await?;
    log.read_around(&all).await?;
    // Keys that look alike, and none.
    for key in ["", " ", "K", "k ", "k\0", "k\n", "\u{e9}", "e\u{301}", "1", "01", "%", "*", "k:l", "b\nk"] {
        for _ in 0..2 {
            let batch = [log.keyed(&a, key), log.keyed(&scoped, key), log.event(&a)];
            log.append(batch).await?;
        }
    }
    let many = "k".repeat(300);
    for key in [&*many, &many[1..], &many] {
        let keyed = log.keyed(&a, key);
        log.append([keyed]).await?;
    }
    log.read(&all, ReadFrom::Earliest).await.map(drop)
}

pub(super) async fn refused<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, done) = (topic("a"), topic("done"));
    // The end of a topic is known again, and so is what was there before it.
    let batch = [log.keyed(&done, "first"), log.finish(&done).with_idempotency_key("end")];
    log.append(batch).await?;
    let batch = [log.keyed(&done, "first"), log.finish(&done).with_idempotency_key("end"), log.keyed(&done, "late")];
    log.append(batch).await?;
    log.read_around(&topics([&a, &done])).await?;
    // What was refused was not stored, so it is no repeat.
    log.forget(&done).await?;
    let late = log.keyed(&done, "late");
    log.append([late]).await?;
    log.read_around(&topics([&a, &done])).await
}

/// Of a store that keeps one event of each topic.
pub(super) async fn outlived<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, state) = (topic("a"), topic("state"));
    let batch = [log.keyed(&a, "k"), log.latest(&state, "s").with_idempotency_key("k")];
    log.append(batch).await?;
    for _ in 0..3 {
        let batch = [log.event(&a), log.latest(&state, "s")];
        log.append(batch).await?;
    }
    log.read(&a, ReadFrom::Earliest).await?;
    log.read(&state, ReadFrom::Earliest).await?;
    let batch = [log.keyed(&a, "k"), log.latest(&state, "s").with_idempotency_key("k")];
    log.append(batch).await?;
    log.read(&topics([&a, &state]), ReadFrom::Earliest).await.map(drop)
}

pub(super) async fn at_once<S: ReplayStore>(log: Trial<S>) -> Verdict {
    for round in 0..10 {
        let a = topic(&format!("round {round}"));
        let mut tasks = JoinSet::new();
        for n in 0..5 {
            let (store, a) = (Arc::clone(&log.store), a.clone());
            tasks.spawn(async move {
                for _ in 0..(round + n) % 3 {
                    yield_now().await;
                }
                let record = Record::new(&a, Event::new().data(format!("no. {n}"))).with_idempotency_key("k");
                append(&*store, [record].into()).await
            });
        }
        let outcomes = joined(tasks).await?.concat();
        if outcomes.iter().all(|outcome| matches!(outcome, Err(Refused::Other(_)))) {
            return Ok(());
        }
        let stored: Vec<u64> = outcomes.iter().flatten().map(|cursor| cursor.position()).collect();
        let there = positions(&read_page(&*log.store, Read::new(Topics::from(&a), ReadFrom::Earliest)).await?);
        ensure(there.len() == 1, Rule::RepeatAtOnce, "one record", Positions(&there))?;
        ensure(stored == there, Rule::RepeatAtOnce, Positions(&there), Positions(&stored))?;
        let first = |outcome: &Result<_, Refused>| match outcome {
            Ok(_) => true,
            Err(Refused::Duplicate(cursor)) => cursor.position() == there[0],
            Err(_) => false,
        };
        ensure(outcomes.iter().all(first), Rule::RepeatAtOnce, Positions(&there), format_args!("{outcomes:?}"))?;
    }
    Ok(())
}
