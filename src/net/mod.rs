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
//! Behind a proxy, the far end of a connection is the proxy: what stalls and vanishes there is for its own timeouts, such
//! as nginx's `send_timeout`, or for [client heartbeats](crate::HubBuilder#method.client_heartbeats).
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
//! let service = hub.handler(|_| async { Topic::from_static("news") });
//! loop {
//!     let (stream, _) = listener.accept().await?;
//!     let connection = match connections.accept(stream) {
//!         Ok(connection) => connection,
//!         // It is closed; the others go on.
//!         Err(error) => {
//!             eprintln!("accept: {error}");
//!             continue;
//!         }
//!     };
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
//! [`Connections::drain`] drains a hub, and then cuts the connections of those who do not read.
//!
//! # The slowest reader that survives
//!
//! The kernel lets a waiting write go on in steps: Linux when a third of what it allots to the send buffer is free, which
//! is two thirds of what was [set](Connections::send_buffer). And a client whose own receive buffer was full is sent
//! nothing until it has freed a good part of it. So, for a client for which there is always more to write:
//!
//! ```text
//! it is cut        if it reads less than   2/3 send_buffer                     in a write_deadline
//! it is kept       if it reads more than   2/3 send_buffer + receive buffer    in a write_deadline
//! ```
//!
//! In between it depends on how its kernel opens the window again. With the defaults, less than 1.5 KB a second is too
//! slow; 6 KB are enough with a receive buffer of 128 KiB, which is where Linux begins, and 210 KB with one of 6 MiB,
//! which it may have grown to while the client was fast. A client that is cut and comes back resumes where it was.
//!
//! # What it costs
//!
//! About 260 bytes for each connection, most of it a timer that is there before it is needed, and some 35 nanoseconds for
//! each delivery, half a percent of what the rest of it takes.

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
use crate::{Lost, Peer};
