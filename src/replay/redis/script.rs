//! The scripts, and what every call of one has in common.
//!
//! Invariant: all that is read or changed in one step is one script, so that no other node comes between.

use super::keys::Keys;
use redis::{Cmd, Value};
use std::fmt;

/// The text of a script: what it has in common with others comes first.
macro_rules! script {
    ($($file:literal),+) => { Script::new(concat!($(include_str!(concat!("lua/", $file))),+)) };
}

/// A script, and the name that a server that has seen it knows it by.
#[derive(Debug)]
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }
}

pub(super) struct Scripts {
    pub(super) append: Script,
    pub(super) fence: Script,
    pub(super) fill: Script,
    pub(super) forget: Script,
    pub(super) head: Script,
    pub(super) read: Script,
    pub(super) sweep: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            append: script!("log.lua", "keep.lua", "append.lua"),
            fence: script!("fence.lua"),
            fill: script!("log.lua", "fill.lua"),
            forget: script!("log.lua", "keep.lua", "forget.lua"),
            head: script!("log.lua", "head.lua"),
            read: script!("log.lua", "read.lua"),
            sweep: script!("log.lua", "keep.lua", "sweep.lua"),
        }
    }
}

impl fmt::Debug for Scripts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripts").finish_non_exhaustive()
    }
}

/// What a script is asked: its keys beside those of the log, and its arguments beside those that say what the node has seen.
#[derive(Default)]
pub(super) struct Ask {
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) args: Vec<Vec<u8>>,
}

impl Ask {
    pub(super) fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.keys.push(key.into());
        self
    }

    pub(super) fn arg(mut self, arg: impl Into<Vec<u8>>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(super) fn number(self, number: impl TryInto<u64>) -> Self {
        // As far as numbers go in a script: more is no bound.
        let number = number.try_into().unwrap_or(MOST).min(MOST);
        self.arg(number.to_string())
    }

    /// A number that no script counts with.
    pub(super) fn number_text(self, number: u64) -> Self {
        self.arg(number.to_string())
    }

    /// The command by which the server runs a script that it knows, or that it is given with it.
    pub(super) fn command(&self, script: &Script, known: bool, keys: &Keys, seen: &[String; 5]) -> Cmd {
        let mut cmd = redis::cmd(if known { "EVALSHA" } else { "EVAL" });
        cmd.arg(if known { &script.hash } else { script.code });
        cmd.arg(3 + self.keys.len()).arg(&keys.log).arg(&keys.recent).arg(&keys.due);
        for key in &self.keys {
            cmd.arg(key);
        }
        cmd.arg(&keys.prefix);
        for arg in seen {
            cmd.arg(arg);
        }
        for arg in &self.args {
            cmd.arg(arg);
        }
        cmd
    }

    /// The same for a script that does not look at the log.
    pub(super) fn bare_command(&self, script: &Script) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(script.code).arg(self.keys.len());
        for part in self.keys.iter().chain(&self.args) {
            cmd.arg(part);
        }
        cmd
    }
}

/// The largest number that Lua, whose numbers are doubles, can count to.
pub(super) const MOST: u64 = 1 << 53;

/// What a script answered, taken apart from its beginning.
pub(super) struct Answer(std::vec::IntoIter<Value>);

impl Answer {
    pub(super) fn new(value: Value) -> Result<Self, Malformed> {
        match value {
            Value::Array(items) => Ok(Self(items.into_iter())),
            _ => Err(Malformed),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    pub(super) fn number<N: std::str::FromStr>(&mut self) -> Result<N, Malformed> {
        self.text()?.parse().map_err(|_| Malformed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// An answer that no script of ours gives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the server gave an answer that no script of this version gives: do nodes of another version use the log?",
        )
    }
}

impl std::error::Error for Malformed {}
