//! One client: a connection, and the events that come over it.

use crate::{Failure, server::monotonic};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{fs, net::SocketAddr, time::Duration};
use tokio::{net::TcpSocket, task::JoinHandle, time::timeout};

/// The least that hyper takes: a client that takes its time for events is not to have read them long before.
const READ_AHEAD: usize = 8 * 1024;

/// What comes, comes within this.
const SOON: Duration = Duration::from_millis(100);

/// Dropped, it cuts the connection.
pub(crate) struct Reader {
    pub(crate) seen: Seen,
    body: Incoming,
    connection: JoinHandle<()>,
    client: SocketAddr,
    server: SocketAddr,
    /// Lines that were received, of which the first bytes were taken, and the last may be incomplete.
    lines: Vec<u8>,
    taken: usize,
    /// When the last of them came.
    received: Duration,
}

/// What came.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) events: u32,
    /// Those that had the number after the one before.
    pub(crate) in_order: u32,
    pub(crate) gaps: u32,
    last: u32,
}

impl Seen {
    /// Whether it is all events, each in its place and once.
    pub(crate) fn is_all(&self, events: u32) -> bool {
        self.events == events && self.in_order == events && self.gaps == 0
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Reader {
    pub(crate) async fn open(server: SocketAddr, receive_buffer: Option<u32>) -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(server).await?;
        let client = stream.local_addr()?;
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(READ_AHEAD).handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move { drop(connection.await) });
        let request = Request::get("/").header(header::HOST, server.to_string()).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("the server answers {}", response.status()).into());
        }
        let (seen, body, lines) = (Seen::default(), response.into_body(), Vec::new());
        Ok(Self { seen, body, connection, client, server, lines, taken: 0, received: Duration::ZERO })
    }

    /// Reads until the event of this number, and returns how many microseconds after its publication each was received.
    pub(crate) async fn read_and_time(mut self, last: u32) -> Result<(Self, Vec<u32>), Failure> {
        let mut latencies = Vec::with_capacity(last.try_into()?);
        while self.seen.last < last {
            let latency = self.next().await?;
            latencies.push(latency.as_micros().try_into().unwrap_or(u32::MAX));
        }
        Ok((self, latencies))
    }

    pub(crate) async fn read_to(&mut self, last: u32) -> Result<(), Failure> {
        while self.seen.last < last {
            self.next().await?;
        }
        Ok(())
    }

    /// Whether another event comes.
    pub(crate) async fn has_more(&mut self) -> Result<bool, Failure> {
        timeout(SOON, self.next()).await.map_or(Ok(false), |next| next.map(|_| true))
    }

    /// Takes one event, and says how long it was on its way.
    pub(crate) async fn next(&mut self) -> Result<Duration, Failure> {
        loop {
            while let Some(len) = memchr::memchr(b'\n', &self.lines[self.taken..]) {
                let line = &self.lines[self.taken..][..len];
                self.taken += len + 1;
                if line == b"event: tidings-gap" {
                    self.seen.gaps += 1;
                }
                if let Some((number, published)) = number_and_time(line) {
                    self.seen.events += 1;
                    self.seen.in_order += u32::from(number == self.seen.last + 1);
                    self.seen.last = number;
                    return Ok(self.received.saturating_sub(published));
                }
            }
            let frame = self.body.frame().await.ok_or("the stream ended")??;
            self.received = monotonic();
            self.lines.drain(..self.taken);
            self.taken = 0;
            self.lines.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    }

    /// Bytes that were sent over the connection and not read from it, where there is `/proc/net/tcp`.
    pub(crate) fn held_by_kernel(&self) -> Option<u64> {
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        let [client, server] = [self.client, self.server].map(|address| format!(":{:04X}", address.port()));
        let held = table.lines().filter_map(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let (local, remote, queues) = (columns.next()?, columns.next()?, columns.nth(1)?);
            let is_sender = local.ends_with(&server) && remote.ends_with(&client);
            let is_receiver = local.ends_with(&client) && remote.ends_with(&server);
            let (sending, receiving) = queues.split_once(':')?;
            let queue = if is_sender { sending } else { receiving };
            (is_sender || is_receiver).then(|| u64::from_str_radix(queue, 16).ok())?
        });
        Some(held.sum())
    }
}

/// What the server put into the data of an event; `None` for other lines.
fn number_and_time(line: &[u8]) -> Option<(u32, Duration)> {
    let data = std::str::from_utf8(line.strip_prefix(b"data: ")?).ok()?;
    let mut words = data.split(' ');
    Some((words.next()?.parse().ok()?, Duration::from_nanos(words.next()?.parse().ok()?)))
}
