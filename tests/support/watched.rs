//! A server through the connection adapter that tells how each of its responses was lost, and clients that do not read.

use super::{Http, Via};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::{
    body::{Body, Frame, Incoming},
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use pin_project_lite::pin_project;
use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use tidings::{
    Handler, HandlerBody, Hub, Lost, Peer, SameTopics, Topic,
    net::{Connections, MakeWithPeer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

/// What everyone gets who asks for anything.
pub(crate) const TOPIC: Topic = Topic::from_static("t");

pub(crate) struct Watched {
    pub(crate) address: SocketAddr,
    pub(crate) hub: Hub,
    pub(crate) connections: Connections,
    /// What was known of the connection when a response was dropped.
    pub(crate) lost: UnboundedReceiver<Option<Lost>>,
    _task: JoinSet<()>,
}

impl Watched {
    pub(crate) async fn start(via: Via, connections: Connections, hub: Hub) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::on(listener, via, connections, hub)
    }

    pub(crate) fn on(listener: TcpListener, via: Via, connections: Connections, hub: Hub) -> Self {
        let address = listener.local_addr().unwrap();
        let (tell, lost) = unbounded_channel();
        let service = Service { handler: hub.handler_for(TOPIC), tell };
        let mut task = JoinSet::new();
        match via {
            Via::Axum => task.spawn(serve_with_axum(listener, connections.clone(), service)),
            Via::Hyper => task.spawn(serve_with_hyper(listener, connections.clone(), service)),
        };
        Self { address, hub, connections, lost, _task: task }
    }

    /// How many subscriptions there are.
    pub(crate) fn subscriptions(&self) -> usize {
        self.hub.stats().subscriptions
    }
}

async fn serve_with_axum(listener: TcpListener, connections: Connections, service: Service) {
    let app = axum::Router::new().fallback(async move |request: axum::extract::Request| service.respond(request).await);
    axum::serve(connections.listen(listener).unwrap(), MakeWithPeer::new(app)).await.unwrap();
}

async fn serve_with_hyper(listener: TcpListener, connections: Connections, service: Service) {
    let mut tasks = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let connection = connections.accept(stream).unwrap();
        let service = service.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.respond(request).await) }
        });
        let service = connection.with_peer(service);
        tasks.spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(connection), service).await;
        });
        while tasks.try_join_next().is_some() {}
    }
}

#[derive(Clone)]
struct Service {
    handler: Handler<SameTopics>,
    tell: UnboundedSender<Option<Lost>>,
}

impl Service {
    async fn respond<B>(&self, request: Request<B>) -> Response<WatchedBody> {
        let peer = request.extensions().get::<Peer>().expect("the adapter should put it there").clone();
        let Ok(response) = self.handler.call(request).await;
        let watch = Watch { peer, tell: self.tell.clone() };
        response.map(|body| WatchedBody { body, watch })
    }
}

pin_project! {
    pub(crate) struct WatchedBody {
        #[pin]
        body: HandlerBody,
        watch: Watch,
    }
}

struct Watch {
    peer: Peer,
    tell: UnboundedSender<Option<Lost>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.tell.send(self.peer.lost());
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = <HandlerBody as Body>::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.project().body.poll_frame(cx)
    }
}

/// What holds the response of a client that does not read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// It no longer reads from its socket.
    Tcp,
    /// It reads its connection, but not the response. Over HTTP/1.1 that is the same.
    Http,
}

/// A client that has got the head of its response, and takes no more of it.
pub(crate) struct Stalled {
    _body: Incoming,
    _task: JoinSet<()>,
}

impl Stalled {
    pub(crate) async fn open(http: Http, address: SocketAddr, path: &str, by: By) -> Self {
        let valve = Arc::default();
        let io = TcpStream::connect(address).await.unwrap();
        let io = TokioIo::new(Valve { io, shut: Arc::clone(&valve) });
        let request = Request::get(format!("http://{address}{path}")).header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let mut task = JoinSet::new();
        let response = match http {
            Http::One => {
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                task.spawn(async move { drop(connection.await) });
                sender.send_request(request).await.unwrap()
            }
            Http::Two => {
                let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
                let window = match by {
                    By::Tcp => 64 * 1024 * 1024,
                    By::Http => 65_535,
                };
                client.initial_stream_window_size(window).initial_connection_window_size(64 * 1024 * 1024);
                let (mut sender, connection) = client.handshake(io).await.unwrap();
                task.spawn(async move { drop(connection.await) });
                sender.send_request(request).await.unwrap()
            }
        };
        assert_eq!(response.status(), 200);
        valve.store(matches!(by, By::Tcp), Ordering::Relaxed);
        Self { _body: response.into_body(), _task: task }
    }
}

pin_project! {
    /// hyper has a task of its own for an HTTP/2 client, so not polling it does not stop it.
    struct Valve {
        #[pin]
        io: TcpStream,
        shut: Arc<AtomicBool>,
    }
}

impl AsyncRead for Valve {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        // It is not opened again, so there is nothing to be woken for.
        if this.shut.load(Ordering::Relaxed) { Poll::Pending } else { this.io.poll_read(cx, buffer) }
    }
}

impl AsyncWrite for Valve {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}
