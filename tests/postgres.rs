//! The store of `examples/postgres_store.rs` on a real `PostgreSQL`, and what the page on writing a store says of it.
//!
//! Needs Debian's `postgresql`, and is run by name: `cargo test --test postgres`.

#[path = "postgres/naive.rs"]
mod naive;
#[path = "postgres/nodes.rs"]
mod nodes;
#[path = "../examples/postgres_store/mod.rs"]
mod postgres_store;
#[path = "postgres/proxy.rs"]
mod proxy;
#[path = "postgres/restarts.rs"]
mod restarts;
#[path = "postgres/server.rs"]
mod server;
mod support;
#[path = "postgres/unknown.rs"]
mod unknown;

use crate::{
    postgres_store::{PostgresStore, Retention, check::check},
    server::Postgres,
};
use std::{sync::Arc, time::Duration};
use tidings::{
    Event, Hub, Message, Subscription, Topic,
    replay::{AppendError, Cursor, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore},
    test_util::next_message,
};
use tokio::time::timeout;
use tokio_postgres::Config;

/// Far more than anything here takes on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_secs(60);

const TOPIC: Topic = Topic::from_static("t");

const PAGE: &str = include_str!("../src/replay/writing_a_store.md");

async fn open(config: Config) -> PostgresStore {
    PostgresStore::open(config, "tidings", Retention::default()).await.unwrap()
}

fn event(number: u32) -> Record {
    Record::new(TOPIC, Event::new().data(number.to_string()))
}

async fn append(store: &impl ReplayStore, number: u32) -> Result<Cursor, AppendError> {
    let outcomes = store.append([event(number)].into()).await?;
    Ok(outcomes.into_iter().next().unwrap().unwrap())
}

/// The numbers that a read finds.
async fn held(store: &impl ReplayStore) -> Vec<u32> {
    let page = store.read(Read::new(TOPIC, ReadFrom::Earliest)).await.unwrap();
    page.entries.iter().map(|entry| number(entry.record())).collect()
}

fn number(record: &Record) -> u32 {
    record.data().unwrap().parse().unwrap()
}

/// The next event's number, or `None` for a gap.
async fn next(subscription: &mut Subscription) -> Option<u32> {
    let next = timeout(DEADLINE, next_message(subscription)).await.expect("something should come");
    match next.expect("the subscription should go on") {
        Message::Event(entry) => Some(number(entry.record())),
        Message::Gap(_) => None,
        other => panic!("{other:?}"),
    }
}

/// The store as one that belongs to one hub: what is unknown, the hub has to find out.
#[derive(Clone)]
struct Alone(PostgresStore);

impl ReplayStore for Alone {
    fn head(&self) -> impl Future<Output = Result<Cursor, ReadError>> + Send {
        self.0.head()
    }

    fn append(
        &self,
        records: Arc<[Record]>,
    ) -> impl Future<Output = Result<Vec<Result<Cursor, Refused>>, AppendError>> + Send {
        self.0.append(records)
    }

    fn read(&self, read: Read) -> impl Future<Output = Result<Page, ReadError>> + Send {
        self.0.read(read)
    }

    fn forget(&self, topic: Topic) -> impl Future<Output = Result<(), ReadError>> + Send {
        self.0.forget(topic)
    }
}

/// Two hubs, one over the store as nodes share it and one over the store alone, each on a log of its own.
async fn both_kinds(config: &Config) -> [Hub; 2] {
    let alone = PostgresStore::open(config.clone(), "alone", Retention::default()).await.unwrap();
    [Hub::builder().open(open(config.clone()).await).await.unwrap(), Hub::builder().open(Alone(alone)).await.unwrap()]
}

#[tokio::test]
async fn conforms_on_one_thread() {
    let server = Postgres::start();
    check(&server.config()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_on_several_threads() {
    let server = Postgres::start();
    check(&server.config()).await.unwrap();
}

fn normalised(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches(';').to_owned()
}

#[test]
fn the_page_has_the_statements_that_the_store_makes() {
    const SOURCE: &str = include_str!("../examples/postgres_store/sql.rs");
    let tables = |text: &str| text.split(";\n").map(normalised).collect::<Vec<_>>();
    let mut made = Vec::new();
    for constant in SOURCE.split(": &str = \"\n").skip(1) {
        let text = constant.split("\n\";").next().unwrap();
        made.extend(if text.starts_with("CREATE") { tables(text) } else { vec![normalised(text)] });
    }
    let mut quoted = Vec::new();
    for block in PAGE.split("```sql\n").skip(1) {
        let text = block.split("\n```").next().unwrap();
        quoted.extend(if text.starts_with("CREATE") {
            tables(text)
        } else {
            text.split("\n\n").map(normalised).collect()
        });
    }
    made.sort_unstable();
    quoted.sort_unstable();
    assert!(made.len() > 30, "{}", made.len());
    assert_eq!(quoted, made, "each statement of the store stands on the page once, and no other");
}

#[tokio::test]
async fn what_is_old_goes_but_not_the_newest_of_a_key() {
    let server = Postgres::start();
    let store = open(server.config()).await;
    let state = Record::latest(TOPIC, "k", Event::new().data("1"));
    store.append([state, event(2), event(3)].into()).await.unwrap();
    let before = store.head().await.unwrap();
    store.prune(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(held(&store).await, [1, 2, 3]);
    store.prune(Duration::ZERO).await.unwrap();
    assert_eq!(held(&store).await, [1]);
    let page = store.read(Read::new(TOPIC, ReadFrom::Earliest)).await.unwrap();
    assert_eq!((page.floor, page.through), (3, before));

    // Once the topic is finished, it is no state any more.
    store.append([Record::finish(TOPIC, None)].into()).await.unwrap();
    store.prune(Duration::ZERO).await.unwrap();
    assert!(held(&store).await.is_empty());
    let page = store.read(Read::new(TOPIC, ReadFrom::Earliest)).await.unwrap();
    assert_eq!((page.floor, page.finished), (4, vec![TOPIC]));
}
