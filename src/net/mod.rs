//! The connection adapter: what only the socket can do for a stream that never ends.
//!
//! hyper does not poll a response whose client has stopped reading. So nothing in the response runs for that client:
//! no heartbeat, no lag budget, no end, and a graceful shutdown waits for it without end. And a client that vanished
//! without a word is not noticed by small writes, which fit into the kernel's buffer. [`Connections`] looks after both
//! below HTTP, for HTTP/1.1 and HTTP/2 alike, with or without TLS above it:
//!
//! - a client that takes nothing for as long as the [write deadline](Connections::write_deadline) loses its connection;
//! - so does one that no longer acknowledges anything, after the [dead-peer timeout](Connections::dead_peer_timeout);
//! - [`Connections::cut`] ends every connection that is left, whatever its client does.
//!
//! In each case the connection fails with an I/O error, and the server drops its responses. Why it did, the [`Peer`] in
//! the request's extensions says.
//!
//! # On hyper
//!
//! ```no_run
//! use hyper_util::rt::{TokioExecutor, TokioIo};
//! use hyper_util::server::conn::auto;
//! use tidings::{Hub, Topic, net::Connections};
//!
//! # async fn example(hub: Hub, listener: tokio::net::TcpListener) -> std::io::Result<()> {
//! let connections = Connections::new();
//! let service = hub.handler_for(Topic::from_static("news"));
//! loop {
//!     let (stream, _) = listener.accept().await?;
//!     let connection = connections.accept(stream)?;
//!     let service = connection.with_peer(service.clone());
//!     // With TLS, the acceptor takes `connection` here.
//!     tokio::spawn(async move {
//!         let http = auto::Builder::new(TokioExecutor::new());
//!         let _ = http.serve_connection(TokioIo::new(connection), service).await;
//!     });
//! }
//! # }
//! ```
//!
//! # On axum
//!
//! With feature `axum-serve`:
//!
#![cfg_attr(feature = "axum-serve", doc = "```no_run")]
#![cfg_attr(not(feature = "axum-serve"), doc = "```ignore")]
//! use std::net::SocketAddr;
//! use tidings::net::{Connections, MakeWithPeer};
//!
//! # async fn example(app: axum::Router, listener: tokio::net::TcpListener) -> std::io::Result<()> {
//! let connections = Connections::new();
//! let app = app.into_make_service_with_connect_info::<SocketAddr>();
//! axum::serve(connections.listen(listener)?, MakeWithPeer::new(app)).await
//! # }
//! ```
//!
//! # Shutting down
//!
//! [`Hub::close`](crate::Hub::close) ends the streams of those who read. Give them a moment, and cut the rest:
//!
//! ```no_run
//! # async fn example(hub: tidings::Hub, connections: tidings::net::Connections) {
//! use std::time::Duration;
//!
//! hub.close();
//! let _ = tokio::time::timeout(Duration::from_secs(10), connections.closed()).await;
//! connections.cut();
//! # }
//! ```
//!
//! # The slowest reader that survives
//!
//! A write that has to wait goes on when the kernel reports room, and it does so in steps: a third of the send buffer
//! must be free, and the client's kernel opens its window in steps of its own. So a client survives that reads, in each
//! write deadline, more than the larger step, and one that reads less may be cut:
//!
//! ```text
//! bytes per second  >  max(2/3 of send_buffer, the client's step) / write_deadline
//! ```

mod connection;
mod connections;
#[cfg(feature = "axum-serve")]
mod listener;
mod socket;
mod with_peer;

#[cfg(feature = "axum-serve")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum-serve")))]
pub use self::listener::{Listener, MakeWithPeer, MakeWithPeerFuture};
pub use self::{connection::Connection, connections::Connections, with_peer::WithPeer};
#[cfg(doc)]
use crate::Peer;
