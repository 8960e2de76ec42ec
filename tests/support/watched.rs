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
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};
use tidings::{
    Handler, HandlerBody, Hub, Lost, Peer, SameTopics, Topic,
    net::{Connections, MakeWithPeer},
};
use tokio::{
    net::{TcpListener, TcpSocket},
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
        let debug = format!("{:?}", self.hub);
        let count = debug.split("subscriptions: ").nth(1).unwrap();
        count.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
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

/// A client that has got the head of its response, and reads nothing any more.
pub(crate) struct Stalled {
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    pub(crate) body: Incoming,
}

impl Stalled {
    /// `receive_buffer` is what its kernel takes for it, `window` how much of a response it takes by HTTP/2.
    pub(crate) async fn open(http: Http, address: SocketAddr, receive_buffer: Option<u32>, window: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let io = TokioIo::new(socket.connect(address).await.unwrap());
        let uri = format!("http://{address}/");
        let request = Request::get(uri).header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
        let (response, connection) = match http {
            Http::One => {
                let (mut sender, mut connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                let response = tokio::select! {
                    response = sender.send_request(request) => response.unwrap(),
                    end = &mut connection => panic!("no response: {end:?}"),
                };
                (response, boxed(connection, sender))
            }
            Http::Two => {
                let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
                client.initial_stream_window_size(window).initial_connection_window_size(16 * 1024 * 1024);
                let (mut sender, mut connection) = client.handshake(io).await.unwrap();
                let response = tokio::select! {
                    response = sender.send_request(request) => response.unwrap(),
                    end = &mut connection => panic!("no response: {end:?}"),
                };
                (response, boxed(connection, sender))
            }
        };
        assert_eq!(response.status(), 200);
        Self { connection, body: response.into_body() }
    }

    /// Looks after the connection, and lets the body be read, or not.
    pub(crate) fn wake_up(self, tasks: &mut JoinSet<()>) -> Incoming {
        tasks.spawn(self.connection);
        self.body
    }
}

fn boxed<E>(
    connection: impl Future<Output = Result<(), E>> + Send + 'static,
    sender: impl Send + 'static,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _sender = sender;
        let _ = connection.await;
    })
}
