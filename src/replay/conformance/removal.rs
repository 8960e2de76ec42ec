//! Eviction and forgetting: what is removed is below the floor, and nothing else goes.

use super::{
    rule::{Rule, Verdict, Violation, ensure},
    trial::{Trial, topic, topics},
};
use crate::replay::{ReadFrom, ReplayStore};

/// Of a store that keeps a few events of each topic.
pub(super) async fn eviction<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (busy, quiet, late) = (topic("busy"), topic("quiet"), topic("late"));
    let both = topics([&busy, &quiet]);
    log.append_to(&[&quiet, &busy, &quiet]).await?;
    for batch in [1, 2, 3, 1, 7, 1, 20, 1, 3] {
        log.append_to(&vec![&busy; batch]).await?;
        for asked in [topics([&busy]), both.clone(), topics([&quiet])] {
            log.read(&asked, ReadFrom::Earliest).await?;
            log.read(&asked, log.after(log.book.newest() - 2)).await?;
        }
    }
    log.head().await?;
    log.read_around(&topics([&busy])).await?;
    log.read_around(&both).await?;
    ensure(log.book.lost(&(&busy).into()) > 0, Rule::Evicts, "some of 40 records removed", "all are held")?;
    log.append_to(&[&late, &quiet]).await?;
    for asked in [topics([&late]), topics([&busy, &late, &quiet])] {
        log.read_around(&asked).await?;
        for max_events in [1, 2] {
            for from in [ReadFrom::Earliest, log.after(0), ReadFrom::Last(3)] {
                log.page_through(&asked, from, (max_events, usize::MAX)).await?;
            }
        }
    }
    // What was evicted is forgotten with the rest.
    log.forget(&busy).await?;
    log.read_around(&both).await?;
    log.append_to(&[&busy, &busy]).await?;
    log.read_around(&both).await
}

/// Of a store that keeps next to nothing, so that a topic's end is evicted too.
pub(super) async fn finished_and_evicted<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    for of in [&a, &b] {
        log.append_to(&[of, of]).await?;
        let end = log.finish(of);
        log.append([end]).await?;
        log.read_around(&topics([&a, &b])).await?;
        log.append_to(&[of]).await?;
    }
    log.read_around(&topics([&a])).await?;
    log.read_around(&topics([&a, &b])).await
}

pub(super) async fn forgetting<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, done, unknown) = (topic("a"), topic("b"), topic("done"), topic("unknown"));
    let all = topics([&a, &b, &done, &unknown]);
    log.forget(&unknown).await?;
    log.append_to(&[&a, &b, &done, &a]).await?;
    let end = log.finish(&done);
    log.append([end]).await?;
    log.append_to(&[&b, &a]).await?;
    forget(&mut log, &unknown).await?;
    log.read_around(&all).await?;

    for of in [&b, &done] {
        forget(&mut log, of).await?;
        for asked in [topics([of]), topics([&a]), all.clone()] {
            log.read_around(&asked).await?;
        }
        log.append_to(&[of, &a]).await?;
        for asked in [topics([of]), all.clone()] {
            log.read_around(&asked).await?;
        }
    }
    // With the newest position goes no position: it is not given again.
    log.append_to(&[&b]).await?;
    forget(&mut log, &b).await?;
    log.head().await?;
    log.append_to(&[&a]).await?;
    log.read_around(&all).await?;
    // Down to nothing, twice the same, and up again.
    for of in [&a, &b, &done, &done, &a] {
        forget(&mut log, of).await?;
    }
    log.head().await?;
    log.read_around(&all).await?;
    let end = log.finish(&done);
    log.append([end]).await?;
    log.append_to(&[&a, &b]).await?;
    log.read_around(&all).await?;
    log.page_through(&all, ReadFrom::Earliest, (1, usize::MAX)).await
}

/// Forgets one topic, and looks at once whether only that one went.
async fn forget<S: ReplayStore>(log: &mut Trial<S>, forgotten: &crate::Topic) -> Verdict {
    log.forget(forgotten).await?;
    for other in ["a", "b", "done"].map(topic) {
        let touched = |violation: Violation| {
            let of_other = |rule| match rule {
                Rule::Complete | Rule::Earliest | Rule::FinishListed | Rule::FinishKept if other != *forgotten => {
                    Rule::ForgetOnly
                }
                rule => rule,
            };
            violation.under(of_other)
        };
        let page = log.read(&other, ReadFrom::Earliest).await;
        page.map_err(|violation| touched(violation).when(format_args!("after {forgotten:?} was forgotten")))?;
    }
    Ok(())
}
