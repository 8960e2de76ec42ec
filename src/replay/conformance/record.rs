//! Whether records come back as they were given, and whether topics are told apart.

use super::{
    rule::Verdict,
    trial::{Trial, topic, topics},
};
use crate::{
    Event, EventType, Topic, Topics,
    replay::{Kind, ReadFrom, Record, ReplayStore},
};
use bytes::Bytes;
use std::time::{Duration, SystemTime};

pub(super) async fn round_trip<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let plain = topic("plain");
    let scoped = scoped("tenant/1", "näme of 𝄞");
    let mut batch = vec![
        Record::new(&plain, Event::new()),
        Record::new(&plain, Event::new().data("")),
        Record::new(&plain, Event::new().data("one\ntwo\r\n\nfour\n")),
        Record::new(
            &scoped,
            Event::new().data("a NUL \0, a quote ' and \", ünï¢ode 𝄞, \u{2028}, \u{feff}, a\ttab, \\"),
        ),
        Record::new(&scoped, Event::new().event_type(EventType::from_static("ty:pe")).data(" lead").comment("id: no")),
        Record::new(&plain, Event::new().retry(Duration::from_millis(1500)).data("x".repeat(100_000))),
        Record::new(&plain, Event::new().data("key")).with_key("the key"),
        Record::new(&plain, Event::new().data("an empty key")).with_key(""),
        Record::new(&scoped, Event::new().data("a hard key")).with_key("'; \0 \u{1f} = , \n 𝄞"),
        Record::new(&plain, Event::new().data("labels")).with_label("z", "1").with_label("a", "2").with_label("z", "1"),
        Record::new(&scoped, Event::new().data("hard labels"))
            .with_label("", "")
            .with_label("=,\";'\\\n", "\0\u{1f}𝄞")
            .with_label("a", ""),
        Record::new(&scoped, Event::new().data("both")).with_label("a", "b").with_key("k"),
        Record::latest(&plain, "the key", Event::new().data("state")).with_label("l", "v"),
        Record::latest(&scoped, "'; \0 \u{1f} = , \n 𝄞", Event::new().data("state of a hard key")),
        Record::removal(&plain, "", Event::new().data("the last of an empty key")),
        Record::removal(&scoped, "k", Event::new()),
    ];
    for time in [Duration::ZERO, Duration::from_micros(1_700_000_000_123_456), Duration::from_secs(1 << 33)] {
        let body = Bytes::from_static(b"data: at some time\n");
        let record = Record::from_stored(plain.clone(), Kind::Event, &body, SystemTime::UNIX_EPOCH + time);
        batch.extend(record.ok());
    }
    batch.push(Record::finish(&plain, Some(Event::new().data("the end"))).with_key("k").with_label("l", "v"));
    batch.push(Record::finish(&scoped, None).with_label("l", "v"));
    log.append(batch).await?;
    log.read(topics([&plain, &scoped]), ReadFrom::Earliest).await?;
    log.read(&scoped, ReadFrom::Last(3)).await?;
    log.page_through(&topics([&plain, &scoped]), log.after(1), (2, usize::MAX)).await
}

pub(super) async fn alike_topics<S: ReplayStore>(mut log: Trial<S>) -> Verdict {
    let full = "x".repeat(Topic::MAX_LEN);
    let longer = format!("{}y", &full[1..]);
    let names =
        ["a", "A", "a ", " a", "ä", "a\u{308}", "a/b", "%", "_", "a*", "*", "a'b", "0", "00", "null", &full, &longer];
    let scopes =
        [("a", "b"), ("a", "a"), ("b", "a"), ("a/b", "c"), ("a", "b/c"), ("A", "b"), (&full, &full), (&full, &longer)];
    let all: Vec<Topic> =
        names.map(topic).into_iter().chain(scopes.map(|(tenant, name)| scoped(tenant, name))).collect();
    for _ in 0..2 {
        let batch: Vec<_> = all.iter().map(|topic| log.event(topic)).collect();
        log.append(batch).await?;
    }
    // Ends, and later what is removed, of some touch none of the others.
    for ended in all.iter().step_by(3) {
        let end = log.finish(ended);
        log.append([end]).await?;
    }
    for asked in &all {
        log.read(asked, ReadFrom::Earliest).await?;
        log.read(asked, ReadFrom::Last(1)).await?;
    }
    for forgotten in all.iter().step_by(4) {
        log.forget(forgotten).await?;
    }
    for asked in &all {
        log.read(asked, ReadFrom::Earliest).await?;
        log.append_to(&[asked]).await?;
    }
    let asked = Topics::new(all).unwrap_or_else(|_| unreachable!("fewer than 64 topics"));
    log.read(&asked, ReadFrom::Earliest).await?;
    log.read(&asked, ReadFrom::Last(9)).await.map(drop)
}

pub(super) fn scoped(tenant: &str, name: &str) -> Topic {
    Topic::scoped(tenant, name).unwrap_or_else(|_| unreachable!("good names"))
}
