//! Stores that outlive the process: what a log that is opened again must still be.

use super::{
    Keep,
    rule::{Rule, Verdict, Violation, ensure},
    trial::{Trial, head, in_time, topic, topics},
};
use crate::{
    Topic,
    replay::{ReadFrom, ReplayStore},
};
use std::sync::Arc;

pub(super) async fn reopen<S: ReplayStore>(open: &impl AsyncFn(Keep) -> S) -> Verdict {
    let keep = Keep::some(6);
    let (a, b, busy, done, gone) = (topic("a"), topic("b"), topic("busy"), topic("done"), topic("gone"));
    let state = topic("state");
    let mut log = Trial::new(open, keep).await?;

    // An opening without a record is a run too.
    log = log.again(open, keep).await?;
    look(&mut log, &[&a]).await?;

    log.append_to(&[&a, &b, &gone, &a]).await?;
    log = log.again(open, keep).await?;
    look(&mut log, &[&a, &b, &gone]).await?;

    log.append_to(&[&done, &b]).await?;
    let end = log.finish(&done);
    log.append([end]).await?;
    for _ in 0..5 {
        log.append_to(&[&busy, &busy, &busy]).await?;
    }
    log.read(&busy, ReadFrom::Earliest).await?;
    log.append_to(&[&a, &gone]).await?;
    // The newest record goes, but its position does not come back.
    log.forget(&gone).await?;
    log.read(&gone, ReadFrom::Earliest).await?;
    log = log.again(open, keep).await?;
    let all = [&a, &b, &busy, &done, &gone];
    look(&mut log, &all).await?;

    log.append_to(&[&gone, &a, &busy, &done]).await.map_err(reopened)?;
    look(&mut log, &all).await?;
    log.forget(&done).await?;
    log = log.again(open, keep).await?;
    look(&mut log, &all).await?;
    log.append_to(&[&done, &a]).await.map_err(reopened)?;
    look(&mut log, &all).await?;

    // Of each key its newest outlives the run, and is replaced in a later one.
    let batch = [log.latest(&state, "k"), log.latest(&state, "l"), log.latest(&state, "k"), log.latest(&state, "m")];
    log.append(batch).await?;
    let last = log.removal(&state, "m");
    log.append([last]).await?;
    for _ in 0..2 {
        log = log.again(open, keep).await?;
        look(&mut log, &[&state]).await?;
        for batch in [vec![log.removal(&state, "k"), log.latest(&state, "m")], vec![log.latest(&state, "k")]] {
            log.append(batch).await?;
            look(&mut log, &[&state]).await?;
        }
    }
    let batch = [log.keyed(&a, "k"), log.event(&a)];
    log.append(batch).await?;
    log = log.again(open, keep).await?;
    look(&mut log, &[&a, &state]).await?;
    let batch = [log.keyed(&a, "k"), log.keyed(&a, "l")];
    log.append(batch).await.map_err(|violation| violation.under(|_| Rule::ReopenRepeats))?;
    look(&mut log, &[&a]).await
}

impl<S: ReplayStore> Trial<S> {
    /// Closes the log and opens it again.
    async fn again(self, open: &impl AsyncFn(Keep) -> S, keep: Keep) -> Verdict<Self> {
        let Self { store, mut book, made } = self;
        drop(store);
        let store = Arc::new(in_time("opening the log again", open(keep)).await?);
        let head = head(&*store).await?;
        let (before, run) = (book.run, head.run());
        ensure(run.epoch == before.epoch, Rule::SameEpoch, format_args!("the epoch {}", before.epoch), run.epoch)?;
        let used: Vec<u32> = book.older.iter().map(|(run, _)| run.number).chain([before.number]).collect();
        let found = run.number;
        ensure(!used.contains(&found), Rule::NewRun, format_args!("a number other than {used:?}"), found)?;
        let newest = book.newest();
        ensure(head.position() >= newest, Rule::ReopenKeeps, format_args!("a head of {newest}"), head.position())?;
        book.begin_run(head);
        Ok(Self { store, book, made })
    }
}

async fn look<S: ReplayStore>(log: &mut Trial<S>, of: &[&Topic]) -> Verdict {
    for one in of {
        log.read_around(&(*one).into()).await.map_err(reopened)?;
    }
    let asked = topics([of[0], of[of.len() - 1]]);
    log.read_around(&asked).await.map_err(reopened)?;
    for (run, good) in log.book.older.clone() {
        let newest = log.book.newest();
        for position in [0, good.saturating_sub(1), good, good + 1, newest, newest + 1, u64::MAX] {
            let read = log.read(&asked, ReadFrom::After(run.at(position))).await;
            let older = |rule| match rule {
                Rule::NotForeign => Rule::OlderRun,
                Rule::Foreign => Rule::OlderRunPast,
                rule => rule,
            };
            let doing = format!("of run {}, good up to {good}", run.number);
            read.map_err(|violation| reopened(violation.under(older).when(doing)))?;
        }
    }
    Ok(())
}

/// What breaks after a log was opened again, and held before.
fn reopened(violation: Violation) -> Violation {
    let rule = |rule| match rule {
        Rule::Complete | Rule::Earliest | Rule::Last | Rule::After | Rule::PositionsRise | Rule::Record => {
            Rule::ReopenKeeps
        }
        Rule::FinishKept | Rule::FinishListed | Rule::FinishRefuses => Rule::ReopenFinished,
        Rule::FloorCovers => Rule::ReopenFloors,
        Rule::Replaces => Rule::ReopenReplaces,
        rule => rule,
    };
    violation.under(rule)
}
