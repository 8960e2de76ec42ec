//! [`DurableBuilder`]: what a log on disk keeps and how careful it is, each option with its default and why.

use super::{Durable, error::DurableError};
use std::{path::Path, time::Duration};

/// When the whole of a log is read through as it is opened, and compared with its checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum DurableCheck {
    /// When it was not closed: after a crash, or if it comes from a copy. Takes about a second for each 150 MB.
    #[default]
    AfterCrash,
    /// Each time.
    Always,
    /// Not at all. Damage is then found when it is read.
    Never,
}

/// Opens a [`Durable`]; from [`Durable::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct DurableBuilder {
    pub(super) options: Options,
}

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) events_per_topic: usize,
    pub(super) bytes_per_topic: usize,
    pub(super) total_bytes: usize,
    pub(super) age: Duration,
    pub(super) latest: Option<Duration>,
    pub(super) finished: Duration,
    pub(super) keys: Duration,
    /// Between two syncs; `None` is before each answer.
    pub(super) sync_every: Option<Duration>,
    pub(super) check: DurableCheck,
    pub(super) accept_loss: bool,
    /// For how long another opener is waited for.
    pub(super) wait: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl DurableBuilder {
    pub(super) fn new() -> Self {
        Self {
            options: Options {
                events_per_topic: 100_000,
                bytes_per_topic: 64 * 1024 * 1024,
                total_bytes: 1024 * 1024 * 1024,
                age: 7 * DAY,
                latest: None,
                finished: 7 * DAY,
                keys: Duration::from_secs(60 * 60),
                sync_every: None,
                check: DurableCheck::AfterCrash,
                accept_loss: false,
                wait: Duration::ZERO,
            },
        }
    }

    /// Sets how many events of a topic are kept. Default: 100,000, ten times as many as in memory: a client that was away
    /// for longer had better load the page anew.
    pub fn events_per_topic(mut self, events: usize) -> Self {
        self.options.events_per_topic = events;
        self
    }

    /// Sets how many bytes of a topic are kept, about as they are on disk: what an event says, and some 100 bytes for each.
    /// At least 4 KiB. Default: 64 MiB, so that it takes 16 topics at their bound to fill the log.
    pub fn bytes_per_topic(mut self, bytes: usize) -> Self {
        self.options.bytes_per_topic = bytes;
        self
    }

    /// Sets how many bytes are kept over all topics, counted as for [one topic](Self::bytes_per_topic). At least 4 KiB.
    /// Default: 1 GiB, which any disk has and which is checked in some seven seconds after a crash. The files take about as
    /// much, and up to 64 MB for what was written last. They do not shrink: the room is used again.
    pub fn total_bytes(mut self, bytes: usize) -> Self {
        self.options.total_bytes = bytes;
        self
    }

    /// Sets for how long events are kept, by the system's clock. What is older goes in the background, within a quarter of
    /// this time or half a minute. Default: 7 days, so that who was away over a weekend misses nothing.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.options.age = age;
        self
    }

    /// Sets for how long the newest event of a key ([`Record::latest`](crate::replay::Record::latest)) is kept if none takes
    /// its place. Default: for as long as there is room, because it is state and not history.
    pub fn keep_latest(mut self, time: Duration) -> Self {
        self.options.latest = Some(time);
        self
    }

    /// Sets for how long it is remembered that a topic is finished, at least for as long as it has events. It takes about
    /// 100 bytes. After that the topic is as if it had never been. Default: 7 days, as for events.
    pub fn keep_finished(mut self, time: Duration) -> Self {
        self.options.finished = time;
        self
    }

    /// Sets for how long [idempotency keys](crate::replay::Record::with_idempotency_key) are remembered, however soon their
    /// events go. Each takes its topic and its text twice and some 60 bytes, which no bound of bytes counts. Default: 1 hour:
    /// longer than a publisher that goes on trying, over a restart of either side.
    pub fn keep_idempotency_keys(mut self, time: Duration) -> Self {
        self.options.keys = time;
        self
    }

    /// Acknowledges events before they are on disk, which is synced at least this often while there are any. At least 1 ms.
    /// Default: each batch is synced before it is acknowledged. See [what can be lost](Durable#what-an-acknowledgement-says).
    pub fn sync_every(mut self, time: Duration) -> Self {
        self.options.sync_every = Some(time);
        self
    }

    /// Sets when the whole log is read through as it is opened. Default: [`DurableCheck::AfterCrash`].
    pub fn check(mut self, check: DurableCheck) -> Self {
        self.options.check = check;
        self
    }

    /// Opens also a log that has [lost its end](DurableError::is_damaged), and tells every client that comes back of a gap.
    /// Not one whose inside is damaged. Default: that is an error, because somebody should look at why.
    pub fn accept_loss(mut self) -> Self {
        self.options.accept_loss = true;
        self
    }

    /// Sets for how long [`open`](Self::open) waits while another opener, as the process before in a deployment, has the log.
    /// After that it is an error as without this ([`DurableError::is_in_use`]). Default: not at all, because where none is
    /// expected a second opener is a mistake, and had better be told at once. See [deployments](Durable#deployments).
    pub fn wait_for(mut self, time: Duration) -> Self {
        self.options.wait = time;
        self
    }

    /// Opens the log in a folder, which is made if it is not there, and begins a new run.
    ///
    /// # Errors
    ///
    /// When an option cannot be right, the path is no folder and cannot become one, the folder is in use or cannot be written,
    /// its disk is full, what it has by the name `log.db` is no log, or one that is damaged or of a later version of this
    /// library, and outside a tokio runtime. The error says what to do. Files of other names, such as `lost+found`, are no
    /// error, and are left alone.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the log is opened all the same, and then closed. Until then it is in use. One that still
    /// [waits](Self::wait_for) for another opener waits no longer.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<Durable, DurableError> {
        self.options.validate()?;
        Durable::open_with(self.options, path.as_ref().to_owned()).await
    }
}

impl Options {
    fn validate(&self) -> Result<(), DurableError> {
        const LEAST: usize = 4096;
        for (name, bytes) in [("bytes_per_topic", self.bytes_per_topic), ("total_bytes", self.total_bytes)] {
            if bytes < LEAST {
                return Err(DurableError::option(format!(
                    "{name} is {bytes}: no event would fit, ask for at least 4 KiB"
                )));
            }
        }
        let times = [
            ("max_age", Some(self.age), "nothing would be kept"),
            ("keep_latest", self.latest, "nothing would be kept"),
            ("keep_idempotency_keys", Some(self.keys), "no event would be known again"),
            ("sync_every", self.sync_every, "leave it out to sync each batch before it is acknowledged"),
        ];
        for (name, time, why) in times {
            if time.is_some_and(|time| time < Duration::from_millis(1)) {
                return Err(DurableError::option(format!("{name} is less than a millisecond: {why}")));
            }
        }
        Ok(())
    }
}
