//! [`Connection`]: the I/O of one connection, which fails when its time is over.
//!
//! Invariant: how the connection was lost is said before the error is returned, so that whatever is dropped because of
//! the error can ask. A task that waits has left its waker before it looks for the last time whether the connection was
//! cut.

use super::{WithPeer, connections::Place};
use crate::{Lost, Peer};
use atomic_waker::AtomicWaker;
use std::{
    fmt,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_io_timeout::TimeoutWriter;

/// A connection that [`Connections`](super::Connections) looks after: read and written as what it wraps.
///
/// With TLS, this goes below: the TLS stream wraps the connection.
pub struct Connection<IO> {
    // It has a timer in it, which must not move; servers want to move the connection.
    io: Pin<Box<TimeoutWriter<IO>>>,
    place: Place,
    /// Whether the last write had to wait.
    write_waits: bool,
}

impl<IO: AsyncRead + AsyncWrite> Connection<IO> {
    pub(super) fn new(io: IO, write_deadline: Option<Duration>, place: Place) -> Self {
        let mut io = TimeoutWriter::new(io);
        io.set_timeout(write_deadline);
        Self { io: Box::pin(io), place, write_waits: false }
    }

    /// What is wrapped.
    #[must_use]
    pub fn get_ref(&self) -> &IO {
        self.io.get_ref()
    }
}

impl<IO> Connection<IO> {
    /// The client, and how it was lost.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.place.line.peer
    }

    /// A service for this connection's requests: each gets the [`Peer`] among its extensions.
    pub fn with_peer<S>(&self, service: S) -> WithPeer<S> {
        WithPeer::new(service, self.peer().clone())
    }

    fn fail_if_cut(&self) -> io::Result<()> {
        if self.place.is_cut() {
            self.peer().set_lost(Lost::Cut);
            return Err(io::Error::new(ErrorKind::ConnectionAborted, "the server cut the connection"));
        }
        Ok(())
    }

    /// Runs one read or write, with all that stands around it.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        side: Side,
        operation: impl FnOnce(Pin<&mut TimeoutWriter<IO>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.fail_if_cut()?;
        let result = operation(self.io.as_mut(), cx);
        if let Poll::Ready(Err(error)) = &result {
            self.tell_if_lost(error);
        }
        if side == Side::Write {
            self.write_waits = result.is_pending();
        }
        if result.is_pending() {
            self.waker(side).register(cx.waker());
            self.fail_if_cut()?;
        }
        result
    }

    fn waker(&self, side: Side) -> &AtomicWaker {
        match side {
            Side::Read => &self.place.line.reader,
            Side::Write => &self.place.line.writer,
        }
    }

    /// A write deadline looks like the kernel's own time-out, and the kernel's may come first for a client that has only
    /// stopped reading. Both mean the same as long as a write waits. The network's errors are what the kernel says in
    /// place of a time-out where it was told why nothing arrives.
    fn tell_if_lost(&self, error: &io::Error) {
        match error.kind() {
            ErrorKind::TimedOut if self.write_waits => self.peer().set_lost(Lost::Stalled),
            ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown => self.peer().set_lost(Lost::Vanished),
            _ => {}
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Read,
    Write,
}

impl<IO: AsyncRead + AsyncWrite> AsyncRead for Connection<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, Side::Read, |io, cx| io.poll_read(cx, buffer))
    }
}

impl<IO: AsyncRead + AsyncWrite> AsyncWrite for Connection<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, Side::Write, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, Side::Write, |io, cx| io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, Side::Write, TimeoutWriter::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, Side::Write, TimeoutWriter::poll_shutdown)
    }
}

/// For those who take a connection as whatever has a peer, as `MakeWithPeer` does.
impl<IO> AsRef<Peer> for Connection<IO> {
    fn as_ref(&self) -> &Peer {
        self.peer()
    }
}

impl<IO> fmt::Debug for Connection<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", self.peer())
            .field("write_waits", &self.write_waits)
            .finish_non_exhaustive()
    }
}
