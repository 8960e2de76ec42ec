//! The connection adapter over real sockets: on axum and on bare hyper, HTTP/1.1 and HTTP/2.

mod support;

use axum::{extract::ConnectInfo, routing::get, serve::Listener as _};
use http_body_util::BodyExt as _;
use socket2::SockRef;
use std::{
    future::{IntoFuture as _, pending},
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use support::{
    ALL, Client, Http, Via,
    watched::{By, Stalled, TOPIC, Watched},
};
use tidings::{
    Event, Hub, KeepAlive, Lost, Peer,
    net::{Connections, MakeWithPeer},
    test_util::EventReader,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Nobody waits longer than this for what must happen.
const LONG: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_millis(300);
/// More than hyper and the kernels take for a client that does not read.
const MUCH: usize = 4 * 1024 * 1024;

/// No heartbeats: what is written is what is published.
fn quiet() -> Hub {
    Hub::builder().keep_alive(KeepAlive::off()).build()
}

fn kilobytes(count: usize) -> Event {
    Event::new().data("x".repeat(count * 1024))
}

/// Publishes until something happens.
async fn publishing<T>(hub: &Hub, until: impl Future<Output = T>) -> T {
    let publish = async {
        loop {
            hub.publish(TOPIC, kilobytes(16)).await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
    };
    let result = async {
        tokio::select! {
            result = until => result,
            () = publish => unreachable!(),
        }
    };
    timeout(LONG, result).await.expect("it should happen")
}

/// Publishes more than any client takes that does not read.
async fn publish_much(hub: &Hub) {
    for _ in 0..MUCH / (16 * 1024) {
        hub.publish(TOPIC, kilobytes(16)).await.unwrap();
        tokio::task::yield_now().await;
    }
}

async fn all_gone(server: &Watched) {
    let gone = async {
        server.connections.closed().await;
        // Responses go after their connection, when their tasks are run.
        while server.subscriptions() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, gone).await.expect("all should be gone");
}

#[tokio::test]
async fn the_write_deadline_cuts_a_reader_that_has_stopped() {
    for (via, http) in ALL {
        // The kernel's own limit stands far off.
        let connections = Connections::new().write_deadline(DEADLINE);
        let mut server = Watched::start(via, connections, quiet()).await;
        let (_client, response) = Client::get(http, server.address, "/", &[]).await;
        let mut others = response.into_body();
        let others = tokio::spawn(async move { while others.frame().await.is_some() {} });
        let stalled = Stalled::open(http, server.address, "/", By::Tcp).await;
        assert_eq!(server.connections.open(), 2);
        let start = Instant::now();
        let lost = publishing(&server.hub, server.lost.recv()).await;
        assert_eq!(lost, Some(Some(Lost::Stalled)), "{via:?} {http:?}");
        assert!(start.elapsed() >= DEADLINE, "{:?}", start.elapsed());
        assert!(!others.is_finished(), "who reads stays");
        // It was dropped before its response, or is about to be.
        let one = async {
            while server.connections.open() > 1 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, one).await.unwrap();
        drop(stalled);
    }
}

/// Reads about as many bytes a second, in small bites, until the end.
async fn read_slowly(address: SocketAddr, bytes_per_second: u32) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // Linux doubles it.
    socket.set_recv_buffer_size(16 * 1024)?;
    let mut stream = socket.connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let start = Instant::now();
    let (mut read, mut buffer) = (0.0, [0; 2048]);
    loop {
        if read > start.elapsed().as_secs_f64() * f64::from(bytes_per_second) {
            sleep(Duration::from_millis(2)).await;
            continue;
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => read += f64::from(u32::try_from(count).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_survives_above_the_slowest_rate_and_not_below() {
    // The deadline is long enough for a busy machine. Of the send buffer, two thirds are 43 KiB, and the client's buffer
    // is 32 KiB: less than 43 KiB a second is too slow, and 75 KiB is enough.
    let connections = Connections::new().write_deadline(Duration::from_secs(1));
    let mut server = Watched::start(Via::Hyper, connections, quiet()).await;
    let mut readers = JoinSet::new();
    readers.spawn(read_slowly(server.address, 150 * 1024));
    readers.spawn(read_slowly(server.address, 15 * 1024));
    let several_deadlines = async {
        while server.subscriptions() < 2 {
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_secs(6)).await;
    };
    publishing(&server.hub, several_deadlines).await;
    assert_eq!(server.lost.try_recv(), Ok(Some(Lost::Stalled)));
    assert!(server.lost.try_recv().is_err(), "only one was too slow");
    assert_eq!((server.connections.open(), readers.len()), (1, 2));
}

#[tokio::test]
async fn a_connection_with_nothing_to_write_outlives_many_deadlines() {
    for (via, http) in ALL {
        let deadline = Duration::from_millis(50);
        let server = Watched::start(via, Connections::new().write_deadline(deadline), quiet()).await;
        let (_client, response) = Client::get(http, server.address, "/", &[]).await;
        // Nor does one that has not asked for anything.
        let silent = TcpStream::connect(server.address).await.unwrap();
        let mut reader = EventReader::new(response.into_body());
        sleep(deadline * 10).await;
        server.hub.publish(TOPIC, Event::new().data("still there")).await.unwrap();
        assert_eq!(timeout(LONG, reader.next()).await.unwrap().unwrap().data, "still there");
        assert_eq!(server.connections.open(), 2, "{via:?} {http:?}");
        drop(silent);
    }
}

#[tokio::test]
async fn cut_ends_every_connection() {
    for (via, http) in ALL {
        let connections = Connections::new().write_deadline(None);
        let mut server = Watched::start(via, connections, quiet()).await;
        let mut tasks = JoinSet::new();
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        let (_client, response) = Client::get(http, server.address, "/", &[]).await;
        let mut reads = response.into_body();
        tasks.spawn(async move { while reads.frame().await.is_some_and(|frame| frame.is_ok()) {} });
        let held_by_tcp = Stalled::open(http, server.address, "/", By::Tcp).await;
        let held_by_http = Stalled::open(http, server.address, "/", By::Http).await;
        publish_much(&server.hub).await;
        let (_client, idle) = Client::get(http, server.address, "/", &[]).await;
        assert_eq!((server.connections.open(), server.subscriptions()), (5, 4));

        server.connections.cut();
        all_gone(&server).await;
        for _ in 0..4 {
            assert_eq!(server.lost.recv().await, Some(Some(Lost::Cut)), "{via:?} {http:?}");
        }
        // How it ends depends on whether the system has something unread.
        assert!(matches!(timeout(LONG, silent.read(&mut [0])).await.unwrap(), Ok(0) | Err(_)));

        // Who comes later is not served.
        let mut late = TcpStream::connect(server.address).await.unwrap();
        let _ = late.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert!(matches!(timeout(LONG, late.read(&mut [0])).await.unwrap(), Ok(0) | Err(_)));
        drop((held_by_tcp, held_by_http, idle));
    }
}

#[tokio::test]
async fn only_cut_reaches_a_stream_that_http_2_holds() {
    for via in [Via::Axum, Via::Hyper] {
        let connections = Connections::new().write_deadline(DEADLINE);
        let mut server = Watched::start(via, connections, quiet()).await;
        let stalled = Stalled::open(Http::Two, server.address, "/", By::Http).await;
        publish_much(&server.hub).await;
        sleep(DEADLINE * 3).await;
        assert!(server.lost.try_recv().is_err(), "its client reads the connection");
        assert_eq!((server.connections.open(), server.subscriptions()), (1, 1));
        server.connections.cut();
        all_gone(&server).await;
        assert_eq!(server.lost.recv().await, Some(Some(Lost::Cut)), "{via:?}");
        drop(stalled);
    }
}

/// hyper waits for its responses without end: that is what `cut` is for.
#[tokio::test]
async fn a_graceful_shutdown_ends_with_cut() {
    for http in [Http::One, Http::Two] {
        let (hub, connections) = (quiet(), Connections::new());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().route_service("/", hub.handler_for(TOPIC));
        let (shut_down, signal) = tokio::sync::oneshot::channel::<()>();
        let listener = connections.listen(listener).unwrap();
        let server = axum::serve(listener, MakeWithPeer::new(app)).with_graceful_shutdown(async { drop(signal.await) });
        let mut server = tokio::spawn(server.into_future());
        let stalled = Stalled::open(http, address, "/", By::Tcp).await;
        publish_much(&hub).await;
        hub.close();
        drop(shut_down);
        assert!(timeout(DEADLINE, &mut server).await.is_err(), "it waits");
        connections.cut();
        timeout(LONG, server).await.expect("it should end").unwrap().unwrap();
        drop(stalled);
    }
}

#[tokio::test]
async fn a_client_that_leaves_was_not_lost() {
    for (via, http) in ALL {
        let mut server = Watched::start(via, Connections::new(), quiet()).await;
        let (client, response) = Client::get(http, server.address, "/", &[]).await;
        drop((client, response));
        assert_eq!(timeout(LONG, server.lost.recv()).await.unwrap(), Some(None), "{via:?} {http:?}");
        all_gone(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_under_load() {
    const EVENTS: usize = 3000;
    for (via, http) in ALL {
        let server = Watched::start(via, Connections::new(), quiet()).await;
        let mut readers = JoinSet::new();
        for _ in 0..10 {
            let (client, response) = Client::get(http, server.address, "/", &[]).await;
            readers.spawn(async move {
                let _client = client;
                let mut reader = EventReader::new(response.into_body());
                for n in 0..EVENTS {
                    let event = reader.next().await.unwrap();
                    assert_eq!(event.data.split(' ').next(), Some(&*n.to_string()));
                }
            });
        }
        let filler = "x".repeat(500);
        for n in 0..EVENTS {
            server.hub.publish(TOPIC, Event::new().data(format!("{n} {filler}"))).await.unwrap();
            if n % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
        timeout(LONG, readers.join_all()).await.expect("everyone should get everything");
    }
}

#[tokio::test]
async fn axum_still_says_who_is_connected() {
    async fn who(
        ConnectInfo(address): ConnectInfo<SocketAddr>,
        axum::Extension(peer): axum::Extension<Peer>,
    ) -> String {
        format!("{address} {:?}", peer.lost())
    }
    let connections = Connections::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/", get(who)).into_make_service_with_connect_info::<SocketAddr>();
    let listener = connections.listen(listener).unwrap();
    assert_eq!(listener.local_addr().unwrap(), address);
    let mut server = JoinSet::new();
    // And it can be shut down as any other.
    server.spawn(async move {
        axum::serve(listener, MakeWithPeer::new(app)).with_graceful_shutdown(pending()).await.unwrap();
    });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with(&format!("{} None", stream.local_addr().unwrap())), "{response}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_sockets_have_their_options() {
    async fn accepted(connections: &Connections) -> [tidings::net::Connection<TcpStream>; 2] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let by_hyper = connections.accept(accepted.unwrap().0).unwrap();
        let mut listener = connections.listen(listener).unwrap();
        let (_client, (by_axum, _)) = tokio::join!(TcpStream::connect(address), listener.accept());
        [by_hyper, by_axum]
    }

    for connection in accepted(&Connections::new()).await {
        let socket = SockRef::from(connection.get_ref());
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.send_buffer_size().unwrap(), 2 * 64 * 1024);
        // Shorter by how much later the kernel begins to count.
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(29_250)));
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(20));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 2);
    }

    let off = Connections::new().dead_peer_timeout(None).send_buffer(None).nodelay(false);
    for connection in accepted(&off).await {
        let socket = SockRef::from(connection.get_ref());
        assert!(!socket.tcp_nodelay().unwrap());
        assert!(socket.send_buffer_size().unwrap() > 1024 * 1024, "over loopback the system takes much");
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        assert!(!socket.keepalive().unwrap());
    }

    // No time is too short or too long.
    for timeout in [Duration::ZERO, Duration::MAX] {
        let connections = Connections::new().dead_peer_timeout(timeout).write_deadline(timeout);
        let [_, connection] = accepted(&connections).await;
        let socket = SockRef::from(connection.get_ref());
        assert!(socket.tcp_user_timeout().unwrap().is_some_and(|set| set != Duration::ZERO));
        assert!(socket.keepalive().unwrap());
    }
}
