//! The main claim, over real sockets: clients that are cut again and again, in every way, have every event once and in
//! order.

mod support;

use bytes::Bytes;
use http_body::{Body, Frame};
use socket2::SockRef;
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use support::{Server, Via};
use tidings::{Event, Hub, Topic, replay::Ring, test_util::EventReader};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};

const CLIENTS: usize = 50;
const EVENTS: usize = 20_000;

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_that_are_cut_all_the_time_have_every_event_once_and_in_order_on_axum() {
    cut_all_the_time(Via::Axum).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_that_are_cut_all_the_time_have_every_event_once_and_in_order_on_hyper() {
    cut_all_the_time(Via::Hyper).await;
}

async fn cut_all_the_time(via: Via) {
    // A small window, so that many of the reconnects are served by the ring and pass into the window while events come.
    // The ring holds everything, however slow the clients are.
    let ring = Ring::new().events_per_topic(EVENTS).bytes_per_topic(usize::MAX);
    let hub = Hub::builder().window_events(64).ring(ring).build();
    let server = Server::start(via, hub.handler(|_| async { topic() })).await;
    let address = server.address;
    let (ready, mut all_ready) = tokio::sync::mpsc::channel::<()>(1);
    let mut seeds = fastrand::Rng::with_seed(50);
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(address, seeds.fork(), ready.clone()))).collect();
    drop(ready);
    // Each client drops its end once it has its first id.
    assert!(all_ready.recv().await.is_none());

    let mut tick = tokio::time::interval(Duration::from_millis(1));
    for n in 0..EVENTS {
        hub.publish(topic(), Event::new().data(format!("{n}\n{n}"))).await.unwrap();
        if n % 4 == 3 {
            tick.tick().await;
        }
    }
    let mut connections = 0;
    for client in clients {
        connections += client.await.unwrap();
    }
    assert!(connections > CLIENTS * 5, "the clients were cut: {connections} connections");
}

/// Reads until it has the last event, and says how many connections it took.
async fn client(address: SocketAddr, mut random: fastrand::Rng, ready: tokio::sync::mpsc::Sender<()>) -> usize {
    let mut ready = Some(ready);
    let mut id = String::new();
    let mut next = 0;
    let mut connections = 0;
    while next < EVENTS {
        connections += 1;
        let stream = TcpStream::connect(address).await.unwrap();
        if random.bool() {
            // A cut by RST: what is in flight is lost.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let mut reader = EventReader::new(get(stream, &id, random.fork()).await);
        if id.is_empty() {
            first_id(&mut reader).await;
            ready.take();
        }
        // Some time or some events later, whatever is first: a slow machine sees as many cuts.
        let cut = Instant::now() + Duration::from_millis(random.u64(1..300));
        let last = EVENTS.min(next + random.usize(1..2000));
        while next < last {
            let Ok(event) = timeout_at(cut, reader.try_next()).await else { break };
            let event = event.unwrap().expect("the server ends no stream");
            assert_eq!((event.event_type.as_str(), event.data), ("message", format!("{next}\n{next}")));
            next += 1;
        }
        // Blocks that only move the id count; an event that was cut off in the middle does not.
        if !reader.last_event_id().is_empty() {
            reader.last_event_id().clone_into(&mut id);
        }
    }
    connections
}

/// Waits for an id that comes without an event.
async fn first_id(reader: &mut EventReader<Socket>) {
    poll_fn(|cx| {
        let event = pin!(reader.try_next()).poll(cx);
        assert!(event.is_pending(), "nothing was published yet");
        if reader.last_event_id().is_empty() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// The rest of a connection, read in pieces of any size, so that a cut can fall into the middle of an event.
struct Socket {
    stream: BufReader<TcpStream>,
    random: fastrand::Rng,
}

/// HTTP/1.0, so that the body is the rest of the connection.
async fn get(stream: TcpStream, id: &str, random: fastrand::Rng) -> Socket {
    let mut stream = BufReader::new(stream);
    let header = if id.is_empty() { String::new() } else { format!("last-event-id: {id}\r\n") };
    stream.write_all(format!("GET /events HTTP/1.0\r\nhost: test\r\n{header}\r\n").as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.0 200 ") && !head.contains("tidings-gap"), "{head}");
    Socket { stream, random }
}

impl Body for Socket {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut piece = vec![0; self.random.usize(1..2000)];
        let mut buf = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        let read = buf.filled().len();
        piece.truncate(read);
        Poll::Ready((read > 0).then(|| Ok(Frame::data(piece.into()))))
    }
}
