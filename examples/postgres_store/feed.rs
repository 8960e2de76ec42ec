//! [`Follower`]: what any node appended, in order; and notices from node to node.
//!
//! Invariant: notifications only say that it is time to look. What is told is what follows the last place in the log, so
//! one that is lost, late or told twice costs a query and never an event.

use super::{
    BoxError, PostgresStore,
    page::{View, record, topic},
    sql,
    store::micros,
    turn::{Database, position, query, signed},
};
use futures_util::stream;
use std::{collections::VecDeque, future::poll_fn, time::Duration};
use tidings::replay::{Cursor, Feed, FeedItem, Notice};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client, IsolationLevel, NoTls};

/// How often to look though nothing was notified.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long to wait before a server that is not there is asked again; doubled each time, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Read at a time.
const MOST: (i64, i64) = (256, 1024 * 1024);

pub(crate) struct Follower {
    store: PostgresStore,
    place: Cursor,
    listener: Option<Listener>,
    /// Whether nothing is heard, and that was told.
    lost: bool,
    /// Why it looks for what was not told, if it does.
    looking: Option<Why>,
    /// When it last had everything.
    looked: Instant,
    /// How much was found since it began to look.
    missed: u64,
    backoff: Duration,
    items: VecDeque<FeedItem>,
}

#[derive(Clone, Copy, PartialEq)]
enum Why {
    /// It listens, since now.
    Came,
    Notified,
    /// It has not looked for some time.
    Time,
}

/// A connection that hears what is notified.
struct Listener {
    /// The connection ends with it.
    _client: Client,
    payloads: mpsc::Receiver<String>,
    _connection: JoinSet<()>,
}

impl Follower {
    pub(crate) fn new(store: PostgresStore, place: Cursor) -> Self {
        Self {
            store,
            place,
            listener: None,
            lost: false,
            looking: None,
            looked: Instant::now(),
            missed: 0,
            backoff: BACKOFF.0,
            items: VecDeque::new(),
        }
    }

    pub(crate) fn into_feed(self) -> Feed {
        Feed::new(stream::unfold(self, |mut follower| async {
            loop {
                if let Some(item) = follower.items.pop_front() {
                    return Some((item, follower));
                }
                if follower.step().await.is_err() {
                    follower.listener = None;
                    if !std::mem::replace(&mut follower.lost, true) {
                        follower.items.push_back(FeedItem::Lost);
                        continue;
                    }
                    sleep(follower.backoff).await;
                    follower.backoff = BACKOFF.1.min(follower.backoff * 2);
                }
            }
        }))
    }

    /// One thing that happens, with what it brings: never more than a page.
    async fn step(&mut self) -> Result<(), BoxError> {
        let Some(listener) = &mut self.listener else {
            // First listen, then look: what is committed after the look is notified.
            self.listener = Some(Listener::new(&self.store.db).await?);
            (self.looking, self.missed) = (Some(Why::Came), 0);
            return Ok(());
        };
        if let Some(why) = self.looking {
            return self.look(why).await;
        }
        // Also where notifications do not stop: those of a log that was restored can be of positions before ours.
        let rest = LOOK_EVERY.saturating_sub(self.looked.elapsed());
        let heard = if rest.is_zero() { None } else { timeout(rest, listener.payloads.recv()).await.ok() };
        match heard {
            Some(Some(payload)) => match payload.strip_prefix("notices ") {
                Some(batch) => self.hear(batch.parse()?).await?,
                None if payload.parse::<u64>()? > self.place.position() => self.looking = Some(Why::Notified),
                None => {}
            },
            Some(None) => return Err("the connection that listens is gone".into()),
            None => self.looking = Some(Why::Time),
        }
        Ok(())
    }

    /// Tells one page of what follows, and when that was the last one, what was missed.
    async fn look(&mut self, why: Why) -> Result<(), BoxError> {
        let is_all = self.follow().await?;
        self.missed += self.items.iter().filter(|item| matches!(item, FeedItem::Record(..))).count() as u64;
        if is_all {
            let missed = std::mem::take(&mut self.missed);
            if why == Why::Came || why == Why::Time && missed > 0 {
                self.items.push_back(FeedItem::Caught { missed });
            }
            (self.looking, self.looked) = (None, Instant::now());
            (self.lost, self.backoff) = (false, BACKOFF.0);
        }
        Ok(())
    }

    /// One page, and whether that was all.
    async fn follow(&mut self) -> Result<bool, BoxError> {
        let mut client = self.store.db.client().await?;
        let snapshot = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        let tx = snapshot.start().await?;
        let Some(view) = View::of(&tx, 0).await? else {
            drop(tx);
            drop(client);
            self.store.look_at_server().await?;
            return Ok(false);
        };
        if self.place.run() != view.newest.run() || self.place.position() < view.evicted {
            self.place = view.newest;
            self.items.push_back(FeedItem::Skip(self.place));
            return Ok(true);
        }
        let rows = query(&tx, sql::FOLLOW, &[&signed(self.place.position()), &MOST.0, &MOST.1]).await?;
        for row in &rows {
            let place = view.newest.run().at(position(row, "position")?);
            let is_forgotten = row.try_get::<_, Option<&str>>("kind")?.is_none();
            self.items.push_back(if is_forgotten {
                FeedItem::Forgotten(topic(row)?, place)
            } else {
                FeedItem::Record(place, record(row)?)
            });
            self.place = place;
        }
        // Behind the last one there may be nothing but what was replaced.
        let is_all = rows.is_empty() || self.place == view.newest;
        if is_all {
            self.place = view.newest;
        }
        Ok(is_all)
    }

    async fn hear(&mut self, batch: i64) -> Result<(), BoxError> {
        let mut client = self.store.db.client().await?;
        let tx = client.transaction().await?;
        for row in query(&tx, sql::NOTICES, &[&batch]).await? {
            let is_control = row.try_get::<_, Option<&[u8]>>("topic")?.is_none();
            self.items.push_back(FeedItem::Notice(if is_control {
                Notice::Control(row.try_get::<_, Vec<u8>>("body")?.into())
            } else {
                Notice::Ephemeral(record(&row)?)
            }));
        }
        Ok(())
    }
}

impl Listener {
    async fn new(db: &Database) -> Result<Self, BoxError> {
        let (client, mut connection) = db.config.connect(NoTls).await?;
        let (heard, payloads) = mpsc::channel(1024);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    if heard.send(notification.payload().to_owned()).await.is_err() {
                        return;
                    }
                }
            }
        });
        client.batch_execute(sql::LISTEN).await?;
        Ok(Self { _client: client, payloads, _connection: task })
    }
}

/// Gives notices to all followers. Their order is that of their commits.
pub(crate) async fn notify(db: &Database, notices: &[Notice]) -> Result<(), BoxError> {
    let mut client = db.client().await?;
    let tx = client.transaction().await?;
    let numbers: Vec<_> = (0_i64..).take(notices.len()).collect();
    let records: Vec<_> =
        notices.iter().map(|notice| if let Notice::Ephemeral(record) = notice { Some(record) } else { None }).collect();
    let topics: Vec<_> = records.iter().map(|record| Some(record.as_ref()?.topic().as_key().as_bytes())).collect();
    let kinds: Vec<_> = records.iter().map(|record| Some(record.as_ref()?.kind().as_str())).collect();
    let bodies = notices.iter().map(|notice| match notice {
        Notice::Ephemeral(record) => Ok(&record.body()[..]),
        Notice::Control(message) => Ok(&message[..]),
        _ => Err("a notice of a later version"),
    });
    let bodies = bodies.collect::<Result<Vec<_>, _>>()?;
    let times: Vec<_> = records.iter().map(|record| Some(micros(record.as_ref()?.time()))).collect();
    let keys: Vec<_> = records.iter().map(|record| Some(record.as_ref()?.key()?.as_bytes())).collect();
    let labels = records
        .iter()
        .map(|record| record.map(|record| serde_json::to_string(&record.labels().collect::<Vec<_>>())).transpose());
    let labels = labels.collect::<Result<Vec<_>, _>>()?;
    query(&tx, sql::NOTIFY, &[&numbers, &topics, &kinds, &bodies, &times, &keys, &labels]).await?;
    Ok(tx.commit().await?)
}
