//! Where a read begins, where a page ends, and what it must not have.

use super::{
    rule::{Rule, Verdict},
    trial::{ALL, Trial, topic, topics},
};
use crate::{
    Event, Topic, Topics,
    replay::{Read, ReadFrom, Record, ReplayStore, Run},
};
use std::{future::poll_fn, pin::pin, task::Poll};

/// Appends 24 records in batches of several sizes.
async fn fill<S: ReplayStore>(log: &mut Trial<S>, [a, b, c]: [&Topic; 3]) -> Verdict {
    let batches: [&[&Topic]; 8] =
        [&[a], &[b, a], &[c], &[a, a, c, b], &[b], &[c, b, a, c, b, a], &[a, a, a], &[b, b, c, a, c, a]];
    for batch in batches {
        log.append_to(batch).await?;
    }
    Ok(())
}

pub(super) async fn ranges<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, c, none) = (topic("a"), topic("b"), topic("c"), topic("none"));
    fill(&mut log, [&a, &b, &c]).await?;
    for asked in [topics([&a]), topics([&b]), topics([&a, &c]), topics([&a, &b, &c, &none]), topics([&none])] {
        log.read_around(&asked).await?;
    }
    Ok(())
}

pub(super) async fn limits<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, c) = (topic("a"), topic("b"), topic("c"));
    fill(&mut log, [&a, &b, &c]).await?;
    for asked in [topics([&b]), topics([&a, &b, &c])] {
        for max_events in [1, 2, 5, 23, 24, 25] {
            for from in [ReadFrom::Earliest, log.after(3), ReadFrom::Last(7)] {
                log.page_through(&asked, from, (max_events, usize::MAX)).await?;
            }
        }
    }
    // Each body is far larger than what a store may count beside it.
    for (of, bytes) in [(&a, 1000), (&b, 1100), (&a, 50_000), (&a, 900), (&b, 1000), (&a, 1000)] {
        log.append([Record::new(of, Event::new().data("x".repeat(bytes)))]).await?;
    }
    for max_bytes in [1, 950, 2500, 30_000, 51_000, 1 << 20] {
        for asked in [topics([&a]), topics([&a, &b])] {
            for from in [ReadFrom::Earliest, ReadFrom::Last(6)] {
                log.page_through(&asked, from, (ALL.0, max_bytes)).await?;
                log.page_through(&asked, from, (2, max_bytes)).await?;
            }
        }
    }
    Ok(())
}

pub(super) async fn foreign<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    let asked = topics([&a, &b]);
    judge_foreign(&mut log, &asked).await?;
    log.append_to(&[&a, &a, &b]).await?;
    let end = log.finish(&b);
    log.append([end]).await?;
    judge_foreign(&mut log, &asked).await?;
    judge_foreign(&mut log, &(&a).into()).await
}

async fn judge_foreign<S: ReplayStore>(log: &mut Trial<S>, asked: &Topics) -> Verdict {
    let run = log.book.run;
    let newest = log.head().await?.position();
    let other = |epoch, number| Run { epoch, number };
    let others = [
        other(run.epoch ^ 1, run.number),
        other(run.epoch.wrapping_add(1 << 63), run.number),
        other(run.epoch, run.number.wrapping_add(1)),
        other(run.epoch, run.number ^ 1 << 31),
    ];
    for run in others {
        for position in [0, 1, newest, newest + 1, u64::MAX] {
            log.read(asked, ReadFrom::After(run.at(position))).await?;
        }
    }
    // The last two are no position of a store that keeps them as signed numbers.
    for position in [0, newest, newest + 1, newest + 1000, 1 << 63, u64::MAX] {
        log.read(asked, log.after(position)).await?;
    }
    Ok(())
}

pub(super) async fn dropped<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    log.append_to(&[&a, &b, &a]).await?;
    for polls in 1..=6 {
        for from in [ReadFrom::Earliest, log.after(1), ReadFrom::Last(2)] {
            {
                let mut read =
                    pin!(log.store.read(Read { max_events: 2, max_bytes: 100, ..Read::new(topics([&a, &b]), from) }));
                for _ in 0..polls {
                    let answered = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx).is_ready())).await;
                    if answered {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let spoiled = |_| Rule::DroppedRead;
            log.read(topics([&a, &b]), ReadFrom::Earliest).await.map_err(|violation| violation.under(spoiled))?;
            log.append_to(&[&a, &b]).await.map_err(|violation| violation.under(spoiled))?;
        }
    }
    log.read(topics([&a, &b]), ReadFrom::Earliest)
        .await
        .map_err(|violation| violation.under(|_| Rule::DroppedRead))
        .map(drop)
}
