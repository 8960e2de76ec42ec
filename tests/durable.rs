//! The log on disk: it keeps the contract, its bounds and what it was told over restarts, and says what is wrong.

#[path = "durable/folder.rs"]
mod folder;

use folder::Folder;
use std::time::Duration;
use tidings::{
    Event, Topic, Topics,
    replay::{
        Cursor, Durable, DurableBuilder, DurableCheck, Page, Read, ReadFrom, Record, Refused, ReplayStore as _,
        conformance::{Keep, Violation, check, check_reopen},
    },
};

const A: Topic = Topic::from_static("a");
const B: Topic = Topic::from_static("b");
const HOUR: Duration = Duration::from_secs(3600);

fn builder(keep: Keep) -> DurableBuilder {
    keep.events_per_topic.map_or_else(Durable::builder, |events| Durable::builder().events_per_topic(events))
}

async fn conforms(relaxed: bool) -> Result<(), Violation> {
    let folder = Folder::new();
    let builder = |keep| if relaxed { builder(keep).sync_every(Duration::from_millis(5)) } else { builder(keep) };
    check(async |keep| builder(keep).open(folder.another()).await.unwrap()).await?;
    let path = folder.another();
    check_reopen(async |keep| builder(keep).open(&path).await.unwrap()).await
}

#[tokio::test]
async fn conforms_on_one_thread() -> Result<(), Violation> {
    conforms(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_on_several_threads() -> Result<(), Violation> {
    conforms(false).await
}

#[tokio::test]
async fn conforms_on_one_thread_when_it_syncs_later() -> Result<(), Violation> {
    conforms(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_on_several_threads_when_it_syncs_later() -> Result<(), Violation> {
    conforms(true).await
}

fn event(topic: Topic, text: &str) -> Record {
    Record::new(topic, Event::new().data(text))
}

async fn append(log: &Durable, records: impl Into<Vec<Record>>) -> Vec<Result<Cursor, Refused>> {
    log.append(records.into().into()).await.unwrap()
}

/// Appends so many, each in a batch of its own.
async fn append_each(log: &Durable, topic: Topic, numbers: std::ops::Range<usize>) {
    for n in numbers {
        append(log, [event(topic.clone(), &n.to_string())]).await[0].as_ref().unwrap();
    }
}

async fn read(log: &Durable, topics: impl Into<Topics>, from: ReadFrom) -> Page {
    log.read(Read::new(topics, from)).await.unwrap()
}

fn texts(page: &Page) -> Vec<String> {
    page.entries.iter().map(|entry| entry.record().data().unwrap_or_default().into_owned()).collect()
}

async fn held(log: &Durable, topic: Topic) -> Vec<String> {
    texts(&read(log, topic, ReadFrom::Earliest).await)
}

/// Asks again until something is so, which nothing but the background does.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_there_when_it_is_opened_again() {
    let folder = Folder::new();
    let log = Durable::open(folder.path()).await.unwrap();
    let first = append(&log, [event(A, "1"), event(B, "2"), event(A, "3")]).await;
    let first: Vec<Cursor> = first.into_iter().map(Result::unwrap).collect();
    drop(log);
    let log = Durable::open(folder.path()).await.unwrap();
    assert_eq!(held(&log, A).await, ["1", "3"]);
    let page = read(&log, A, ReadFrom::After(first[0])).await;
    assert_eq!((texts(&page), page.floor, page.foreign), (vec!["3".to_owned()], 0, false));
    let next = append(&log, [event(A, "4")]).await.remove(0).unwrap();
    assert_eq!((next.position(), next.run().epoch), (4, first[0].run().epoch));
    assert_ne!(next.run(), first[0].run());
}

#[tokio::test]
async fn a_log_that_was_closed_is_one_whole_file() {
    let folder = Folder::new();
    for text in ["1", "2"] {
        let log = Durable::open(folder.path()).await.unwrap();
        append(&log, [event(A, text)]).await;
        assert!(held(&log, A).await.ends_with(&[text.to_owned()]));
        drop(log);
        let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name());
        let mut files: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, ["lock", "log.db", "mark"]);
    }
}

#[tokio::test]
async fn each_opening_has_a_number_of_its_own_also_in_the_same_second_and_over_an_older_copy() {
    let folder = Folder::new();
    let (log, old) = (folder.another(), folder.another());
    let mut numbers = std::collections::BTreeSet::new();
    drop(Durable::open(&log).await.unwrap());
    folder::copy(&log, &old);
    for round in 0..40 {
        let opened = Durable::open(&log).await.unwrap();
        assert!(numbers.insert(opened.head().await.unwrap().run().number), "round {round}");
        drop(opened);
        if round % 4 == 3 {
            std::fs::remove_dir_all(&log).unwrap();
            folder::copy(&old, &log);
        }
    }
}

#[tokio::test]
async fn a_topic_keeps_so_many_events() {
    let folder = Folder::new();
    let log = Durable::builder().events_per_topic(3).open(folder.path()).await.unwrap();
    append(&log, [event(B, "b")]).await;
    append_each(&log, A, 0..8).await;
    assert_eq!(
        (held(&log, A).await, held(&log, B).await),
        (vec!["5".into(), "6".into(), "7".into()], vec!["b".into()])
    );
    let page = read(&log, A, ReadFrom::Earliest).await;
    assert_eq!((page.floor, read(&log, B, ReadFrom::Earliest).await.floor), (6, 0));
    drop(log);
    // Less, from the moment that it is opened.
    let log = Durable::builder().events_per_topic(2).open(folder.path()).await.unwrap();
    until(async || (held(&log, A).await == ["6", "7"]).then_some(())).await;
    assert_eq!(read(&log, A, ReadFrom::Earliest).await.floor, 7);
}

#[tokio::test]
async fn a_topic_keeps_so_many_bytes() {
    let folder = Folder::new();
    let log = Durable::builder().bytes_per_topic(8192).open(folder.path()).await.unwrap();
    append(&log, [event(B, "b")]).await;
    let text = |n: usize| format!("{n}{}", "x".repeat(2500));
    for n in 0..6 {
        append(&log, [event(A, &text(n))]).await;
    }
    assert_eq!(held(&log, A).await, [text(3), text(4), text(5)]);
    assert_eq!((read(&log, A, ReadFrom::Earliest).await.floor, held(&log, B).await), (4, vec!["b".to_owned()]));
    let outcomes = append(&log, [event(A, &"x".repeat(9000)), event(A, "last")]).await;
    assert_eq!(outcomes[0], Err(Refused::TooLarge));
    assert_eq!(held(&log, A).await.last().unwrap(), "last");
}

#[tokio::test]
async fn all_topics_together_keep_so_many_bytes_and_state_outlasts_history() {
    let folder = Folder::new();
    let log = Durable::builder().total_bytes(40_000).open(folder.path()).await.unwrap();
    let state = Topic::from_static("state");
    append(&log, [Record::latest(&state, "k", Event::new().data("the state"))]).await;
    let text = "x".repeat(1000);
    for n in 0..100 {
        append(&log, [event(Topic::new(format!("topic {}", n % 10)).unwrap(), &text)]).await;
    }
    let mut count = 0;
    for n in 0..10 {
        let page = read(&log, Topic::new(format!("topic {n}")).unwrap(), ReadFrom::Earliest).await;
        assert!(page.floor > 0, "something of each had to go");
        count += page.entries.len();
    }
    assert!((30..=38).contains(&count), "{count}");
    assert_eq!(held(&log, state.clone()).await, ["the state"]);
    assert_eq!(read(&log, state.clone(), ReadFrom::Earliest).await.floor, 0);
    // Unless it is state that takes the room.
    for n in 0..100 {
        append(&log, [Record::latest(&state, n.to_string(), Event::new().data(&text))]).await;
    }
    let page = read(&log, state, ReadFrom::Earliest).await;
    assert!(page.floor > 0 && page.entries.len() < 38, "{}", page.entries.len());
}

#[tokio::test]
async fn what_is_too_old_goes_in_the_background_and_idle_topics_are_folded_into_one_floor() {
    let folder = Folder::new();
    let builder = || Durable::builder().max_age(Duration::from_millis(100)).keep_finished(Duration::from_millis(100));
    let log = builder().open(folder.path()).await.unwrap();
    let state = Topic::from_static("state");
    append(&log, [Record::latest(&state, "k", Event::new().data("good until it is replaced"))]).await;
    for n in 0..50 {
        append(&log, [event(Topic::new(format!("idle {n}")).unwrap(), "x")]).await;
    }
    append(&log, [event(A, "last"), Record::finish(A, None)]).await;
    // Nobody appends to them any more.
    let page = until(async || {
        let page = read(&log, Topic::from_static("idle 0"), ReadFrom::Earliest).await;
        (page.floor == 53).then_some(page)
    });
    assert!(page.await.entries.is_empty());
    assert_eq!(held(&log, state.clone()).await, ["good until it is replaced"]);
    let page = read(&log, state.clone(), ReadFrom::Earliest).await;
    assert_eq!(page.floor, 0, "a topic that holds something has a floor of its own");
    // That it was finished goes too, and then there is nothing of it.
    until(async || append(&log, [event(A, "again")]).await[0].is_ok().then_some(())).await;
    until(async || held(&log, A).await.is_empty().then_some(())).await;
    drop(log);
    let db = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    let rows: Vec<String> = db
        .prepare("SELECT name FROM topics")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(rows, [state.as_key()]);
}

#[tokio::test]
async fn state_is_history_once_its_topic_is_finished() {
    let folder = Folder::new();
    let log = Durable::builder().max_age(Duration::from_millis(50)).open(folder.path()).await.unwrap();
    append(&log, [Record::latest(&A, "k", Event::new().data("state")), Record::finish(&A, None)]).await;
    until(async || held(&log, A).await.is_empty().then_some(())).await;
    let page = read(&log, A, ReadFrom::Earliest).await;
    assert_eq!((page.floor, page.finished), (2, vec![A]), "that it is finished is remembered for longer");
    assert_eq!(append(&log, [event(A, "x")]).await, [Err(Refused::Finished)]);
}

#[tokio::test]
async fn state_goes_by_its_age_where_that_is_asked_for() {
    let folder = Folder::new();
    let log = Durable::builder().keep_latest(Duration::from_millis(50)).open(folder.path()).await.unwrap();
    append(&log, [event(A, "history"), Record::latest(&A, "k", Event::new().data("state"))]).await;
    until(async || (held(&log, A).await == ["history"]).then_some(())).await;
}

#[tokio::test]
async fn idempotency_keys_are_known_when_it_is_opened_again_and_for_as_long_as_is_said() {
    let folder = Folder::new();
    let keyed = |topic, key| event(topic, "x").with_idempotency_key(key);
    let log = Durable::builder().events_per_topic(1).open(folder.path()).await.unwrap();
    let first = append(&log, [keyed(A, "k"), keyed(A, "k"), keyed(B, "k"), event(A, "evicts it")]).await;
    let (a, b) = (first[0].clone().unwrap(), first[2].clone().unwrap());
    assert_eq!(first[1], Err(Refused::Duplicate(a)));
    assert_eq!((a.position(), b.position()), (1, 2));
    let end = || Record::finish(A, None).with_idempotency_key("the end");
    append(&log, [end()]).await[0].as_ref().unwrap();
    // One that is refused is not known.
    assert_eq!(append(&log, [keyed(A, "late")]).await, [Err(Refused::Finished)]);
    log.forget(A).await.unwrap();
    drop(log);
    let log = Durable::builder().keep_idempotency_keys(HOUR).open(folder.path()).await.unwrap();
    let run = log.head().await.unwrap().run();
    let again = append(&log, [keyed(A, "k"), keyed(B, "k"), end(), keyed(A, "late")]).await;
    let of = |position| Err(Refused::Duplicate(run.at(position)));
    assert_eq!(again, [of(1), of(2), of(4), Ok(run.at(5))]);
    drop(log);
    let log = Durable::builder().keep_idempotency_keys(Duration::from_millis(20)).open(folder.path()).await.unwrap();
    until(async || append(&log, [keyed(A, "k")]).await[0].is_ok().then_some(())).await;
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let folder = Folder::new();
    let log = Durable::open(folder.path()).await.unwrap();
    append(&log, [event(A, "1")]).await;
    let error = Durable::open(folder.path()).await.unwrap_err();
    assert!(error.is_in_use(), "{error}");
    assert!(
        error.to_string().contains(&*folder.path().to_string_lossy()) && error.to_string().contains("open already")
    );
    append(&log, [event(A, "2")]).await;
    assert_eq!(held(&log, A).await, ["1", "2"], "and the first is none the worse");
    drop(log);
    Durable::open(folder.path()).await.unwrap();
}

#[tokio::test]
async fn options_that_cannot_be_right_are_refused_in_words() {
    let folder = Folder::new();
    let none = Duration::ZERO;
    for (builder, word) in [
        (Durable::builder().total_bytes(100), "total_bytes"),
        (Durable::builder().bytes_per_topic(0), "bytes_per_topic"),
        (Durable::builder().max_age(none), "max_age"),
        (Durable::builder().keep_latest(none), "keep_latest"),
        (Durable::builder().keep_idempotency_keys(none), "keep_idempotency_keys"),
        (Durable::builder().sync_every(none), "sync_every"),
    ] {
        let error = builder.open(folder.another()).await.unwrap_err();
        assert!(error.is_option() && error.to_string().starts_with(word), "{error}");
    }
    // As long as one likes is none of these.
    let most = Durable::builder().max_age(Duration::MAX).keep_finished(Duration::MAX).sync_every(Duration::MAX);
    let log = most.events_per_topic(usize::MAX).total_bytes(usize::MAX).open(folder.another()).await.unwrap();
    append(&log, [event(A, "1")]).await[0].as_ref().unwrap();
}

#[tokio::test]
async fn a_log_of_a_later_version_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    drop(Durable::open(folder.path()).await.unwrap());
    let file = folder.path().join("log.db");
    rusqlite::Connection::open(&file).unwrap().execute_batch("PRAGMA user_version = 7").unwrap();
    let before = std::fs::read(&file).unwrap();
    let error = Durable::open(folder.path()).await.unwrap_err();
    assert!(error.is_newer() && error.to_string().contains("format 7"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn what_is_something_else_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    let (other, file) = (folder.another(), folder.another());
    std::fs::create_dir(&other).unwrap();
    let db = rusqlite::Connection::open(other.join("log.db")).unwrap();
    db.execute_batch("CREATE TABLE mine (x)").unwrap();
    drop(db);
    std::fs::write(&file, "text").unwrap();
    for path in [&other, &file] {
        let error = Durable::open(path).await.unwrap_err();
        assert!(error.to_string().contains("is not a log of this library"), "{error}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"text");
}

#[tokio::test]
async fn a_log_that_was_not_closed_is_read_through_and_one_that_was_only_if_asked() {
    let folder = Folder::new();
    let log = Durable::open(folder.path()).await.unwrap();
    append(&log, [event(A, "1")]).await;
    drop(log);
    // What the engine does not notice by itself: another text of the same length.
    let db = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    db.execute_batch("UPDATE records SET data = CAST(replace(data, 'data: 1', 'data: 2') AS BLOB)").unwrap();
    drop(db);
    let error = Durable::builder().check(DurableCheck::Always).open(folder.path()).await.unwrap_err();
    assert!(error.is_damaged(), "{error}");
    let log = Durable::open(folder.path()).await.unwrap();
    let error = log.read(Read::new(A, ReadFrom::Earliest)).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    assert!(cause.to_string().contains("damaged"), "nobody is shown it: {cause}");
    drop(log);
    std::fs::remove_file(folder.path().join("mark")).unwrap();
    assert!(Durable::open(folder.path()).await.unwrap_err().is_damaged());
}

#[test]
fn it_is_opened_in_a_runtime_or_says_so() {
    let folder = Folder::new();
    let error = futures_util::FutureExt::now_or_never(Durable::open(folder.path())).unwrap().unwrap_err();
    assert!(error.to_string().contains("runtime"), "{error}");
}
