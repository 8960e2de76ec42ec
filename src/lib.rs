//! Server-Sent Events for axum and hyper that survive a reconnect.
//!
//! ```no_run
//! use axum::Router;
//! use tidings::{Event, Hub, Topic};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let hub = Hub::new();
//!     let news = Topic::new("news")?;
//!
//!     let app = Router::new().route_service("/events", hub.handler_for(&news));
//!     tokio::spawn(async move {
//!         let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!         axum::serve(listener, app).await
//!     });
//!
//!     for n in 0.. {
//!         hub.publish(&news, Event::new().data(format!("tick {n}"))).await?;
//!         tokio::time::sleep(std::time::Duration::from_secs(1)).await;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A browser's `new EventSource("/events")` receives every tick once and in order, also if its connection is cut in
//! between: it reconnects by itself and sends the id of the last event it has, and the hub goes on from there.
//!
//! # One idea
//!
//! A [`Hub`] has one ordered log, and a [`Subscription`] is a position in it. Resuming after a reconnect, catching up
//! after being slow, and following live are the same read:
//!
//! - The *window* is the recent end of the log in memory: events encoded once, shared by all.
//! - Behind it is a [`ReplayStore`](replay::ReplayStore), the longer log: the in-memory [`Ring`](replay::Ring) unless the
//!   hub is given another, such as one on disk or in Redis.
//! - A subscription reads from the window where its position is in it, and page by page from the store where it is not.
//!   Only if the store no longer has what it needs is there a [`Gap`], and a gap is always reported.
//!
//! So a slow subscriber costs a position, never a queue, and delays neither the publisher nor anybody else.
//!
//! # What happens when
//!
//! | what happened | what the client sees | what the application is told |
//! | --- | --- | --- |
//! | a fresh client connects | `retry:`, an id to resume from, then what comes from now on, or what [`Start`] says | [`Resume::Fresh`] |
//! | it comes back with a good id | the same id, then exactly what followed | [`Resume::Resumed`] |
//! | its id is too old | header `tidings-gap: evicted` and an event of that name; then as [`GapPolicy`] says: what is held, a snapshot, or the end | [`Resume::Gap`], [`Message::Gap`] |
//! | its id is of another log, or ahead of this one | the same with `foreign`, then as a fresh client | the same |
//! | it sent something else | the same with `malformed`, then as a fresh client | the same |
//! | it is slow, but the store has what it missed | everything, at its own pace | nothing |
//! | it is too slow for the store | a gap event in the stream, then as [`GapPolicy`] says | [`Message::Gap`] |
//! | it is slower than its [`LagBudget`] | the end; its id is good | [`EndReason::Lagged`] |
//! | its events are left out by a filter | heartbeats that move its id | nothing |
//! | an event that it has not read is replaced by [a newer one of its key](Hub::publish_latest) | the newer one only | nothing |
//! | it reads [no more often than](Subscription::min_interval) every second | the newest event of each key once a second, all others together | nothing |
//! | [an event is not to be kept](Hub::publish_ephemeral) | the event, without an id, if it is there; nothing if it comes later or is far behind | how many are there |
//! | nothing is published for 15 seconds | `:` and a line feed, or an id if the position has moved | nothing |
//! | all its topics are finished | the rest, and the end; 204 when it comes back | [`EndReason::Finished`] |
//! | it comes to a topic that is finished | what is held, and the end | [`EndReason::Finished`] |
//! | its topic is forgotten | nothing if it had everything, else a gap | [`Message::Gap`] |
//! | it asks for a topic that does not exist, where [they are created](HubBuilder::explicit_topics) | 404 | [`SubscriptionError::is_unknown_topic`] |
//! | it asks the application to stop what it reads | what the producer then says | [`Producer::stopped`] |
//! | nobody reads a topic | nothing | [`Producer::abandoned`] |
//! | a producer is gone without having finished its topic | its [last will](Producer::last_will) and the end; without one, heartbeats | nothing |
//! | it lives as long as [it may](HubBuilder::max_lifetime), or [its permission](Subscription::expires_in) | the end; its id is good, and it is authorised anew | [`EndReason::Expired`] |
//! | a newer one [takes its place](Limit::newest_wins) | the same | [`EndReason::Replaced`] |
//! | the application [ends it](Hub::end_labelled), because a user logged out | the same | [`Subscriber::left`] |
//! | there are as many [as there may be](HubBuilder::max_subscriptions) | 200, a `retry:` and the end, or 503: it comes back | [`SubscriptionError::is_over_limit`], [`Stats::refused`] |
//! | the hub is [drained](Hub::drain) | everything up to its turn, a goodbye, a `retry:` of its own, the end | [`Drained`], [`EndReason::Drained`] |
//! | it comes while that is so | 200, that `retry:` and the end, or 503 | [`SubscriptionError::is_draining`] |
//! | it has stopped reading | its connection is cut, if the server is told to (`net`) | [`LeaveReason::Lost`] |
//! | it vanished without a word | nothing | the same, after the dead-peer timeout (`net`) |
//! | it does not say that it is there, where it is asked to | the end | [`EndReason::Silent`] |
//! | it comes or goes | nothing | [`Presence::changes`], [`Subscriber::left`], [`Hub::stats`] |
//! | the hub is closed | the end; its id is good | [`EndReason::Closed`], [`PublishError::is_closed`] |
//! | the store cannot be read at connect, or does not answer in time | 200, a `retry:` and the end, or 503: it comes back | the error of [`Subscription::opened`] |
//! | the store cannot be read later, or does not answer in time | a `retry:`, then the connection fails; its id is good | [`SubscriptionError::is_read`] |
//! | a snapshot fails, or takes too long | the same | [`SubscriptionError::is_snapshot`] |
//! | the store refuses an event | nothing | [`PublishError`] |
//! | the store does not say whether it took an event, or not in time | the event, once, if it was taken, as soon as the store says so | [`PublishError::is_unknown`]; until then, others are refused |
//! | an event is [published again](replay::Record::with_idempotency_key) under its idempotency key | nothing | the place of the first |
//! | a publisher is gone before the store answers | the event, if it was taken | nothing |
//! | this node is cut off from the [log that it shares](replay::ReplayStore::feed) | heartbeats; what it missed, once the node hears again | [`Stats::feed`] |
//! | it comes back to another node of that log | as to the same one | the same |
//! | that log is lost, rewound, or replaced by a failover | a gap, if it may have missed something, then what is new | [`Message::Gap`], [`Stats::feed`] |
//! | the store does not forget a topic, or not in time | what the store still has | the error of [`Hub::forget`] |
//!
//! Over a log that nodes share, the window shows what the store's [feed](replay::Feed) brings, from all nodes in one order.
//! Ephemeral events, [`Hub::end_topic`], [`Hub::end_labelled`], [`Hub::stop`] and the heartbeats of clients reach all nodes.
//! Presence, limits, [`Hub::end_where`], created topics, drains and [`Stats`] are each node's own.
//!
//! Ends can be announced by an event with their reason ([`HubBuilder::announce_ends`]). The names that clients see are
//! [`Names`]. How often a store is asked again stands in [`ReplayStore`](replay::ReplayStore).
//!
//! # What is promised
//!
//! A client that comes back with its last id gets every event of its topics once and in order, or is told of a gap before
//! the first event after it. That covers the topics that were subscribed to when the id was given, and what passes the
//! filter. Of events that are [the newest of their key](Hub::publish_latest) it may miss those that were replaced, because
//! it gets the newer one; [ephemeral](Hub::publish_ephemeral) ones are for those who are there.
//!
//! # Blocks
//!
//! Each is usable alone, on axum, on hyper, or on anything that takes an [`http::Response`]:
//!
//! - [`Event`], [`EventId`], [`EventType`]: one event, valid by construction.
//! - [`KeepAlive`], [`KeepAliveStream`]: heartbeats between the items of any stream.
//! - [`Sse`]: any stream of events as a response, for streams that are not shared and not resumed.
//! - [`LastEventId`]: where the client left off.
//! - [`Hub`], [`Topic`], [`Subscription`]: publish, fan out, resume. A subscription is a `Stream` and a response.
//! - [`Producer`]: the side of a topic that wants to know whether anybody reads.
//! - [`Handler`]: a hub as a service, from [`Hub::handler`], where the application's own function authorises.
//! - [`Presence`], [`Subscriber`], [`Limit`]: who is there, how they left, and how many there may be.
//! - [`Drain`]: how streams are ended before a server stops. [`Stats`]: what a hub has done, in numbers.
//! - `net`: what only the connection can do, for clients that have stopped reading or vanished.
//! - [`replay`]: the log, and the trait for stores of your own.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `axum` | yes | `IntoResponse` for [`Sse`] and [`Subscription`], `FromRequestParts` for [`LastEventId`] |
//! | `json` | yes | `Event::json` |
//! | `net` | no | `net`: write deadline, dead-peer timeout and kill switch, for a server on hyper |
//! | `axum-serve` | no | the same as a listener for `axum::serve` |
//! | `durable` | no | `replay::Durable`: the log on disk, so that ids outlive the process |
//! | `redis` | no | `replay::RedisStore`: a log in Redis or Valkey that several nodes share |
//! | `client-heartbeats` | no | [`HubBuilder`]`::client_heartbeats` and `HeartbeatHandler`: clients say that they are there |
//! | `metrics` | no | [`Stats`]`::record`: a hub's numbers by the `metrics` facade, for Prometheus and others |
//! | `tracing` | no | a span for each subscription, and what goes wrong with a store: see [`Subscription`] |
//! | `conformance` | no | `replay::conformance`, the suite for stores of your own |
//! | `test-util` | no | `test_util`, for the tests of your application |
//!
//! # What it costs
//!
//! A delivery to a connection costs what hyper and the kernel take for it, and a few hundredths more; an idle connection
//! a good kilobyte more than hyper's own. The figures, how they were taken, where we are not ahead, and how to serve with
//! less: [`performance`].
//!
//! # In production
//!
//! What proxies and tower's layers do to event streams, CORS, and an nginx configuration that is tested: [`deploying`].
//!
//! # What it is not for
//!
//! Messages from client to server (use a web socket), or work that is to be done once by one of several workers (use a
//! queue).

#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc(test(attr(deny(warnings), allow(dead_code, unused_variables))))]

#[cfg(feature = "axum")]
mod axum;
mod encode;
mod event;
mod field;
mod handler;
#[cfg(feature = "client-heartbeats")]
mod heartbeats;
mod hub;
mod keep_alive;
mod last_event_id;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "net")]
#[cfg_attr(docsrs, doc(cfg(feature = "net")))]
pub mod net;
mod peer;
pub mod replay;
mod response;
mod sync;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;
mod topic;

// Its code is tested as well, for which it needs the feature.
#[cfg(all(doc, any(not(doctest), feature = "axum")))]
#[doc = include_str!("deploying.md")]
pub mod deploying {}
#[cfg(doc)]
#[doc = include_str!("../benches/README.md")]
pub mod performance {}

#[cfg(feature = "json")]
pub use crate::event::JsonError;
#[cfg(feature = "client-heartbeats")]
pub use crate::heartbeats::HeartbeatHandler;
pub use crate::{
    event::Event,
    field::{EventId, EventType, FieldError},
    handler::{ChooseTopics, Handler, HandlerBody, IntoSubscription, Refusal, SameTopics},
    hub::{
        CursorMoves, Drain, Drained, EndReason, EndWord, FeedStats, Gap, GapPolicy, GapReason, Gaps, Hub, HubBuilder,
        Lag, LagBudget, LeaveReason, Left, Limit, Message, Names, Opened, Presence, PresenceChange, PresenceChanges,
        Producer, PublishError, Refusals, Resume, Snapshots, Start, Stats, StoreErrors, Subscriber, Subscription,
        SubscriptionBody, SubscriptionError, Volume,
    },
    keep_alive::{Beat, KeepAlive, KeepAliveStream},
    last_event_id::{LAST_EVENT_ID, LAST_EVENT_ID_PARAMETER, LastEventId},
    peer::{Lost, Peer},
    response::{Sse, SseBody, SseItem},
    topic::{Topic, TopicError, Topics, TopicsError},
};

/// The README's code compiles.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;
