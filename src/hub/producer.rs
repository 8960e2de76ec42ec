//! [`Producer`]: the side of a topic that publishes, and wants to know whether anybody reads.

use super::{
    Hub, publish,
    window::{Life, Watch},
};
use crate::{
    Event, PublishError, Topic,
    replay::{Cursor, Record},
};
use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    task::{Poll, ready},
    time::Duration,
};
use tokio::time::sleep_until;

/// The producer's side of a topic: from [`Hub::producer`].
///
/// What is produced once and read by whoever is there, such as the answer of a language model, goes on while its reader is
/// away; but not for nobody, and not after a reader asked it to stop. The producer of a topic is told both:
///
/// ```
/// use std::time::Duration;
/// use tidings::{Event, Producer, PublishError};
///
/// async fn answer(producer: Producer, mut model: Model) -> Result<(), PublishError> {
///     loop {
///         tokio::select! {
///             token = model.next_token() => match token {
///                 Some(token) => drop(producer.publish(Event::new().data(token)).await?),
///                 None => break,
///             },
///             () = producer.stopped() => break,
///             () = producer.abandoned(Duration::from_secs(60)) => break,
///         }
///     }
///     producer.finish(None).await?;
///     Ok(())
/// }
/// # struct Model;
/// # impl Model { async fn next_token(&mut self) -> Option<String> { None } }
/// ```
///
/// A topic can have several, and can be published to without one. It keeps its [`Hub`] alive, like a clone of it.
#[must_use = "without its producer, a topic is not known to have one"]
pub struct Producer {
    hub: Hub,
    topic: Topic,
    row: usize,
    will: Option<Event>,
}

impl Producer {
    pub(super) fn new(hub: Hub, topic: Topic) -> Self {
        let row = hub.handle.shared.window.hold(&topic);
        Self { hub, topic, row, will: None }
    }

    /// Finishes the topic with this event if the producer is dropped without having finished it: because its task panicked
    /// or was aborted. Otherwise its readers would wait for what will never come.
    ///
    /// Nothing can be published to a hub that was closed: at the end of a program, end the tasks that produce first, and
    /// then [close](Hub::close) the hub. Over a store other than the [`Ring`](crate::replay::Ring) a last will needs the
    /// runtime in which the hub was opened, or the one in which the producer is dropped, and is lost if the store refuses
    /// it.
    pub fn last_will(mut self, last: Event) -> Self {
        self.will = Some(last);
        self
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The hub, for whatever else there is to publish.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Publishes one event: [`Hub::publish`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn publish(&self, event: Event) -> Result<Cursor, PublishError> {
        self.hub.publish(&self.topic, event).await
    }

    /// Finishes the topic: [`Hub::finish`].
    ///
    /// # Errors
    ///
    /// As there; the [last will](Self::last_will) is tried then.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn finish(mut self, last: Option<Event>) -> Result<Cursor, PublishError> {
        let finished = self.hub.finish(&self.topic, last).await?;
        self.will = None;
        Ok(finished)
    }

    /// Waits until a reader asks it to stop, with [`Hub::stop`], or the hub is closed. At once if that is so.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn stopped(&self) {
        self.until(|life| life.is_stop_asked().then_some(())).await;
    }

    /// Whether a reader has asked it to stop, or the hub was closed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.watch().look(Life::is_stop_asked).unwrap_or(false)
    }

    /// Waits until nobody has been reading for as long as this, counted from when the last reader left, or from when the
    /// topic got its producer. At once if that is so.
    ///
    /// A reader is a subscription of the topic, wherever it stands in the log; one whose client vanished counts until the
    /// server notices.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped: the time is counted by the topic.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime that has its timer enabled.
    pub async fn abandoned(&self, time: Duration) {
        loop {
            let since = self.until(Life::unread_since).await;
            let came_back = self.until(|life| (life.unread_since() != Some(since)).then_some(()));
            let Some(deadline) = since.checked_add(time) else {
                came_back.await;
                continue;
            };
            let (mut came_back, mut late) = (pin!(came_back), pin!(sleep_until(deadline)));
            let abandoned = poll_fn(|cx| {
                if came_back.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                ready!(late.as_mut().poll(cx));
                Poll::Ready(true)
            });
            if abandoned.await {
                return;
            }
        }
    }

    /// Waits until there is something to see in the life of the topic.
    async fn until<R>(&self, seen: impl Fn(&Life) -> Option<R>) -> R {
        let mut watch = self.watch();
        poll_fn(|cx| watch.poll(cx.waker(), &seen)).await
    }

    fn watch(&self) -> Watch<'_> {
        self.hub.handle.shared.window.watch(self.row)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some(last) = self.will.take() {
            publish::without_waiting(&self.hub.handle.shared, Record::finish(&self.topic, Some(last)));
        }
        self.hub.handle.shared.window.release(self.row);
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", &self.topic).finish_non_exhaustive()
    }
}
