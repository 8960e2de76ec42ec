//! The names of the keys of one log.
//!
//! Invariant: all have the log's name in braces, so that a cluster keeps them in one slot.

use crate::Topic;

#[derive(Debug)]
pub(super) struct Keys {
    /// What all begin with.
    pub(super) prefix: String,
    /// A hash: what is known of the log and of each topic.
    pub(super) log: String,
    /// A stream: which topic each of the newest positions is of.
    pub(super) recent: String,
    /// A sorted set: when there is something to do for a topic.
    pub(super) due: String,
    /// The channel of the feed.
    pub(super) channel: String,
}

impl Keys {
    pub(super) fn new(name: &str) -> Self {
        let key = |what: &str| format!("{{{name}}}:{what}");
        Self { prefix: key(""), log: key("log"), recent: key("recent"), due: key("due"), channel: key("feed") }
    }

    /// All keys that a topic can have.
    pub(super) fn of_topic(&self, topic: &Topic) -> [Vec<u8>; 4] {
        ["s", "z", "h", "r"].map(|what| format!("{}{what}:{}", self.prefix, topic.as_key()).into_bytes())
    }

    /// Where an idempotency key is remembered. The topic's name has no line breaks.
    pub(super) fn of_idempotency_key(&self, topic: &Topic, key: &str) -> Vec<u8> {
        format!("{}i:{}\n{key}", self.prefix, topic.as_key()).into_bytes()
    }

    /// Where it is remembered which batches of a sender were done.
    pub(super) fn of_lane(&self, node: u64, lane: u32) -> Vec<u8> {
        format!("{}n:{node:x}:{lane}", self.prefix).into_bytes()
    }
}
