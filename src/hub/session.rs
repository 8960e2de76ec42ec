//! [`Sessions`]: clients that say, by heartbeats of their own, that they are there.
//!
//! Invariants: a token cannot be guessed, and how long it takes to refuse one tells nothing of others. What a client sends
//! changes two numbers of its own session and wakes its stream, however much that is.

use super::{
    Hub, Shared,
    control::Control,
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
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

/// What a token is made of: where its session is found, and what only its client knows.
const PLACE: usize = 8;
const SECRET: usize = 16;

/// Those of a hub, by their places, which are drawn and tell nothing.
#[derive(Default)]
pub(crate) struct Sessions {
    here: Mutex<HashMap<[u8; PLACE], Arc<Session>>>,
    /// What other nodes were asked, and have not answered.
    questions: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

/// Questions that other nodes are asked at a time: whoever guesses tokens is not to keep them busy.
const MOST_QUESTIONS: usize = 1024;

/// For how long an answer of theirs is waited for: far longer than it takes on a network that works.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// What became of a heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    Yes,
    /// No node has such a session.
    No,
    /// Other nodes cannot be asked now.
    Unsure,
}

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
        self.here.lock().insert(place, Arc::clone(&session));
        Ok(session)
    }

    pub(crate) fn end(&self, session: &Session) {
        self.here.lock().remove(&session.place);
    }

    /// Keeps a question until it is answered or given up.
    fn ask(&self) -> Option<(u64, oneshot::Receiver<()>)> {
        let (reply, answer) = oneshot::channel();
        let mut questions = self.questions.lock();
        // Those whose requests are gone wait for nothing.
        if questions.len() >= MOST_QUESTIONS {
            questions.retain(|_, reply| !reply.is_closed());
        }
        let question = fastrand::u64(..);
        let fits = questions.len() < MOST_QUESTIONS && !questions.contains_key(&question);
        fits.then(|| questions.insert(question, reply))?;
        Some((question, answer))
    }

    /// Takes in that another node has the session that was asked for.
    pub(crate) fn answered(&self, question: u64) {
        let asked = self.questions.lock().remove(&question);
        if let Some(reply) = asked {
            // Whoever asked may be gone.
            let _ = reply.send(());
        }
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
        let session = self.here.lock().get(place).cloned();
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
    ///
    /// Only of this hub's own: over a [log that nodes share](crate::replay::ReplayStore::feed), it is the handler that asks the
    /// other nodes.
    #[cfg_attr(docsrs, doc(cfg(feature = "client-heartbeats")))]
    pub fn heartbeat(&self, token: impl AsRef<[u8]>) -> bool {
        self.handle.shared.heartbeat(token.as_ref())
    }

    /// The same, on whatever node the session is.
    pub(crate) async fn heartbeat_anywhere(&self, token: &[u8]) -> Heard {
        let shared = &self.handle.shared;
        if shared.heartbeat(token) {
            return Heard::Yes;
        }
        if !shared.has_feed || token.len() != 2 * (PLACE + SECRET) {
            return Heard::No;
        }
        let Some((question, answer)) = shared.sessions.ask() else { return Heard::Unsure };
        let connected_before = shared.counters.feed_connected();
        if !shared.tell_others(&Control::Heartbeat { token: token.to_vec(), question }) {
            return Heard::Unsure;
        }
        let answer = timeout(ANSWER_TIME, answer).await;
        shared.sessions.questions.lock().remove(&question);
        match answer {
            Ok(Ok(())) => Heard::Yes,
            _ if connected_before.is_some() && shared.counters.feed_connected() == connected_before => Heard::No,
            // When this node was cut off from the others, that nobody answers means nothing.
            _ => Heard::Unsure,
        }
    }
}

impl Shared {
    pub(super) fn heartbeat(&self, token: &[u8]) -> bool {
        let Some(session) = self.sessions.find(token) else { return false };
        if session.deadline() <= Instant::now() {
            // Nobody has looked at it, because its client does not read.
            self.tell([&session.member], End { reason: EndReason::Silent, at_once: true });
            return false;
        }
        session.beat();
        if !session.owes.swap(true, Ordering::AcqRel) {
            self.window.tell([&*session.member].into_iter(), Goes::Not);
        }
        true
    }
}
