//! [`WithPeer`]: the service of one connection.

use crate::Peer;
use http::Request;
use std::task::{Context, Poll};

/// A service that puts the connection's [`Peer`] among the extensions of every request; made by
/// [`Connection::with_peer`](super::Connection::with_peer).
#[derive(Clone, Debug)]
pub struct WithPeer<S> {
    service: S,
    peer: Peer,
}

impl<S> WithPeer<S> {
    pub(super) fn new(service: S, peer: Peer) -> Self {
        Self { service, peer }
    }

    fn mark<B>(&self, mut request: Request<B>) -> Request<B> {
        request.extensions_mut().insert(self.peer.clone());
        request
    }
}

impl<S, B> hyper::service::Service<Request<B>> for WithPeer<S>
where
    S: hyper::service::Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<B>) -> S::Future {
        self.service.call(self.mark(request))
    }
}

impl<S, B> tower_service::Service<Request<B>> for WithPeer<S>
where
    S: tower_service::Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let request = self.mark(request);
        self.service.call(request)
    }
}
