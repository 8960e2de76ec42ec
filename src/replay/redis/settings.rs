//! [`RedisStoreBuilder`]: what an application can set.

use super::{RedisStore, error::CallError, link::Links};
use crate::replay::ReadError;
use std::time::Duration;

/// The log remembers for twice as long what became of a batch.
const LONGEST_DEADLINE: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) deadline: Duration,
    pub(super) check_interval: Duration,
    pub(super) replicas: Option<(u32, Duration)>,
    pub(super) events_per_topic: usize,
    pub(super) bytes_per_topic: usize,
    pub(super) total_bytes: usize,
    pub(super) max_age: Duration,
    pub(super) keep_latest: Option<Duration>,
    pub(super) keep_finished: Duration,
    pub(super) forget_idle: Duration,
    pub(super) keep_idempotency_keys: Duration,
    pub(super) feed_reach: usize,
}

/// Sets up a [`RedisStore`]: where the server is, what the log is called, what it keeps, and how long to wait.
///
/// All nodes of a log should be given the same bounds: whichever node appends or tidies up applies its own.
#[derive(Clone)]
#[must_use]
pub struct RedisStoreBuilder {
    urls: Vec<String>,
    read_connections: usize,
    settings: Settings,
}

/// Without the addresses, which have passwords.
impl std::fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStoreBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl RedisStoreBuilder {
    pub(super) fn new(url: String) -> Self {
        let settings = Settings {
            name: "tidings".to_owned(),
            deadline: Duration::from_secs(4),
            check_interval: Duration::from_secs(1),
            replicas: None,
            events_per_topic: 10_000,
            bytes_per_topic: 4 * 1024 * 1024,
            total_bytes: 256 * 1024 * 1024,
            max_age: Duration::from_secs(60 * 60),
            keep_latest: None,
            keep_finished: Duration::from_secs(60 * 60),
            forget_idle: Duration::from_secs(24 * 60 * 60),
            keep_idempotency_keys: Duration::from_secs(5 * 60),
            feed_reach: 10_000,
        };
        Self { urls: vec![url], read_connections: 2, settings }
    }

    /// Sets what the log is called: logs with different names have nothing in common. Its keys begin with the name in
    /// braces. Default: `tidings`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Adds another server that may have the log: a replica that can be promoted, or a node of the same cluster. Where one
    /// cannot be reached, or says that it only follows another, the next is tried.
    pub fn or_at(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }

    /// Sets how many connections there are for reading; beside them there is one for appending, and one for the feed. All
    /// are shared by all who ask. At least 1. Default: 2.
    pub fn read_connections(mut self, count: usize) -> Self {
        self.read_connections = count.max(1);
        self
    }

    /// Sets how long the store tries to append, to read, or to forget before it answers that it could not: meanwhile it
    /// waits for a server that is away, and sends what had no answer again. An append whose outcome is still not known then
    /// is [unknown](crate::replay::AppendError::is_unknown). Default: 4 seconds, so that the answer comes before the hub's
    /// [`append_timeout`](crate::HubBuilder::append_timeout) of 5. At most 5 minutes.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline.min(LONGEST_DEADLINE);
        self
    }

    /// Sets how often the feed asks where the log is, to find a notification that was lost with nothing after it, and
    /// whether its connection still answers: such a hole is filled within this time and 100 ms. At least 10 ms. Default: 1
    /// second.
    pub fn check_interval(mut self, interval: Duration) -> Self {
        self.settings.check_interval = interval.max(Duration::from_millis(10));
        self
    }

    /// Acknowledges an append only once so many replicas have it (`WAIT`); if they do not within the time, its outcome is
    /// [unknown](crate::replay::AppendError::is_unknown), although the events are stored and shown. It narrows, and does not
    /// close, what a failover can lose: a replica that has not got it may be promoted. Default: no replica is waited for.
    pub fn wait_for_replicas(mut self, replicas: u32, within: Duration) -> Self {
        self.settings.replicas = (replicas > 0).then_some((replicas, within));
        self
    }

    /// Sets how many events of a topic are kept. Default: 10,000.
    pub fn events_per_topic(mut self, events: usize) -> Self {
        self.settings.events_per_topic = events;
        self
    }

    /// Sets how many bytes of a topic are kept, 64 for each event included. A larger event is refused. Default: 4 MiB.
    pub fn bytes_per_topic(mut self, bytes: usize) -> Self {
        self.settings.bytes_per_topic = bytes;
        self
    }

    /// Sets how many bytes are kept over all topics, 64 for each event included: what is due to go first goes first. Redis
    /// takes some more for its keys, about half a kilobyte for each topic. Default: 256 MiB.
    pub fn total_bytes(mut self, bytes: usize) -> Self {
        self.settings.total_bytes = bytes;
        self
    }

    /// Sets for how long events are kept. Default: 1 hour.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.settings.max_age = age;
        self
    }

    /// Sets for how long the newest event of a key is kept if none takes its place. Default: for as long as there is room,
    /// and its topic is not [idle](Self::forget_idle).
    pub fn keep_latest(mut self, time: Duration) -> Self {
        self.settings.keep_latest = Some(time);
        self
    }

    /// Sets for how long it is remembered that a topic is finished, at least for as long as its events are kept. After that
    /// the topic is as if it had never been. Default: 1 hour.
    pub fn keep_finished(mut self, time: Duration) -> Self {
        self.settings.keep_finished = time;
        self
    }

    /// Sets after what time without an append a topic is forgotten with all that it holds. Default: 24 hours.
    pub fn forget_idle(mut self, time: Duration) -> Self {
        self.settings.forget_idle = time;
        self
    }

    /// Sets for how long an [idempotency key](crate::replay::Record::with_idempotency_key) is remembered. Each takes a key
    /// of some 150 bytes for that time. Default: 5 minutes.
    pub fn keep_idempotency_keys(mut self, time: Duration) -> Self {
        self.settings.keep_idempotency_keys = time;
        self
    }

    /// Sets how far back a node's feed can fill a hole event by event; a node that was away for longer sends its
    /// subscriptions to the log instead. Each takes some 50 bytes. Default: 10,000.
    pub fn feed_reach(mut self, events: usize) -> Self {
        self.settings.feed_reach = events;
        self
    }

    /// Connects, and creates the log if there is none. If it is there it is joined, not opened anew.
    ///
    /// # Errors
    ///
    /// When an address or the name is not one, when the server does not answer within the [deadline](Self::deadline), when
    /// it is older than 6.2, or when the log has a later format than this version knows; or outside of a tokio runtime. What
    /// waiting does not cure (such as a wrong password, or a certificate that is not trusted) is told at once, if there is no
    /// other address to try.
    pub async fn open(self) -> Result<RedisStore, ReadError> {
        let name = &self.settings.name;
        if name.is_empty() || name.chars().any(|c| c.is_control() || c == '{' || c == '}') {
            return Err(ReadError::new(format!(
                "{name:?} cannot name a log: it is empty, or has a brace or a control character"
            )));
        }
        let links = Links::new(&self.urls, self.read_connections, self.settings.patience());
        // Without the URL, which has a password.
        let links = links.map_err(|error| {
            ReadError::new(format!(
                "a URL of a Redis server was not understood ({error}): one is expected such as \
                 redis://user:password@host:6379/0, or with TLS rediss://user:password@host:6379/0"
            ))
        })?;
        RedisStore::start(links, self.settings).await.map_err(|error: CallError| ReadError::new(error))
    }
}

impl Settings {
    /// How long a single answer may take before its connection is given up.
    fn patience(&self) -> Duration {
        let replicas = self.replicas.map_or(Duration::ZERO, |(_, within)| within);
        Duration::from_secs(2) + replicas
    }

    /// The bounds, as the scripts take them.
    pub(super) fn limits(&self) -> [u64; 9] {
        // Longer than this is for ever.
        const NEVER: u64 = 10_000_000_000_000;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(NEVER).clamp(1, NEVER);
        let count = |count: usize| count as u64;
        [
            count(self.events_per_topic),
            count(self.bytes_per_topic),
            millis(self.max_age),
            self.keep_latest.map_or(NEVER, millis),
            millis(self.keep_finished),
            millis(self.forget_idle),
            count(self.total_bytes),
            count(self.feed_reach),
            millis(self.keep_idempotency_keys),
        ]
    }
}
