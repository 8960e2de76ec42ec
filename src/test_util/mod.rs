//! For the tests of applications: read a response as an `EventSource` would, take the next event of a subscription, make
//! a gap, make a store fail.
//!
//! Everything here works on tokio's paused time. Where a test cannot go on, these functions panic and say why, as an
//! assertion would.
//!
//! ```
//! use tidings::{Event, Hub, Topic, test_util::EventReader};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! let hub = Hub::new();
//! let topic = Topic::new("prices").unwrap();
//! let response = hub.subscribe(&topic).into_http_response();
//! hub.publish(&topic, Event::new().data("42")).await.unwrap();
//!
//! let mut client = EventReader::new(response.into_body());
//! let event = client.next().await.unwrap();
//! assert_eq!((event.event_type.as_str(), event.data.as_str()), ("message", "42"));
//! # })
//! ```

mod faulty_store;
mod reader;

pub use self::{
    faulty_store::{Fault, Faults, FaultyStore},
    reader::{EventReader, Received, decode},
};

use crate::{
    Hub, Message, Subscription,
    replay::{Cursor, Entry, Run},
};
use futures_core::Stream as _;
use std::{future::poll_fn, pin::Pin, sync::Arc};

/// The next message of a subscription; `None` at its end.
///
/// # Panics
///
/// When the store cannot be read.
pub async fn next_message(subscription: &mut Subscription) -> Option<Message> {
    match poll_fn(|cx| Pin::new(&mut *subscription).poll_next(cx)).await? {
        Ok(message) => Some(message),
        Err(error) => panic!("the subscription failed: {error}"),
    }
}

/// The next event of a subscription.
///
/// # Panics
///
/// When a gap or the end comes instead, or the store cannot be read.
pub async fn next_event(subscription: &mut Subscription) -> Arc<Entry> {
    match next_message(subscription).await {
        Some(Message::Event(entry)) => entry,
        Some(other) => panic!("expected an event, but there is {other:?}"),
        None => panic!("expected an event, but the subscription has ended"),
    }
}

/// An id that is none of any hub's: whoever resumes with it is told of a gap.
#[must_use]
pub fn foreign_id() -> Cursor {
    Run::new_log().at(1)
}

/// Makes a gap: nothing that was published so far is held any more, neither by the hub's window nor by its
/// [`Ring`](crate::replay::Ring). For a hub over a [`FaultyStore`], also call [`Faults::evict`].
pub fn evict(hub: &Hub) {
    hub.evict();
}
