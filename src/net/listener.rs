//! What `axum::serve` needs to see: a listener whose connections are looked after, and the peer in every request.

use super::{Connection, Connections, WithPeer};
use crate::Peer;
use axum::serve::{IncomingStream, ListenerExt as _, TapIo};
use pin_project_lite::pin_project;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;

impl Connections {
    /// A listener for `axum::serve`, whose connections are taken in here.
    ///
    /// It is within axum's own [`TapIo`], because only for that, and for its own TCP listener, does axum offer
    /// `ConnectInfo<SocketAddr>`.
    ///
    /// # Errors
    ///
    /// When the system refuses a socket option, which is tried on the listener first. What is then refused on a single
    /// connection is left out: the system knows the option, so its client is already gone.
    #[cfg_attr(docsrs, doc(cfg(feature = "axum-serve")))]
    #[expect(clippy::type_complexity, reason = "a name for it would hide that it is axum's")]
    pub fn listen(&self, listener: TcpListener) -> io::Result<TapIo<Listener, fn(&mut Connection<TcpStream>)>> {
        self.socket().set(&listener)?;
        let listener = Listener { listener, connections: self.clone() };
        Ok(listener.tap_io(|_| ()))
    }
}

/// A TCP listener for `axum::serve`; made by [`Connections::listen`].
#[derive(Debug)]
#[must_use]
pub struct Listener {
    listener: TcpListener,
    connections: Connections,
}

impl axum::serve::Listener for Listener {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<TcpStream>, SocketAddr) {
        // By axum's way with errors: one second's pause if there are too many open files, for example.
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        let _ = self.connections.socket().set(&stream);
        (self.connections.wrap(stream), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Wraps what `axum::serve` is given, a router or what it was made into, so that every request has the connection's
/// [`Peer`] among its extensions.
///
/// It takes every listener whose connections are `AsRef<Peer>`, as [`Connection`] is.
#[derive(Clone, Debug)]
#[must_use]
pub struct MakeWithPeer<M> {
    make: M,
}

impl<M> MakeWithPeer<M> {
    /// Wraps what makes a service for each connection.
    pub fn new(make: M) -> Self {
        Self { make }
    }
}

impl<'a, L, M> Service<IncomingStream<'a, L>> for MakeWithPeer<M>
where
    L: axum::serve::Listener<Io: AsRef<Peer>>,
    M: Service<IncomingStream<'a, L>>,
{
    type Response = WithPeer<M::Response>;
    type Error = M::Error;
    type Future = MakeWithPeerFuture<M::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), M::Error>> {
        self.make.poll_ready(cx)
    }

    fn call(&mut self, stream: IncomingStream<'a, L>) -> Self::Future {
        let peer = stream.io().as_ref().clone();
        MakeWithPeerFuture { service: self.make.call(stream), peer }
    }
}

pin_project! {
    /// The future of [`MakeWithPeer`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct MakeWithPeerFuture<F> {
        #[pin]
        service: F,
        peer: Peer,
    }
}

impl<F: Future<Output = Result<S, E>>, S, E> Future for MakeWithPeerFuture<F> {
    type Output = Result<WithPeer<S>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let service = ready!(this.service.poll(cx))?;
        Poll::Ready(Ok(WithPeer::new(service, this.peer.clone())))
    }
}
