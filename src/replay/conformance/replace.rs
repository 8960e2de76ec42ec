//! The newest of a key: it takes the place of the one before, and of nothing else.

use super::{
    rule::{Rule, Verdict, Violation, ensure},
    trial::{Trial, appending, topic, topics},
};
use crate::{
    Topic, Topics,
    replay::{Kind, ReadFrom, Record, ReplayStore},
};
use std::time::SystemTime;

/// Appends a batch, and looks whether what it takes the place of is gone, and nothing else.
async fn replace<S: ReplayStore>(log: &mut Trial<S>, asked: &Topics, batch: impl Into<Vec<Record>>) -> Verdict {
    let batch = batch.into();
    let doing = format!("after {}", appending(&batch));
    log.append(batch).await?;
    look(log, asked).await.map_err(|violation| violation.when(doing))
}

async fn look<S: ReplayStore>(log: &mut Trial<S>, asked: &Topics) -> Verdict {
    let replacing = |rule| match rule {
        Rule::Complete | Rule::Earliest => Rule::ReplacesOnly,
        rule => rule,
    };
    log.read(asked, ReadFrom::Earliest).await.map(drop).map_err(|violation| violation.under(replacing))
}

pub(super) async fn newest<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, ab) = (topic("a"), topic("b"), topic("ab"));
    let all = topics([&a, &b, &ab]);
    // What must stay: plain events with the key, other keys, and the key in other topics.
    let others = [log.event(&a).with_key("k"), log.latest(&a, "l"), log.latest(&b, "k"), log.removal(&ab, "k")];
    replace(&mut log, &all, others).await?;

    // Each kind after each.
    for kind in [Kind::Latest, Kind::Latest, Kind::Removal, Kind::Removal, Kind::Latest] {
        let next = if kind == Kind::Latest { log.latest(&a, "k") } else { log.removal(&a, "k") };
        replace(&mut log, &all, [next]).await?;
    }
    // What takes no place.
    for next in [log.event(&a).with_key("k"), log.latest(&a, "j"), log.removal(&a, "z"), log.latest(&ab, "z")] {
        replace(&mut log, &all, [next]).await?;
    }

    // More than once in a batch.
    let batch = [
        log.latest(&a, "k"),
        log.removal(&a, "m"),
        log.removal(&a, "k"),
        log.event(&a).with_key("k"),
        log.latest(&b, "k"),
        log.latest(&a, "m"),
        log.latest(&a, "k"),
    ];
    replace(&mut log, &all, batch).await?;

    // However old.
    for _ in 0..8 {
        log.append_to(&[&a, &b, &a, &ab]).await?;
    }
    let batch = [log.latest(&a, "l"), log.removal(&a, "k")];
    replace(&mut log, &all, batch).await?;
    let end = log.finish(&a).with_key("k");
    replace(&mut log, &all, [end]).await?;

    for asked in [topics([&a]), all] {
        log.read_around(&asked).await?;
        for max_events in 1..=3 {
            for from in [ReadFrom::Earliest, log.after(3), ReadFrom::Last(7)] {
                log.page_through(&asked, from, (max_events, usize::MAX)).await?;
            }
        }
    }
    Ok(())
}

pub(super) async fn alike_keys<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let full = "x".repeat(1000);
    let others = [&format!("{full}y"), &format!("{full}z"), &format!("y{full}"), "k\u{1f}l", "\u{feff}k"];
    let texts = [
        "", " ", "k", "K", "k ", " k", "\tk", "k\0", "k\0l", "\0", "k/l", "%", "_", "k%", "*", "k'", "''", "\"k\"",
        "\\", "ä", "Ä", "a\u{308}", "ｋ", "0", "00", "0.0", "null", "NULL", "true", &full,
    ];
    let keys: Vec<&str> = texts.into_iter().chain(others).collect();
    let (a, b) = (topic("a"), topic("b"));
    let both = topics([&a, &b]);
    for round in 0..3 {
        let mut batch = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            let (latest, removal) = (log.latest(&a, key), log.removal(&b, key));
            batch.extend(if (n + round) % 2 == 0 { [latest, removal] } else { [removal, latest] });
        }
        // Without a key there is no place to take.
        batch.extend(Record::from_stored(a.clone(), Kind::Latest, b"data: no key\n", SystemTime::now()));
        replace(&mut log, &both, batch).await?;
    }
    for key in keys {
        let next = log.latest(&b, key);
        replace(&mut log, &both, [next]).await?;
    }

    // Topics and keys that would be the same if one was pasted to the other.
    let scoped = Topic::scoped("a", "b").unwrap_or_else(|_| unreachable!("good names"));
    let alike = [(&topic("x"), "yz"), (&topic("xy"), "z"), (&topic("x/y"), "z"), (&topic("x"), "y/z")];
    let alike = alike.into_iter().chain([(&scoped, "k"), (&a, "b\u{1f}k"), (&a, "bk"), (&b, "k")]);
    let asked = topics([&a, &b, &scoped, &topic("x"), &topic("xy"), &topic("x/y")]);
    for (topic, key) in alike {
        let next = log.latest(topic, key);
        replace(&mut log, &asked, [next]).await?;
    }
    Ok(())
}

/// What comes after the end of its topic is refused, and so takes the place of nothing.
pub(super) async fn finished<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, done) = (topic("a"), topic("done"));
    let both = topics([&a, &done]);
    let batch = [log.latest(&done, "k"), log.removal(&done, "l"), log.latest(&a, "k"), log.finish(&done)];
    replace(&mut log, &both, batch).await?;

    let behind =
        |violation: Violation| violation.under(|rule| if rule == Rule::ReplacesOnly { Rule::NoTrace } else { rule });
    for key in ["k", "l"] {
        let batch = [log.latest(&done, key), log.removal(&done, key), log.latest(&a, key)];
        replace(&mut log, &both, batch).await.map_err(behind)?;
    }
    // Behind an end in the same batch.
    let batch = [log.removal(&a, "k"), log.finish(&a), log.latest(&a, "k"), log.latest(&a, "l")];
    replace(&mut log, &both, batch).await.map_err(behind)?;
    log.read_around(&both).await
}

pub(super) async fn forgetting<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b) = (topic("a"), topic("b"));
    let both = topics([&a, &b]);
    for round in 0..3 {
        for batch in [[log.latest(&a, "k"), log.removal(&a, "l")], [log.latest(&a, "k"), log.latest(&b, "k")]] {
            replace(&mut log, &both, batch).await?;
        }
        if round == 1 {
            let end = log.finish(&a);
            log.append([end]).await?;
        }
        log.forget(&a).await?;
        look(&mut log, &both).await?;
    }
    // The first of a key that was forgotten has nothing to take the place of.
    for key in ["k", "l", "k"] {
        let next = log.latest(&a, key);
        replace(&mut log, &both, [next]).await?;
    }
    log.read_around(&topics([&a])).await?;
    log.read_around(&both).await
}

/// Of a store that keeps a few events of each topic.
pub(super) async fn eviction<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let (a, b, c) = (topic("a"), topic("b"), topic("c"));
    let all = topics([&a, &b, &c]);
    // By turns: as long as there is room for all keys, none is evicted.
    for keys in [&["k"][..], &["k", "l"], &["k", "l", "m", "n"]] {
        for key in keys.repeat(3) {
            let next = log.latest(&a, key);
            replace(&mut log, &all, [next]).await?;
        }
    }
    // Among events, of a key that may be evicted before it is replaced.
    for n in 0..6 {
        let last = if n % 2 == 0 { log.removal(&a, "k") } else { log.latest(&a, "k") };
        for next in [log.event(&a), log.event(&a).with_key("k"), last, log.event(&b)] {
            replace(&mut log, &all, [next]).await?;
        }
        log.append_to(&vec![&a; n]).await?;
        look(&mut log, &all).await?;
    }
    log.read_around(&all).await?;
    // Nothing but state has its bounds too.
    for n in 0..40 {
        let next = log.latest(&c, &format!("no. {n}"));
        replace(&mut log, &all, [next]).await?;
    }
    ensure(log.book.lost(&(&c).into()) > 0, Rule::Evicts, "some of 40 keys removed", "all are held")?;
    for asked in [topics([&c]), all.clone()] {
        log.read_around(&asked).await?;
        log.page_through(&asked, ReadFrom::Earliest, (1, usize::MAX)).await?;
    }
    log.forget(&a).await?;
    let batch = [log.latest(&a, "k"), log.latest(&c, "no. 39")];
    replace(&mut log, &all, batch).await?;
    log.read_around(&all).await
}
