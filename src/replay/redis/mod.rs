//! [`RedisStore`]: a log in Redis or Valkey, that several nodes share.
//!
//! Every change of the log, and every read of it, is one script, so that the server does it in one step. Beside the module's
//! name, what it knows:
//!
//! | module | |
//! | --- | --- |
//! | `settings` | what an application can set |
//! | `link`, `keys`, `script` | connections, names, scripts |
//! | `error` | what went wrong, and what helps |
//! | `node` | what this process has seen of the log, and how it asks |
//! | `append`, `lane` | appending once, however often it is sent |
//! | `read` | reading for many at once |
//! | `feed`, `inbox`, `message` | what all nodes append, as it is notified |
//! | `lua/` | the log itself |

mod append;
mod error;
mod feed;
mod inbox;
mod keys;
mod lane;
mod link;
mod message;
mod node;
mod read;
mod script;
mod settings;

pub use self::settings::RedisStoreBuilder;
use self::{
    error::CallError,
    link::{Links, WRITES},
    message::Message,
    node::{Node, jitter},
    read::Request,
    script::Ask,
    settings::Settings,
};
use super::{Cursor, Feed, Notice, Outcomes, Page, Read, ReadError, Record, ReplayStore};
use crate::Topic;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep},
};

/// How often a node looks for what is too old.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// How many topics, and how many of their events, a sweep takes on at a time.
const SWEEP: (usize, usize) = (32, 500);

#[doc = include_str!("redis.md")]
pub struct RedisStore {
    node: Arc<Node>,
    reads: mpsc::UnboundedSender<Request>,
    runtime: Handle,
    // They end with the store.
    _tasks: JoinSet<()>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("settings", &self.node.settings).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// The log with a name, on the server at a URL such as `redis://user:password@host:6379/0`, with the default bounds.
    ///
    /// # Errors
    ///
    /// As [`RedisStoreBuilder::open`].
    pub async fn open(url: impl Into<String>, name: impl Into<String>) -> Result<Self, ReadError> {
        Self::builder(url).name(name).open().await
    }

    /// Sets up a store on the server at a URL.
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::new(url.into())
    }

    async fn start(links: Links, settings: Settings) -> Result<Self, CallError> {
        let runtime = Handle::try_current().map_err(|error| CallError::new(error, false))?;
        let node = Arc::new(Node::new(links, settings));
        node.check_version().await?;
        node.head().await?;
        let (reads, requests) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(read::serve(Arc::clone(&node), requests));
        tasks.spawn(sweep(Arc::clone(&node)));
        Ok(Self { node, reads, runtime, _tasks: tasks })
    }
}

impl ReplayStore for RedisStore {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.node.head().await.map_err(ReadError::new)
    }

    async fn append(&self, records: Arc<[Record]>) -> Outcomes {
        self.node.append(&records).await
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let (reply, page) = oneshot::channel();
        let stopped = |_| ReadError::new("the store's runtime has ended");
        self.reads.send(Request { read, reply, since: Instant::now() }).map_err(stopped)?;
        page.await.unwrap_or_else(|lost| Err(ReadError::new(lost)))
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        self.node.forget(&topic).await.map_err(ReadError::new)
    }

    fn feed(&self, after: Cursor) -> Option<Feed> {
        Some(feed::follow(Arc::clone(&self.node), after, &self.runtime))
    }

    async fn notify(&self, notices: Vec<Notice>) -> Result<(), ReadError> {
        self.node.notify(&notices).await.map_err(ReadError::new)
    }
}

impl Node {
    /// Once more after an answer that was lost does no harm: what was forgotten is not forgotten twice.
    async fn forget(&self, topic: &Topic) -> Result<(), CallError> {
        let ask = self.settings.limits().into_iter().fold(Ask::default(), Ask::number);
        let ask = self.keys.of_topic(topic).into_iter().fold(ask, Ask::key).arg(topic.as_key());
        self.ask_again(WRITES, &self.scripts.forget, &ask).await.map(drop)
    }

    /// Not again: they would come twice.
    async fn notify(&self, notices: &[Notice]) -> Result<(), CallError> {
        let mut cmd = redis::cmd("PUBLISH");
        cmd.arg(&self.keys.channel).arg(Message::of_notices(notices));
        let link = self.links.get(WRITES, self.settings.deadline).await?;
        self.links.call(&link, &cmd, self.settings.deadline).await.map(drop)
    }

    /// The scripts use what came with 6.2, and would go wrong without a word on a server that has not got it.
    async fn check_version(&self) -> Result<(), CallError> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg("server");
        let info = match self.call_again(WRITES, &cmd, &mut self.retry()).await {
            Ok(info) => info,
            Err(error) if error.is_passing || error.at.is_some() => return Err(error),
            // Where it may not be asked, it is not known.
            Err(_) => return Ok(()),
        };
        let text = redis::from_redis_value::<String>(info).unwrap_or_default();
        let Some(version) = text.lines().find_map(|line| line.strip_prefix("redis_version:")) else { return Ok(()) };
        let mut numbers = version.trim().split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version_number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version_number < (6, 2) {
            let error = format!("the server is Redis {version}: at least 6.2 is needed");
            return Err(CallError { is_passing: false, ..CallError::new(error, false) });
        }
        Ok(())
    }
}

/// Removes what is too old, a little at a time. Whichever node comes first does it.
async fn sweep(node: Arc<Node>) {
    let ask = node.settings.limits().into_iter().fold(Ask::default(), Ask::number).number(SWEEP.0).number(SWEEP.1);
    loop {
        sleep(jitter(SWEEP_INTERVAL)).await;
        loop {
            // A server that is away is not tidied up.
            let swept = node.ask(WRITES, &node.scripts.sweep, &ask, Duration::MAX).await;
            let more = swept.is_ok_and(|(_, mut answer)| answer.text().is_ok_and(|more| more == "1"));
            if !more {
                break;
            }
        }
    }
}
