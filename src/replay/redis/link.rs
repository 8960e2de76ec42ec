//! The connections of a node, all of them shared: a few, never one for each client.
//!
//! Invariant: a connection that failed is never used again, and no more than one is made at a time in its place.

use super::error::{CallError, Connecting, code_of};
use crate::sync::Mutex;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _,
    ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult, Value,
    aio::{MultiplexedConnection, PubSub},
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// After a connection could not be made, the next ones who want it are told so for this long.
const FAILED_FOR: Duration = Duration::from_millis(50);

/// And who has no time left for another try is told of it for this long: longer than a try and the pause before it.
const FAILED_LATELY: Duration = Duration::from_secs(5);

/// Where appends go, which never wait behind a page.
pub(super) const WRITES: usize = 0;

pub(super) struct Links {
    /// The first, and others that may serve the same log.
    addresses: Vec<ConnectionInfo>,
    current: AtomicUsize,
    /// The node of a cluster that said it has the log.
    moved: Mutex<Option<ConnectionInfo>>,
    slots: Box<[Slot]>,
    next_read: AtomicUsize,
    /// How long an answer may take.
    patience: Duration,
}

struct Slot {
    state: Mutex<SlotState>,
    /// The right to make the connection.
    turn: Semaphore,
}

#[derive(Default)]
struct SlotState {
    link: Option<Link>,
    failed: Option<(Instant, CallError)>,
}

/// A connection that many use at once.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    is_dead: Arc<AtomicBool>,
    slot: usize,
    /// Which address was the current one when it was made.
    turn: usize,
}

impl Links {
    pub(super) fn new(urls: &[String], count: usize, patience: Duration) -> RedisResult<Self> {
        let addresses =
            urls.iter().map(|url| Ok(prepare(url.as_str().into_connection_info()?))).collect::<RedisResult<_>>()?;
        let slot = || Slot { state: Mutex::new(SlotState::default()), turn: Semaphore::new(1) };
        Ok(Self {
            addresses,
            current: AtomicUsize::new(0),
            moved: Mutex::new(None),
            slots: (0..=count).map(|_| slot()).collect(),
            next_read: AtomicUsize::new(0),
            patience,
        })
    }

    /// One of those for reading, each in its turn.
    pub(super) fn a_read(&self) -> usize {
        1 + self.next_read.fetch_add(1, Ordering::Relaxed) % (self.slots.len() - 1)
    }

    /// The connection in a slot, made anew if it failed.
    pub(super) async fn get(&self, slot: usize, at_most: Duration) -> Result<Link, CallError> {
        match timeout(at_most, self.get_or_make(slot)).await {
            Ok(got) => got,
            // Why it failed before says more than that the last try had no time.
            Err(_) => Err(self.slots[slot].failed_within(FAILED_LATELY).unwrap_or_else(|| {
                CallError::connecting(&self.address().0, Connecting::Late(at_most.min(CONNECT_TIMEOUT)), true)
            })),
        }
    }

    async fn get_or_make(&self, slot: usize) -> Result<Link, CallError> {
        let place = &self.slots[slot];
        if let Some(known) = place.known() {
            return known;
        }
        let turn = place.turn.acquire().await.map_err(|closed| CallError::new(closed, false))?;
        if let Some(known) = place.known() {
            return known;
        }
        // In a box, as the client's futures are large, and so would be every one that holds this.
        let made = Box::pin(self.connect(slot)).await;
        let mut state = place.state.lock();
        *state = match &made {
            Ok(link) => SlotState { link: Some(link.clone()), failed: None },
            Err(error) => SlotState { link: None, failed: Some((Instant::now(), error.clone())) },
        };
        drop(state);
        drop(turn);
        made
    }

    async fn connect(&self, slot: usize) -> Result<Link, CallError> {
        let is_dead = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_dead);
        let note = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                flag.store(true, Ordering::Release);
            }
            Ok::<_, redis::aio::SendError>(())
        };
        let config = AsyncConnectionConfig::new()
            // Calls have their own.
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_push_sender(note);
        let (address, turn) = self.address();
        let at = address.clone();
        let made = async { Client::open(address)?.get_multiplexed_async_connection_with_config(&config).await };
        let connection = self.in_time(&at, turn, made).await?;
        Ok(Link { connection, is_dead, slot, turn })
    }

    /// A connection that only listens.
    pub(super) async fn listen(&self) -> Result<PubSub, CallError> {
        let (address, turn) = self.address();
        let at = address.clone();
        self.in_time(&at, turn, Box::pin(async { Client::open(address)?.get_async_pubsub().await })).await
    }

    async fn in_time<T>(
        &self,
        at: &ConnectionInfo,
        turn: usize,
        made: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, CallError> {
        let failed = match timeout(CONNECT_TIMEOUT, made).await {
            Ok(Ok(made)) => return Ok(made),
            Ok(Err(error)) => Connecting::Failed(error),
            Err(_) => Connecting::Late(CONNECT_TIMEOUT),
        };
        self.try_another(turn);
        // Another one may do.
        Err(CallError::connecting(at, failed, self.addresses.len() > 1))
    }

    fn address(&self) -> (ConnectionInfo, usize) {
        let moved = self.moved.lock().clone();
        let turn = self.current.load(Ordering::Relaxed);
        (moved.unwrap_or_else(|| self.addresses[turn % self.addresses.len()].clone()), turn)
    }

    /// The next one connects elsewhere, if there is another place. However many find this out, it is the next address.
    fn try_another(&self, turn: usize) {
        if self.moved.lock().take().is_none() {
            let next = turn.wrapping_add(1);
            let _ = self.current.compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Asks one thing. A connection that does not answer is given up.
    pub(super) async fn call(&self, link: &Link, cmd: &Cmd, at_most: Duration) -> Result<Value, CallError> {
        if link.is_dead.load(Ordering::Acquire) {
            self.give_up(link);
            return Err(CallError::new("the connection to the server was cut", false));
        }
        let mut connection = link.connection.clone();
        match timeout(self.patience.min(at_most), Box::pin(connection.send_packed_command(cmd))).await {
            Ok(Ok(Value::ServerError(error))) => Err(self.refused(link, error.into())),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => {
                Err(self.refused(link, error))
            }
            Ok(Err(error)) => {
                self.give_up(link);
                Err(CallError::new(error, true))
            }
            Err(_) => {
                self.give_up(link);
                Err(CallError::new("the server did not answer in time", true))
            }
        }
    }

    fn refused(&self, link: &Link, error: RedisError) -> CallError {
        match code_of(&error) {
            "MOVED" => {
                let (address, _) = self.address();
                *self.moved.lock() = error.redirect_node().and_then(|(place, _)| moved_to(&address, place));
                self.give_up_all();
            }
            // It was the one that others follow, and no longer is.
            "READONLY" | "MASTERDOWN" => {
                self.try_another(link.turn);
                self.give_up_all();
            }
            "LOADING" => self.give_up(link),
            _ => {}
        }
        CallError::answered(error)
    }

    fn give_up(&self, link: &Link) {
        link.is_dead.store(true, Ordering::Release);
        let mut state = self.slots[link.slot].state.lock();
        if state.link.as_ref().is_some_and(|there| Arc::ptr_eq(&there.is_dead, &link.is_dead)) {
            state.link = None;
        }
    }

    fn give_up_all(&self) {
        for slot in &self.slots {
            slot.state.lock().link = None;
        }
    }
}

impl Slot {
    fn known(&self) -> Option<Result<Link, CallError>> {
        let state = self.state.lock();
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_dead.load(Ordering::Acquire)) {
            return Some(Ok(link.clone()));
        }
        drop(state);
        self.failed_within(FAILED_FOR).map(Err)
    }

    fn failed_within(&self, time: Duration) -> Option<CallError> {
        let state = self.state.lock();
        let (since, error) = state.failed.as_ref()?;
        (since.elapsed() < time).then(|| error.clone())
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Addresses have passwords.
        f.debug_struct("Links").field("connections", &self.slots.len()).finish_non_exhaustive()
    }
}

/// By the protocol in which a connection says that it was cut.
fn prepare(info: ConnectionInfo) -> ConnectionInfo {
    let settings = info
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP3)
        .set_lib_name("tidings", env!("CARGO_PKG_VERSION"));
    info.set_redis_settings(settings)
}

/// The same with the host and port that a node of a cluster named.
fn moved_to(info: &ConnectionInfo, place: &str) -> Option<ConnectionInfo> {
    let (host, port) = place.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let address = match info.addr() {
        // One that does not know its own name means the one that was asked.
        ConnectionAddr::Tcp(same, _) => ConnectionAddr::Tcp(if host.is_empty() { same } else { host }.to_owned(), port),
        ConnectionAddr::TcpTls { host: same, insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: if host.is_empty() { same } else { host }.to_owned(),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => return None,
    };
    Some(info.clone().set_addr(address))
}
