//! Real servers on free ports, on axum and on bare hyper or in processes of their own, a client for them, and a network
//! between the two.
#![allow(dead_code, reason = "each test target uses its own part of this")]

pub(crate) mod example;
pub(crate) mod network;
pub(crate) mod nodes;
pub(crate) mod redis;
pub(crate) mod watched;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};
use tidings::{ChooseTopics, Handler};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// Where a program is that only some of the tests need.
pub(crate) fn installed(program: &str, packages: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where only root's path leads.
    env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{program} is not installed: apt-get install {packages}"))
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Via {
    Axum,
    Hyper,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Http {
    One,
    Two,
}

pub(crate) const ALL: [(Via, Http); 4] =
    [(Via::Axum, Http::One), (Via::Axum, Http::Two), (Via::Hyper, Http::One), (Via::Hyper, Http::Two)];

/// A server that ends with its value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves a handler at every path.
    pub(crate) async fn start<F>(via: Via, handler: Handler<F>) -> Self
    where
        F: ChooseTopics<Answer: Send + 'static> + Send + Sync + 'static,
    {
        match via {
            Via::Axum => Self::router(axum::Router::new().fallback_service(handler)).await,
            Via::Hyper => {
                let (listener, address) = listen().await;
                Self { address, task: tokio::spawn(serve_with_hyper(listener, handler)) }
            }
        }
    }

    /// Serves any axum router.
    pub(crate) async fn router(app: axum::Router) -> Self {
        let (listener, address) = listen().await;
        Self { address, task: tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }) }
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn serve_with_hyper<F>(listener: TcpListener, handler: Handler<F>)
where
    F: ChooseTopics<Answer: Send + 'static> + Send + Sync + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let handler = handler.clone();
        connections.spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // A client that goes away is not the server's failure.
            let _ = server.serve_connection(TokioIo::new(stream), handler).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One connection with one request; dropping it cuts the connection.
pub(crate) struct Client {
    connection: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    pub(crate) async fn get(
        http: Http,
        address: SocketAddr,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> (Self, Response<Incoming>) {
        Self::try_get(http, address, uri, headers).await.expect("a response")
    }

    /// `None` if the connection is cut before the response is there.
    pub(crate) async fn try_get(
        http: Http,
        address: SocketAddr,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> Option<(Self, Response<Incoming>)> {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::send(http, address, request.body(Full::default()).unwrap()).await.ok()
    }

    pub(crate) async fn post(address: SocketAddr, uri: &str, body: &str) -> (Self, Response<Incoming>) {
        let request = Request::post(uri).body(Full::from(body.to_owned())).unwrap();
        Self::send(Http::One, address, request).await.unwrap()
    }

    async fn send(
        http: Http,
        address: SocketAddr,
        mut request: Request<Full<Bytes>>,
    ) -> hyper::Result<(Self, Response<Incoming>)> {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        *request.uri_mut() = format!("http://{address}{}", request.uri()).parse().unwrap();
        match http {
            Http::One => {
                request.headers_mut().insert("host", address.to_string().parse().unwrap());
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                let client = Self { connection: tokio::spawn(async move { drop(connection.await) }) };
                Ok((client, sender.send_request(request).await?))
            }
            // It has the host in the URI, and nginx refuses a request that has it twice.
            Http::Two => {
                let executor = TokioExecutor::new();
                let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await?;
                let client = Self { connection: tokio::spawn(async move { drop(connection.await) }) };
                Ok((client, sender.send_request(request).await?))
            }
        }
    }
}

/// Waits for a process that was asked to end, and ends one that does not.
pub(crate) fn end(process: &mut std::process::Child) {
    for _ in 0..100 {
        if let Ok(Some(_)) = process.try_wait() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let _ = process.kill();
    let _ = process.wait();
}
