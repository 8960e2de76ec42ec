//! [`Connections`]: settings, the connections that are open, and the switch that ends them.
//!
//! Invariant: a connection is in the set from when it is made until it is dropped. Whoever is in the set when the switch
//! is thrown is woken; whoever comes later finds it thrown.

use super::{Connection, socket};
use crate::{Drain, Drained, Hub, Peer, sync::Mutex};
use atomic_waker::AtomicWaker;
use slab::Slab;
use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Handle,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

/// How long those who were cut may take to notice.
const A_MOMENT: Duration = Duration::from_secs(1);

/// Looks after the connections of a server: settings, and what can be done to all of them at once.
///
/// Cloning is cheap, and gives the same set of connections. The settings are those of the clone by which a connection
/// is accepted. See the [module](super) for how it is used.
#[derive(Clone)]
#[must_use = "it does nothing for connections that it did not accept"]
pub struct Connections {
    write_deadline: Option<Duration>,
    socket: socket::Options,
    set: Arc<Set>,
}

impl Connections {
    /// No connections yet, and the defaults of each setting.
    pub fn new() -> Self {
        Self {
            write_deadline: Some(Duration::from_secs(30)),
            socket: socket::Options {
                dead_peer_timeout: Some(Duration::from_secs(30)),
                send_buffer: Some(64 * 1024),
                nodelay: true,
            },
            set: Arc::default(),
        }
    }

    /// Sets how long a write may wait for the client to take anything at all, or `None` for as long as it likes. Default:
    /// 30 seconds, which is two heartbeats: longer than networks usually stall, shorter than a lost client should hold what
    /// it holds.
    ///
    /// After that the connection fails with [`TimedOut`](io::ErrorKind::TimedOut). Whatever the client takes starts the
    /// time anew, and a connection with nothing to write is never cut. How slow a reader may be:
    /// [the module](super#the-slowest-reader-that-survives).
    pub fn write_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        // A deadline of zero would be over before a write has waited.
        self.write_deadline = deadline.into().map(|deadline| deadline.max(Duration::from_millis(1)));
        self
    }

    /// Sets how long the client's kernel may leave unanswered what it is sent, or `None` for as long as the system does,
    /// about a quarter of an hour. Default: 30 seconds.
    ///
    /// It is the `TCP_USER_TIMEOUT` of [`accept`](Self::accept)ed sockets, on Linux and Android, set up to 0.75 seconds
    /// shorter because the system begins to count later; elsewhere this part is left out. So that a client is also missed where there is nothing to send, such as an HTTP/2 connection of which
    /// every stream is stalled, keep-alive probes are sent after two thirds of the time without a sign of it. The system
    /// counts them in whole seconds: below 3 seconds, such a client is missed up to 2 seconds late.
    ///
    /// A client that is there but has stopped reading answers, and yet Linux counts this time against it as well: so
    /// whatever the write deadline is, a full receive buffer is forgiven for no longer than this.
    pub fn dead_peer_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.socket.dead_peer_timeout = timeout.into();
        self
    }

    /// Sets how many bytes the kernel holds for a client that does not read, or `None` for as many as it likes. Default:
    /// 64 KiB, as much as one write carries.
    ///
    /// Linux counts its own book-keeping, and doubles the number for that. Left alone it holds up to 4 MiB: so much must be
    /// published before a stalled reader is felt, and a third of it must be read before a write goes on. The bound is also
    /// one for speed: at most this much, or twice on Linux, is under way to a client at any time, so with a round trip of
    /// 100 milliseconds no more than 0.6 to 1.2 MB a second. A server that also sends large files may want more.
    pub fn send_buffer(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.socket.send_buffer = bytes.into();
        self
    }

    /// Sets `TCP_NODELAY`. Default: on, because otherwise the kernel may hold back an event until the client has
    /// acknowledged the one before.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.socket.nodelay = nodelay;
        self
    }

    /// Takes a connection in, and sets its socket's options.
    ///
    /// # Errors
    ///
    /// When the system refuses an option; the error says which, and the connection is closed. On some systems that happens
    /// when the client is already gone. Where an option is not known at all, switch it off.
    ///
    /// # Panics
    ///
    /// As [`wrap`](Self::wrap).
    pub fn accept(&self, stream: TcpStream) -> io::Result<Connection<TcpStream>> {
        self.socket.set(&stream)?;
        Ok(self.wrap(stream))
    }

    /// Takes in a connection of any kind. It has the write deadline and is cut with the others; the dead-peer timeout and
    /// the send buffer are for its socket.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with timers.
    pub fn wrap<IO: AsyncRead + AsyncWrite>(&self, io: IO) -> Connection<IO> {
        Connection::new(io, self.write_deadline, Set::enter(&self.set))
    }

    /// Ends every connection: reads and writes fail, and whoever waits in one is woken. A connection that is taken in
    /// later fails at once. There is no way back.
    ///
    /// What the kernel has already been given is still sent. Responses are dropped when their tasks have run, a moment
    /// later.
    pub fn cut(&self) {
        self.set.cut();
    }

    /// How many connections are open: taken in and not yet dropped.
    #[must_use]
    pub fn open(&self) -> usize {
        self.set.lines.lock().len()
    }

    /// Waits until no connection is open. It does not keep new ones out.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when it is dropped.
    pub async fn closed(&self) {
        loop {
            // It hears what happens from here on, also before it is first polled.
            let emptied = self.set.emptied.notified();
            if self.open() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Drains a hub ([`Hub::drain`]), and cuts every connection that is left at the deadline: those whose clients have
    /// stopped reading, streams of HTTP/2 included. Await it in the future for which the server waits before it shuts
    /// down:
    ///
    /// ```no_run
    /// use tidings::{Drain, Hub, net::Connections};
    ///
    /// # async fn terminated() {}
    /// # #[cfg(feature = "axum-serve")]
    /// # async fn example(listener: tokio::net::TcpListener, app: axum::Router, hub: Hub) -> std::io::Result<()> {
    /// let connections = Connections::new();
    /// let listener = connections.listen(listener)?;
    /// let drained = async move {
    ///     terminated().await; // SIGTERM
    ///     connections.drain(&hub, Drain::new()).await;
    /// };
    /// axum::serve(listener, app).with_graceful_shutdown(drained).await
    /// # }
    /// ```
    ///
    /// It resolves when no stream is left. A connection may then still have something to send: it has until the deadline for
    /// that, also while the server shuts down. The connections of all routes are cut then, because a server that waits for
    /// one of them does not stop.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the hub is closed at once; the connections are cut at the deadline all the same.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with timers.
    pub async fn drain(&self, hub: &Hub, drain: Drain) -> Drained {
        // However this ends, and not before the drain has counted who remains.
        let fuse = Fuse { set: &self.set, deadline: Instant::now().checked_add(drain.longest()) };
        let drained = hub.drain(drain).await;
        drop(fuse);
        if drained.remaining > 0 {
            self.cut();
            // Their tasks only have to run.
            let _ = timeout(A_MOMENT, hub.emptied()).await;
        }
        drained
    }

    #[cfg(feature = "axum-serve")]
    pub(super) fn socket(&self) -> &socket::Options {
        &self.socket
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("write_deadline", &self.write_deadline)
            .field("socket", &self.socket)
            .field("open", &self.open())
            .field("cut", &self.set.is_cut())
            .finish()
    }
}

#[derive(Default)]
struct Set {
    cut: AtomicBool,
    lines: Mutex<Slab<Arc<Line>>>,
    emptied: Notify,
    /// When they are to be cut, and the task that does it.
    fuse: Mutex<Option<(Instant, AbortHandle)>>,
}

impl Drop for Set {
    fn drop(&mut self) {
        if let Some((_, task)) = self.fuse.lock().take() {
            task.abort();
        }
    }
}

impl Set {
    fn enter(set: &Arc<Self>) -> Place {
        let line = Arc::<Line>::default();
        let key = set.lines.lock().insert(Arc::clone(&line));
        Place { set: Arc::clone(set), key, line }
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        // Woken after the lock is given back: a waker is somebody else's code.
        let lines: Vec<_> = self.lines.lock().iter().map(|(_, line)| Arc::clone(line)).collect();
        for line in lines {
            line.reader.wake();
            line.writer.wake();
        }
    }
}

/// Dropped, it lets a set of connections be cut at a deadline, in a task that ends with the set.
struct Fuse<'a> {
    set: &'a Arc<Set>,
    /// If the clock goes so far.
    deadline: Option<Instant>,
}

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        let Some(deadline) = self.deadline else { return };
        let Ok(runtime) = Handle::try_current() else { return self.set.cut() };
        let mut fuse = self.set.fuse.lock();
        // The earliest deadline holds.
        if fuse.as_ref().is_none_or(|(earlier, _)| *earlier > deadline) {
            let set = Arc::downgrade(self.set);
            let cut = async move {
                sleep_until(deadline).await;
                if let Some(set) = set.upgrade() {
                    set.cut();
                }
            };
            let task = runtime.spawn(cut).abort_handle();
            if let Some((_, later)) = fuse.replace((deadline, task)) {
                later.abort();
            }
        }
    }
}

/// What is known of a connection from outside: its far end, and who waits in it. Two, because a connection can be split
/// between two tasks.
#[derive(Default)]
pub(super) struct Line {
    pub(super) peer: Peer,
    pub(super) reader: AtomicWaker,
    pub(super) writer: AtomicWaker,
}

/// A connection's place in the set, until it is dropped.
pub(super) struct Place {
    set: Arc<Set>,
    key: usize,
    pub(super) line: Arc<Line>,
}

impl Place {
    pub(super) fn is_cut(&self) -> bool {
        self.set.is_cut()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.set.lines.lock();
        let line = lines.try_remove(self.key);
        let empty = lines.is_empty();
        drop(lines);
        // With it goes what it holds of others: their wakers.
        drop(line);
        if empty {
            self.set.emptied.notify_waiters();
        }
    }
}
