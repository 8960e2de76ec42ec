//! [`Sessions`]: clients that say, by heartbeats of their own, that they are there.
//!
//! Invariants: a token cannot be guessed, and how long it takes to refuse one tells nothing of others. What a client sends
//! changes two numbers of its own session and wakes its stream, however much that is.

use super::{
    Hub,
    end::{End, EndReason},
    member::Member,
    window::Goes,
};
use crate::sync::Mutex;
use std::{
    collections::HashMap,
    fmt::Write as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

/// What a token is made of: where its session is found, and what only its client knows.
const PLACE: usize = 8;
const SECRET: usize = 16;

/// Those of a hub, by their places, which are drawn and tell nothing.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<[u8; PLACE], Arc<Session>>>);

/// One client that is to send heartbeats.
pub(crate) struct Session {
    place: [u8; PLACE],
    secret: [u8; SECRET],
    member: Arc<Member>,
    timeout: Duration,
    begun: Instant,
    /// When it was last heard, in milliseconds since it began.
    heard: AtomicU64,
    beats: AtomicU64,
    /// Whether a heartbeat was not answered yet.
    owes: AtomicBool,
}

impl Session {
    /// What the client is told: 48 hexadecimal digits.
    pub(crate) fn token(&self) -> String {
        let mut token = String::with_capacity(2 * (PLACE + SECRET));
        for byte in self.place.iter().chain(&self.secret) {
            // Writing to a string does not fail.
            let _ = write!(token, "{byte:02x}");
        }
        token
    }

    /// When it has been silent for too long.
    pub(crate) fn deadline(&self) -> Instant {
        self.begun + Duration::from_millis(self.heard.load(Ordering::Acquire)) + self.timeout
    }

    /// The number of the newest heartbeat, if that is still to be answered.
    pub(crate) fn take_pong(&self) -> Option<u64> {
        self.owes.swap(false, Ordering::AcqRel).then(|| self.beats.load(Ordering::Acquire))
    }

    fn beat(&self) {
        let heard = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.fetch_max(heard, Ordering::AcqRel);
        self.beats.fetch_add(1, Ordering::AcqRel);
    }
}

impl Sessions {
    /// A new one.
    ///
    /// # Errors
    ///
    /// When the operating system has no randomness to give.
    pub(crate) fn begin(&self, member: &Arc<Member>, timeout: Duration) -> io::Result<Arc<Session>> {
        let (mut place, mut secret) = ([0; PLACE], [0; SECRET]);
        getrandom::fill(&mut place)?;
        getrandom::fill(&mut secret)?;
        let (heard, beats, owes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let member = Arc::clone(member);
        let session = Arc::new(Session { place, secret, member, timeout, begun: Instant::now(), heard, beats, owes });
        // That a place is drawn twice is not to be expected before the end of the sun; then the older one falls silent.
        self.0.lock().insert(place, Arc::clone(&session));
        Ok(session)
    }

    pub(crate) fn end(&self, session: &Session) {
        self.0.lock().remove(&session.place);
    }

    /// The session of a token.
    fn find(&self, token: &[u8]) -> Option<Arc<Session>> {
        let mut bytes = [0; PLACE + SECRET];
        if token.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(token.chunks(2)) {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.contains('+'))?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        let (place, secret) = bytes.split_at(PLACE);
        let session = self.0.lock().get(place).cloned();
        // Compared also where there is none, so that it takes as long.
        let known = session.as_ref().map_or([0; SECRET], |session| session.secret);
        let equal = bool::from(known.ct_eq(secret));
        session.filter(|_| equal)
    }
}

impl Hub {
    /// Takes in that a client is there, by the token that its stream gave it: what
    /// [`heartbeat_handler`](Self::heartbeat_handler) does with the body of a request. Returns whether there is such a
    /// session.
    ///
    /// Its stream answers with an event `tidings-pong`, whose data is the number of the heartbeat, from 1. Heartbeats that
    /// come before the last was answered are answered together.
    #[cfg_attr(docsrs, doc(cfg(feature = "client-heartbeats")))]
    pub fn heartbeat(&self, token: impl AsRef<[u8]>) -> bool {
        let shared = &self.handle.shared;
        let Some(session) = shared.sessions.find(token.as_ref()) else { return false };
        if session.deadline() <= Instant::now() {
            // Nobody has looked at it, because its client does not read.
            shared.tell([&session.member], End { reason: EndReason::Silent, at_once: true });
            return false;
        }
        session.beat();
        if !session.owes.swap(true, Ordering::AcqRel) {
            shared.window.tell([&*session.member].into_iter(), Goes::Not);
        }
        true
    }
}
