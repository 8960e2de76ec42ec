//! [`Node`]: what one process knows of the log, and how it asks for more.
//!
//! Invariant: every call says what this node has seen of the log, so that one that was rewound is noticed by whoever calls
//! first; and what it has seen never goes back within a run.

use super::{
    error::CallError,
    keys::Keys,
    lane::Lanes,
    link::{Link, Links, WRITES},
    script::{Answer, Ask, Malformed, Script, Scripts},
    settings::Settings,
};
use crate::{
    replay::{Cursor, Run},
    sync::Mutex,
};
use redis::{Cmd, Value};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long to wait before what failed is tried again, at first; doubled each time, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// With less time than this it is not tried again: that could only find that there was no time.
const LEAST: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) links: Links,
    pub(super) keys: Keys,
    pub(super) scripts: Scripts,
    pub(super) settings: Settings,
    pub(super) lanes: Lanes,
    seen: Mutex<Option<Cursor>>,
}

impl Node {
    pub(super) fn new(links: Links, settings: Settings) -> Self {
        Self {
            links,
            keys: Keys::new(&settings.name),
            scripts: Scripts::new(),
            settings,
            lanes: Lanes::new(),
            seen: Mutex::new(None),
        }
    }

    /// Asks a script once, and takes in where the log is.
    pub(super) async fn ask(
        &self,
        slot: usize,
        script: &Script,
        ask: &Ask,
        at_most: Duration,
    ) -> Result<(Cursor, Answer), CallError> {
        let link = self.links.get(slot, at_most).await?;
        self.ask_on(&link, script, ask, at_most).await
    }

    /// The same on a connection that is needed for more.
    pub(super) async fn ask_on(
        &self,
        link: &Link,
        script: &Script,
        ask: &Ask,
        at_most: Duration,
    ) -> Result<(Cursor, Answer), CallError> {
        let seen = *self.seen.lock();
        let words = words(seen);
        let mut known = true;
        let value = loop {
            let cmd = ask.command(script, known, &self.keys, &words);
            match self.links.call(link, &cmd, at_most).await {
                // A server that was started anew has forgotten it, and did nothing.
                Err(error) if error.is_no_script && known => known = false,
                answered => break answered?,
            }
        };
        let malformed = |error: Malformed| CallError { is_passing: false, ..CallError::new(error, true) };
        let mut answer = Answer::new(value).map_err(malformed)?;
        let mut head = || {
            let run = Run { epoch: answer.number()?, number: answer.number()? };
            Ok(run.at(answer.number()?))
        };
        let head: Cursor = head().map_err(malformed)?;
        self.see(seen, head);
        Ok((head, answer))
    }

    /// Asks a script that changes nothing by being asked twice, until it answers or the deadline has come; and not before it
    /// is sure that nothing that was given up is still to come.
    pub(super) async fn ask_again(
        &self,
        slot: usize,
        script: &Script,
        ask: &Ask,
    ) -> Result<(Cursor, Answer), CallError> {
        let mut retry = self.retry();
        self.fence(&mut retry).await?;
        loop {
            match self.ask(slot, script, ask, retry.left()).await {
                Err(error) if error.is_passing && retry.again().await => {}
                answered => return answered,
            }
        }
    }

    /// Where the log is.
    pub(super) async fn head(&self) -> Result<Cursor, CallError> {
        Ok(self.ask_again(self.links.a_read(), &self.scripts.head, &Ask::default()).await?.0)
    }

    /// Sees to it that batches that were given up are not done later.
    pub(super) async fn fence(&self, retry: &mut Retry) -> Result<(), CallError> {
        for fence in self.lanes.fences() {
            let ask = Ask::default().key(self.keys.of_lane(self.lanes.node, fence.lane)).number(fence.number);
            let cmd = ask.bare_command(&self.scripts.fence);
            self.call_again(WRITES, &cmd, retry).await?;
            self.lanes.fenced(fence);
        }
        Ok(())
    }

    /// Sends a command that changes nothing by being sent twice, until it is answered or the deadline has come.
    pub(super) async fn call_again(&self, slot: usize, cmd: &Cmd, retry: &mut Retry) -> Result<Value, CallError> {
        loop {
            let called = async {
                let link = self.links.get(slot, retry.left()).await?;
                self.links.call(&link, cmd, retry.left()).await
            };
            match called.await {
                Err(error) if error.is_passing && retry.again().await => {}
                answered => return answered,
            }
        }
    }

    /// Tries until the deadline that the application has set.
    pub(super) fn retry(&self) -> Retry {
        Retry { until: Instant::now() + self.settings.deadline, pause: BACKOFF.0 }
    }

    /// Takes in where the log is, as it was answered to one who had seen it elsewhere.
    fn see(&self, asked: Option<Cursor>, head: Cursor) {
        let mut seen = self.seen.lock();
        let is_new = seen.is_none_or(|seen| {
            if seen.run() == head.run() {
                seen.position() < head.position()
            } else {
                // Else the answer is older than what is known by now.
                asked.is_some_and(|asked| asked.run() == seen.run())
            }
        });
        if is_new {
            *seen = Some(head);
        }
    }

    /// Takes in where the log is, as the feed says.
    pub(super) fn see_in_feed(&self, head: Cursor) {
        let mut seen = self.seen.lock();
        if seen.is_some_and(|seen| seen.run() == head.run() && seen.position() < head.position()) {
            *seen = Some(head);
        }
    }
}

/// What a script is told: the epoch, run and position that were seen, and numbers for when it needs new ones.
fn words(seen: Option<Cursor>) -> [String; 5] {
    let new = Run::new_log();
    let number = fastrand::u32(1..);
    let (epoch, run, position) = match seen {
        Some(seen) => (seen.run().epoch.to_string(), seen.run().number.to_string(), seen.position()),
        None => ("-".to_owned(), "-".to_owned(), 0),
    };
    [epoch, run, position.to_string(), new.epoch.to_string(), number.to_string()]
}

/// Tries until a deadline, with pauses that grow.
pub(super) struct Retry {
    until: Instant,
    pause: Duration,
}

impl Retry {
    /// How long there is to the deadline.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits, and says whether there is time to try again.
    pub(super) async fn again(&mut self) -> bool {
        let spare = self.left().saturating_sub(LEAST);
        if spare.is_zero() {
            return false;
        }
        sleep(jitter(self.pause).min(spare)).await;
        self.pause = (self.pause * 2).min(BACKOFF.1);
        true
    }
}

/// From half of a time to all of it, so that nodes do not come at once.
pub(super) fn jitter(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64() / 2.0)
}
