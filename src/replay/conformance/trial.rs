//! [`Trial`]: a store under test. Every call that the suite makes is made here, with an end to its patience.

use super::{
    Keep,
    book::Book,
    rule::{Rule, Verdict, Violation, ensure},
};
use crate::{
    Event, Topic, Topics,
    replay::{Cursor, Page, Read, ReadFrom, Record, Refused, ReplayStore},
};
use std::{error::Error, fmt::Display, sync::Arc, time::Duration};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// More than any page has.
pub(super) const ALL: (usize, usize) = (10_000, 1 << 30);

type Outcomes = Vec<Result<Cursor, Refused>>;

/// A store, and the book that is kept of it.
pub(super) struct Trial<S> {
    pub(super) store: Arc<S>,
    pub(super) book: Book,
    pub(super) made: u32,
}

impl<S: ReplayStore> Trial<S> {
    /// A new log.
    pub(super) async fn new(new_store: &impl AsyncFn(Keep) -> S, keep: Keep) -> Verdict<Self> {
        let store = Arc::new(in_time("opening the store", new_store(keep)).await?);
        let head = head(&*store).await?;
        ensure(head.position() == 0, Rule::NewLog, "a head of 0", head.position())?;
        let book = Book::new(head.run(), keep.events_per_topic.is_none());
        Ok(Self { store, book, made: 0 })
    }

    /// A new event, different from all others.
    pub(super) fn event(&mut self, topic: &Topic) -> Record {
        Record::new(topic, self.data())
    }

    pub(super) fn finish(&mut self, topic: &Topic) -> Record {
        Record::finish(topic, Some(self.data()))
    }

    pub(super) fn latest(&mut self, topic: &Topic, key: &str) -> Record {
        Record::latest(topic, key, self.data())
    }

    pub(super) fn removal(&mut self, topic: &Topic, key: &str) -> Record {
        Record::removal(topic, key, self.data())
    }

    fn data(&mut self) -> Event {
        self.made += 1;
        Event::new().data(format!("no. {}", self.made))
    }

    pub(super) async fn head(&mut self) -> Verdict<Cursor> {
        let head = head(&*self.store).await?;
        self.book.enter_head(head).map_err(|violation| violation.when("asking for the head"))?;
        Ok(head)
    }

    pub(super) async fn append(&mut self, batch: impl Into<Arc<[Record]>>) -> Verdict<Outcomes> {
        let batch = batch.into();
        let has_refusal = self.book.has_refusal(&batch);
        let explain = |rule| if has_refusal && rule == Rule::Answers { Rule::RefusedAlone } else { rule };
        let outcomes = append(&*self.store, Arc::clone(&batch)).await.map_err(|violation| violation.under(explain))?;
        self.book.enter(&batch, &outcomes).map_err(|violation| violation.when(appending(&batch)))?;
        Ok(outcomes)
    }

    /// Appends one event to each of some topics, as one batch.
    pub(super) async fn append_to(&mut self, topics: &[&Topic]) -> Verdict {
        let batch: Vec<_> = topics.iter().map(|topic| self.event(topic)).collect();
        self.append(batch).await.map(drop)
    }

    pub(super) async fn forget(&mut self, topic: &Topic) -> Verdict {
        forget(&*self.store, topic.clone()).await?;
        self.book.forget(topic);
        Ok(())
    }

    pub(super) async fn read(&mut self, topics: impl Into<Topics>, from: ReadFrom) -> Verdict<Page> {
        self.read_up_to(topics, from, ALL).await
    }

    pub(super) async fn read_up_to(
        &mut self,
        topics: impl Into<Topics>,
        from: ReadFrom,
        (max_events, max_bytes): (usize, usize),
    ) -> Verdict<Page> {
        let read = Read { max_events, max_bytes, ..Read::new(topics, from) };
        let page = read_page(&*self.store, read.clone()).await?;
        if page.through.position() > self.book.newest() {
            // Numbers may be skipped, so it need not be the position of a record. Then the head knows of it.
            self.head().await?;
        }
        self.book.judge(&read, &page).map_err(|violation| violation.when(reading(&read)))?;
        Ok(page)
    }

    pub(super) fn after(&self, position: u64) -> ReadFrom {
        ReadFrom::After(self.book.run.at(position))
    }

    /// Reads some topics from everywhere.
    pub(super) async fn read_around(&mut self, topics: &Topics) -> Verdict {
        self.read(topics, ReadFrom::Earliest).await?;
        for position in 0..=self.book.newest() {
            self.read(topics, self.after(position)).await?;
        }
        let held = self.book.positions(topics).len();
        for n in (0..=held + 1).chain([usize::MAX]) {
            self.read(topics, ReadFrom::Last(n)).await?;
        }
        Ok(())
    }

    /// Reads some topics page by page, to the end.
    pub(super) async fn page_through(
        &mut self,
        topics: &Topics,
        mut from: ReadFrom,
        limits: (usize, usize),
    ) -> Verdict {
        // Each page was found to get on, so there is an end.
        loop {
            let page = self.read_up_to(topics, from, limits).await?;
            if page.entries.is_empty() {
                return Ok(());
            }
            from = ReadFrom::After(page.through);
        }
    }
}

pub(super) async fn head(store: &impl ReplayStore) -> Verdict<Cursor> {
    in_time("asking for the head", store.head()).await?.map_err(|error| failed("asking for the head", &error))
}

pub(super) async fn append(store: &impl ReplayStore, batch: Arc<[Record]>) -> Verdict<Outcomes> {
    let doing = appending(&batch);
    in_time(&doing, store.append(batch)).await?.map_err(|error| failed(&doing, &error))
}

pub(super) async fn read_page(store: &impl ReplayStore, read: Read) -> Verdict<Page> {
    let doing = reading(&read);
    in_time(&doing, store.read(read)).await?.map_err(|error| failed(&doing, &error))
}

pub(super) async fn forget(store: &impl ReplayStore, topic: Topic) -> Verdict {
    let doing = format!("forgetting {topic:?}");
    in_time(&doing, store.forget(topic)).await?.map_err(|error| failed(&doing, &error))
}

pub(super) async fn in_time<T>(doing: impl Display, call: impl Future<Output = T>) -> Verdict<T> {
    let late = |_| Violation::new(Rule::InTime, format_args!("an answer within {PATIENCE:?}"), "none").when(doing);
    timeout(PATIENCE, call).await.map_err(late)
}

fn failed(doing: impl Display, error: &dyn Error) -> Violation {
    let mut chain = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        chain = format!("{chain}: {cause}");
        next = cause.source();
    }
    Violation::new(Rule::Answers, "an answer", format_args!("the error: {chain}")).when(doing)
}

pub(super) fn appending(batch: &[Record]) -> String {
    let name = |record: &Record| match record.replaces() {
        Some(key) => format!("{:?} of {key:?} to {:?}", record.kind(), record.topic()),
        None => format!("{:?} to {:?}", record.kind(), record.topic()),
    };
    let records: Vec<_> = batch.iter().map(name).collect();
    format!("appending [{}]", records.join(", "))
}

pub(super) fn reading(read: &Read) -> String {
    let topics: Vec<_> = read.topics.iter().collect();
    let text = match read.from {
        ReadFrom::After(cursor) => format!("reading {topics:?} after {cursor}"),
        ReadFrom::Earliest => format!("reading {topics:?} from the earliest"),
        ReadFrom::Last(n) => format!("reading the last {n} of {topics:?}"),
    };
    let bounds = [(read.max_events, ALL.0, "records"), (read.max_bytes, ALL.1, "bytes")];
    let bounds = bounds.into_iter().filter(|(bound, none, _)| bound < none);
    bounds.fold(text, |text, (bound, _, of)| format!("{text}, up to {bound} {of}"))
}

/// A topic by a name that is known to be good.
pub(super) fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap_or_else(|_| unreachable!("a good name"))
}

pub(super) fn topics<const N: usize>(topics: [&Topic; N]) -> Topics {
    Topics::new(topics.into_iter().cloned()).unwrap_or_else(|_| unreachable!("a few topics"))
}
