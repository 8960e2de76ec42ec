//! [`HeartbeatHandler`]: where clients say that they are there.
//!
//! It knows methods and bodies, and nothing of sessions: a token that is good and one that is not differ by one status.

use crate::{Hub, hub::Heard};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Empty, Limited};
use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// A token has 48 bytes.
const MOST_BYTES: usize = 64;

/// A service that takes the heartbeats of clients; made by [`Hub::heartbeat_handler`].
///
/// | request | response |
/// | --- | --- |
/// | POST, with a token as its body | 204; the stream answers with an event |
/// | POST, with anything else, or with the token of a session that has ended | 404 |
/// | POST, with a token that is not of this process, while the others cannot be asked | 503; the next one may work |
/// | another method | 405 with `allow` |
///
/// It is a tower `Service` for `Router::route_service`, and a hyper `Service`.
#[derive(Clone)]
#[must_use = "a handler does nothing unless it is mounted"]
pub struct HeartbeatHandler {
    hub: Hub,
}

impl Hub {
    /// A service that takes the heartbeats of clients, beside the one that streams events to them:
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidings::{Hub, Topic};
    ///
    /// # fn app() -> axum::Router {
    /// let hub = Hub::builder().client_heartbeats(Duration::from_secs(150)).build();
    /// axum::Router::new()
    ///     .route_service("/events", hub.handler_for(Topic::from_static("news")))
    ///     .route_service("/heartbeat", hub.heartbeat_handler())
    /// # }
    /// ```
    ///
    /// ```js
    /// const events = new EventSource("/events");
    /// let timer;
    /// events.addEventListener("tidings-session", (event) => {
    ///   const { token, interval } = JSON.parse(event.data);
    ///   clearInterval(timer);
    ///   timer = setInterval(async () => {
    ///     const response = await fetch("/heartbeat", { method: "POST", body: token });
    ///     if (response.status === 404) clearInterval(timer); // the next stream brings a token of its own
    ///   }, interval);
    /// });
    /// ```
    ///
    /// A token is known to the process that gave it: behind a load balancer, both requests have to go to the same one, unless
    /// the hubs [share a log](crate::replay::ReplayStore::feed). Then this one asks the others, and waits up to two seconds
    /// for an answer.
    #[cfg_attr(docsrs, doc(cfg(feature = "client-heartbeats")))]
    pub fn heartbeat_handler(&self) -> HeartbeatHandler {
        HeartbeatHandler { hub: self.clone() }
    }
}

impl HeartbeatHandler {
    fn respond<B>(&self, request: Request<B>) -> ResponseFuture
    where
        B: Body<Data: Send> + Send + 'static,
    {
        let hub = self.hub.clone();
        Box::pin(async move {
            let mut response = Response::new(Empty::new());
            if request.method() != Method::POST {
                *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                return Ok(response);
            }
            let body = Limited::new(Box::pin(request.into_body().map_err(|_| TooBad)), MOST_BYTES).collect().await;
            let heard = match body {
                Ok(body) => hub.heartbeat_anywhere(body.to_bytes().trim_ascii()).await,
                Err(_) => Heard::No,
            };
            *response.status_mut() = match heard {
                Heard::Yes => StatusCode::NO_CONTENT,
                Heard::No => StatusCode::NOT_FOUND,
                Heard::Unsure => StatusCode::SERVICE_UNAVAILABLE,
            };
            Ok(response)
        })
    }
}

/// Whatever is wrong with a body, it has no token.
#[derive(Debug)]
struct TooBad;

impl fmt::Display for TooBad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's body cannot be read")
    }
}

impl std::error::Error for TooBad {}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Empty<Bytes>>, Infallible>> + Send>>;

impl<B> tower_service::Service<Request<B>> for HeartbeatHandler
where
    B: Body<Data: Send> + Send + 'static,
{
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.respond(request)
    }
}

impl<B> hyper::service::Service<Request<B>> for HeartbeatHandler
where
    B: Body<Data: Send> + Send + 'static,
{
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<B>) -> ResponseFuture {
        self.respond(request)
    }
}

impl fmt::Debug for HeartbeatHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatHandler").field("hub", &self.hub).finish()
    }
}
