//! New logs, appending, refusals.

use super::{
    Keep,
    rule::{Rule, Verdict, Violation, ensure},
    trial::{Trial, topic, topics},
};
use crate::replay::{ReadFrom, Record, ReplayStore};
use std::sync::Arc;

pub(super) async fn new_logs<S: ReplayStore>(new_store: &impl AsyncFn(Keep) -> S) -> Verdict {
    let (mut one, other) = (Trial::new(new_store, Keep::ALL).await?, Trial::new(new_store, Keep::ALL).await?);
    let epoch = other.book.run.epoch;
    let found = format_args!("{epoch} in two logs").to_string();
    ensure(one.book.run.epoch != epoch, Rule::NewEpoch, "an epoch of its own", found)?;
    for from in [ReadFrom::Earliest, ReadFrom::Last(1), one.after(0)] {
        let page = one.read(&topic("a"), from).await;
        page.map_err(|violation| violation.under(|rule| if rule == Rule::Acknowledged { Rule::NewLog } else { rule }))?;
    }
    Ok(())
}

pub(super) async fn positions<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    for batch in [&[&a][..], &[&b], &[&a, &b, &a], &[&b, &b], &[&a]] {
        log.append_to(batch).await?;
        log.head().await?;
    }
    log.append(Vec::new()).await.map_err(|violation| violation.under(|_| Rule::Outcomes))?;
    log.read(topics([&a, &b]), ReadFrom::Earliest).await.map(drop)
}

pub(super) async fn refusals<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, done) = (topic("a"), topic("b"), topic("done"));
    log.append_to(&[&a, &done]).await?;
    let end = log.finish(&done);
    log.append([end]).await?;

    let batch = [log.event(&a), log.event(&done), log.event(&b), log.finish(&done), log.event(&a)];
    log.append(batch).await?;
    log.head().await?;
    log.read_around(&topics([&a, &b, &done])).await?;
    log.read_around(&(&done).into()).await?;

    // A topic can end in the middle of a batch.
    let batch = [log.event(&b), log.finish(&b), log.event(&a), log.event(&b), log.finish(&b), log.event(&a)];
    log.append(batch).await?;
    log.read_around(&topics([&a, &b])).await?;

    // Nothing but refusals.
    let batch = [log.event(&b), log.finish(&done)];
    log.append(batch).await?;
    log.read_around(&topics([&a, &b, &done])).await
}

pub(super) async fn try_append<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, done) = (topic("a"), topic("done"));
    let batches: [Vec<Record>; 6] = [
        vec![log.event(&a)],
        vec![log.latest(&a, "k")],
        vec![log.event(&a), log.latest(&a, "k")],
        vec![log.event(&a), log.finish(&done)],
        vec![log.event(&done), log.event(&a)],
        vec![log.event(&a)],
    ];
    for batch in batches {
        let batch: Arc<[Record]> = batch.into();
        let what = match log.store.try_append(&batch) {
            Some(Ok(outcomes)) => {
                log.book.enter(&batch, &outcomes).map_err(as_tried)?;
                "`try_append` stored"
            }
            Some(Err(error)) => return Err(as_tried(Violation::new(Rule::TryAppend, "cursors, or no answer", error))),
            None => {
                // To see whether the store took it anyway, before the same is appended.
                log.head().await.map_err(as_tried)?;
                log.read(topics([&a, &done]), ReadFrom::Earliest).await.map_err(as_tried)?;
                log.append(batch).await.map_err(as_tried)?;
                "`append` stored what `try_append` did not"
            }
        };
        let page = log.read(topics([&a, &done]), ReadFrom::Earliest).await;
        page.map_err(|violation| as_tried(violation.when(what)))?;
    }
    Ok(())
}

fn as_tried(violation: Violation) -> Violation {
    violation.under(|_| Rule::TryAppend)
}

pub(super) async fn finish<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, c) = (topic("a"), topic("b"), topic("c"));
    log.append_to(&[&a, &b, &a]).await?;
    let batch = [log.event(&a), log.finish(&a), log.event(&b)];
    log.append(batch).await?;
    log.append_to(&[&b, &c]).await?;
    // An end without a last event.
    log.append([Record::finish(&b, None)]).await?;
    log.append_to(&[&c, &c]).await?;
    // An end that is all there ever was.
    let never = topic("never");
    log.append([Record::finish(&never, None)]).await?;
    log.append_to(&[&c]).await?;

    for refused in [&a, &b, &never] {
        log.append_to(&[refused]).await?;
        let end = log.finish(refused);
        log.append([end]).await?;
    }
    for asked in [topics([&a]), topics([&b]), topics([&never]), topics([&a, &b, &c, &never])] {
        log.read_around(&asked).await?;
        for max_events in 1..=4 {
            log.page_through(&asked, ReadFrom::Earliest, (max_events, usize::MAX)).await?;
        }
    }
    Ok(())
}
