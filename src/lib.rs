//! Server-Sent Events for axum and hyper that survive a reconnect.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
mod axum;
mod encode;
mod event;
mod field;
mod handler;
mod hub;
mod keep_alive;
mod last_event_id;
pub mod replay;
mod response;
mod sync;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;
mod topic;

#[cfg(feature = "json")]
pub use crate::event::JsonError;
pub use crate::{
    event::Event,
    field::{EventId, EventType, FieldError},
    handler::{Handler, HandlerBody, IntoSubscription, Refusal},
    hub::{
        CursorMoves, Gap, GapReason, Hub, HubBuilder, Message, Names, PublishError, Resume, Start, Subscription,
        SubscriptionBody,
    },
    keep_alive::{Beat, KeepAlive, KeepAliveStream},
    last_event_id::{LAST_EVENT_ID, LAST_EVENT_ID_PARAMETER, LastEventId},
    response::{Sse, SseBody, SseItem},
    topic::{Topic, TopicError, Topics, TopicsError},
};
