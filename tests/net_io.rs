//! The connection adapter over pipes in memory, on paused time: deadlines to the millisecond, and what is said of a client.

use futures_util::FutureExt as _;
use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tidings::{Lost, net::Connections};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, duplex},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

const DEADLINE: Duration = Duration::from_secs(30);
const ALMOST: Duration = Duration::from_millis(29_999);

#[tokio::test(start_paused = true)]
async fn the_deadline_is_for_one_write_that_waits() {
    let (mut client, server) = duplex(10);
    let mut connection = Connections::new().wrap(server);
    // Not for the time between writes, nor for a read.
    connection.write_all(&[0; 10]).await.unwrap();
    assert!(timeout(DEADLINE * 3, connection.read(&mut [0])).await.is_err());
    // Any progress starts it anew.
    let reading = tokio::spawn(async move {
        for _ in 0..5 {
            sleep(ALMOST).await;
            client.read_exact(&mut [0; 2]).await.unwrap();
        }
        client
    });
    let start = Instant::now();
    let error = connection.write_all(&[0; 100]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let elapsed = start.elapsed();
    let expected = ALMOST * 5 + DEADLINE;
    assert!(elapsed >= expected && elapsed < expected + Duration::from_millis(10), "{elapsed:?}");
    assert_eq!(connection.peer().lost(), Some(Lost::Stalled));
    drop(reading);
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_a_write_waits() {
    let (_client, server) = duplex(10);
    let mut connection = Connections::new().write_deadline(None).wrap(server);
    assert!(timeout(DEADLINE * 1000, connection.write_all(&[0; 100])).await.is_err());
    assert_eq!(connection.peer().lost(), None);
}

#[tokio::test(start_paused = true)]
async fn cut_wakes_both_halves_of_a_connection() {
    let connections = Connections::new().write_deadline(None);
    let (_client, server) = duplex(10);
    let connection = connections.wrap(server);
    let peer = connection.peer().clone();
    let (mut reader, mut writer) = tokio::io::split(connection);
    let reading = tokio::spawn(async move { reader.read(&mut [0]).await.map(drop) });
    let writing = tokio::spawn(async move { writer.write_all(&[0; 100]).await });
    yield_now().await;
    assert!(!reading.is_finished() && !writing.is_finished());
    assert_eq!(connections.open(), 1);
    connections.clone().cut();
    for task in [reading, writing] {
        let result = timeout(DEADLINE, task).await.expect("it should be woken").unwrap();
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    }
    assert_eq!(peer.lost(), Some(Lost::Cut));
    connections.closed().await;
    assert_eq!(connections.open(), 0);
    // One that comes later is not better off.
    let (_client, server) = duplex(10);
    let mut late = connections.wrap(server);
    assert_eq!(late.write(&[0]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(late.peer().lost(), Some(Lost::Cut));
}

#[tokio::test]
async fn closed_waits_for_the_last_one() {
    let connections = Connections::new();
    connections.closed().await;
    let (one, two) = duplex(10);
    let (one, two) = (connections.wrap(one), connections.wrap(two));
    let closed = tokio::spawn({
        let connections = connections.clone();
        async move { connections.closed().await }
    });
    drop(one);
    for _ in 0..10 {
        yield_now().await;
    }
    assert!(!closed.is_finished());
    drop(two);
    closed.await.unwrap();
}

/// What fails with the error it is given. It takes nothing until then.
struct Failing(Option<io::Error>);

impl Failing {
    fn poll<T>(&mut self) -> Poll<io::Result<T>> {
        self.0.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }
}

impl AsyncRead for Failing {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll()
    }
}

impl AsyncWrite for Failing {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        panic!("vectored")
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// What a client is said to be after its kernel's error, with a write that waits or without.
async fn said_of(kind: ErrorKind, write_waits: bool) -> Option<Lost> {
    let mut connection = Connections::new().wrap(Failing(Some(kind.into())));
    if write_waits {
        assert!(connection.write(&[0]).now_or_never().is_none());
    }
    assert_eq!(connection.read(&mut [0]).await.unwrap_err().kind(), kind);
    connection.peer().lost()
}

#[tokio::test]
async fn a_client_that_does_not_answer_has_vanished_unless_a_write_waits_for_it() {
    assert_eq!(said_of(ErrorKind::TimedOut, false).await, Some(Lost::Vanished));
    assert_eq!(said_of(ErrorKind::TimedOut, true).await, Some(Lost::Stalled));
    for unreachable in [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable, ErrorKind::NetworkDown] {
        assert_eq!(said_of(unreachable, false).await, Some(Lost::Vanished));
        assert_eq!(said_of(unreachable, true).await, Some(Lost::Vanished));
    }
    assert_eq!(said_of(ErrorKind::ConnectionReset, true).await, None);
}

#[tokio::test]
#[should_panic(expected = "vectored")]
async fn vectored_writes_are_passed_on() {
    let mut connection = Connections::new().wrap(Failing(None));
    assert!(connection.is_write_vectored());
    let _ = connection.write_vectored(&[IoSlice::new(&[0])]).await;
}

#[test]
fn a_connection_can_stand_below_tls_and_in_any_task() {
    fn fits<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static>() {}
    fits::<tidings::net::Connection<tokio::net::TcpStream>>();
}
