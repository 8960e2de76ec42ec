//! What `tracing` is told: a span for each subscription, what goes wrong, and nothing of what is sent or to whom.

use futures_util::{FutureExt as _, StreamExt as _};
use http::Request;
use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tidings::{
    Drain, EndReason, Event, Hub, HubBuilder, Limit, Lost, Peer, Subscription, SubscriptionBody, Topic,
    replay::Record,
    test_util::{EventReader, Fault, FaultyStore, evict, foreign_id, next_event},
};
use tower_service::Service;
use tracing::{
    Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};

/// Everything that is nobody's business has this in it.
const SECRET: &str = "secret";
const T: Topic = Topic::from_static("topic-secret");

fn secret(n: usize) -> Record {
    let event = Event::new().data(format!("data-secret {n}"));
    Record::new(T, event).with_key("key-secret").with_label("label", "value-secret")
}

/// Fields by their names, and in the end the errors behind an error.
#[derive(Clone, Debug, Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Fields {
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            write!(text, ": {error}").unwrap();
            source = error.source();
        }
        self.0.insert(field.name(), text);
    }
}

#[derive(Clone, Debug)]
struct Seen {
    fields: Fields,
    level: Level,
    /// Of a span: that in which it is. Of an event: that of which it tells.
    parent: Option<u64>,
    closed: bool,
}

#[derive(Default)]
struct Log {
    spans: Vec<(u64, Seen)>,
    events: Vec<Seen>,
    calls: usize,
}

#[derive(Clone, Default)]
struct Collector {
    log: Arc<Mutex<Log>>,
    hub: Arc<OnceLock<Hub>>,
}

impl Collector {
    fn collect() -> (Self, DefaultGuard) {
        let collector = Self::default();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(collector.clone()));
        (collector, guard)
    }

    /// As an application's code can: if it is called under one of the hub's locks, it waits for itself.
    fn called(&self) {
        if let Some(hub) = self.hub.get() {
            let _ = hub.stats();
            let _ = hub.presence(T).subscribers();
            hub.end_where(|_| false, EndReason::application("nobody"));
        }
        self.log.lock().unwrap().calls += 1;
    }

    /// The spans of subscriptions, which are taken out. Nothing in them, or in any other, is a secret.
    fn spans(&self) -> Vec<Seen> {
        let log = self.log.lock().unwrap();
        let spans =
            log.spans.iter().map(|(_, span)| span.clone()).filter(|span| span.fields.get("name") == "subscription");
        let spans: Vec<_> = spans.collect();
        assert!(!format!("{:?} {:?}", log.spans, log.events).contains(SECRET), "{spans:?} {:?}", log.events);
        drop(log);
        self.log.lock().unwrap().spans.clear();
        spans
    }

    fn span(&self) -> Seen {
        let mut spans = self.spans();
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans.pop().unwrap()
    }

    /// Level and message of each event, which are taken out.
    fn events(&self) -> Vec<(Level, Fields)> {
        let events = std::mem::take(&mut self.log.lock().unwrap().events);
        assert!(!format!("{events:?}").contains(SECRET), "{events:?}");
        events.into_iter().map(|event| (event.level, event.fields)).collect()
    }

    fn warning(&self) -> Fields {
        let mut warnings: Vec<_> = self.events().into_iter().filter(|(level, _)| *level == Level::WARN).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        warnings.pop().unwrap().1
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collector {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        self.called();
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        fields.0.insert("name", attributes.metadata().name().to_owned());
        let parent = cx.span(id).and_then(|span| span.parent()).map(|parent| parent.id().into_u64());
        let seen = Seen { fields, level: *attributes.metadata().level(), parent, closed: false };
        self.log.lock().unwrap().spans.push((id.into_u64(), seen));
    }

    fn on_record(&self, id: &Id, values: &tracing::span::Record<'_>, _: Context<'_, S>) {
        self.called();
        let mut log = self.log.lock().unwrap();
        if let Some((_, span)) = log.spans.iter_mut().rev().find(|(one, _)| *one == id.into_u64()) {
            values.record(&mut span.fields);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "tidings" {
            return;
        }
        self.called();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let parent = event.parent().map(Id::into_u64);
        let seen = Seen { fields, level: *event.metadata().level(), parent, closed: false };
        self.log.lock().unwrap().events.push(seen);
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.called();
        let mut log = self.log.lock().unwrap();
        if let Some((_, span)) = log.spans.iter_mut().rev().find(|(one, _)| *one == id.into_u64()) {
            span.closed = true;
        }
    }
}

fn hub_of(collector: &Collector, builder: HubBuilder) -> Hub {
    let hub = builder.build();
    assert!(collector.hub.set(hub.clone()).is_ok());
    hub
}

fn reader(subscription: Subscription) -> EventReader<SubscriptionBody> {
    EventReader::new(subscription.label("user", "user-secret").into_http_response().into_body())
}

async fn to_the_end(mut reader: EventReader<SubscriptionBody>) {
    while let Ok(Some(_)) = reader.try_next().await {}
}

#[tokio::test(start_paused = true)]
async fn every_span_says_how_it_began_and_how_it_ended() {
    let (collector, _guard) = Collector::collect();
    let hub = hub_of(&collector, Hub::builder());
    let first = hub.publish_record(secret(0)).await.unwrap();
    let last = hub.publish_record(secret(1)).await.unwrap();
    let how = |span: &Seen| {
        assert!(span.closed);
        assert_eq!((span.level, span.fields.get("topics")), (Level::DEBUG, "1"));
        (span.fields.get("outcome").to_owned(), span.fields.get("reason").to_owned())
    };
    let is = |outcome: &str, reason: &str| (outcome.to_owned(), reason.to_owned());

    let mut one = reader(hub.subscribe(T).resume(first));
    one.next().await.unwrap();
    drop(one);
    let span = collector.span();
    assert_eq!(how(&span), is("resumed", "disconnected"));
    assert_eq!(span.fields.get("last_event_id"), last.to_string());
    let (levels, messages): (Vec<_>, Vec<_>) =
        collector.events().into_iter().map(|(level, fields)| (level, fields.get("message").to_owned())).unzip();
    assert_eq!(levels, [Level::DEBUG; 2]);
    assert_eq!(messages, ["the subscription begins", "the subscription has left"]);

    to_the_end(reader(hub.subscribe(T).expires_in(Duration::from_secs(3)))).await;
    assert_eq!(how(&collector.span()), is("fresh", "expired"));

    let mut stream = hub.subscribe(T).resume(foreign_id());
    assert!(stream.next().await.unwrap().is_ok());
    stream.subscriber().end(EndReason::application("logged-out"));
    assert!(stream.next().await.is_none());
    // It is still held, as its subscriber could be, and yet over.
    assert_eq!(how(&collector.span()), is("foreign", "logged-out"));
    drop(stream);
    drop(reader(hub.subscribe(T).resume("malformed-secret")));
    assert_eq!(how(&collector.span()), is("malformed", "disconnected"));

    let replaced = reader(hub.subscribe(T).limit(Limit::per("user-secret", 1).newest_wins()));
    let newest = reader(hub.subscribe(T).limit(Limit::per("user-secret", 1).newest_wins()));
    to_the_end(replaced).await;
    drop(newest);
    assert_eq!(
        collector.spans().iter().map(how).collect::<Vec<_>>(),
        [is("fresh", "replaced"), is("fresh", "disconnected")]
    );

    let peer = Peer::new();
    let mut request = Request::new(());
    request.extensions_mut().insert(peer.clone());
    let response = Service::call(&mut hub.handler_for(T), request).await.unwrap();
    peer.set_lost(Lost::Stalled);
    drop(response);
    assert_eq!(how(&collector.span()), is("fresh", "stalled"));

    evict(&hub);
    drop(reader(hub.subscribe(T).resume(first)));
    assert_eq!(how(&collector.span()), is("evicted", "disconnected"));

    let drained = reader(hub.subscribe(T));
    tokio::join!(hub.drain(Drain::new().goodbye(Event::new().data("goodbye-secret"))), to_the_end(drained));
    assert_eq!(how(&collector.span()), is("fresh", "drained"));
    assert!(collector.events().iter().all(|(level, _)| *level == Level::DEBUG));
}

#[tokio::test(start_paused = true)]
async fn a_span_is_within_that_of_its_request_and_its_events_within_it() {
    let (collector, _guard) = Collector::collect();
    let hub = hub_of(&collector, Hub::builder());
    let request = tracing::debug_span!("request");
    drop(request.in_scope(|| reader(hub.subscribe(T))));
    assert_eq!(collector.log.lock().unwrap().spans.len(), 2);
    let own = collector.log.lock().unwrap().spans[1].0;
    assert!(collector.log.lock().unwrap().events.iter().all(|event| event.parent == Some(own)));
    assert_eq!(collector.span().parent, request.id().map(|id| id.into_u64()));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_tells_nothing() {
    let (collector, _guard) = Collector::collect();
    let hub = hub_of(&collector, Hub::builder());
    let (mut body, mut stream) = (reader(hub.subscribe(T)), hub.subscribe(T));
    assert!(stream.next().now_or_never().is_none());
    let before = collector.log.lock().unwrap().calls;
    for n in 0..100 {
        hub.publish_record(secret(n)).await.unwrap();
        body.next().await.unwrap();
        next_event(&mut stream).await;
    }
    assert_eq!(collector.log.lock().unwrap().calls, before);
    assert_eq!(collector.spans().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_turned_away_has_no_span_and_says_why() {
    let (collector, _guard) = Collector::collect();
    let hub = hub_of(&collector, Hub::builder().max_subscriptions(0).explicit_topics());
    let reasons = |what: &str| {
        let events = collector.events();
        assert_eq!(collector.spans().len(), 0, "{what}");
        assert_eq!(events.len(), 1, "{what}: {events:?}");
        assert_eq!((events[0].0, events[0].1.get("message")), (Level::DEBUG, "the subscription was turned away"));
        events[0].1.get("reason").to_owned()
    };
    assert_eq!(hub.subscribe(T).into_http_response().status(), 404);
    assert_eq!(reasons("as a response"), "unknown_topic");
    let mut handler = hub.handler_for(T);
    assert_eq!(Service::call(&mut handler, Request::new(())).await.unwrap().status(), 404);
    assert_eq!(reasons("by the handler"), "unknown_topic");
    assert!(hub.subscribe(T).next().await.unwrap().is_err());
    assert_eq!(reasons("as a stream"), "unknown_topic");
    hub.create(T);
    drop(hub.subscribe(T).into_http_response());
    assert_eq!(reasons("as a response"), "over_limit");
    drop(Service::call(&mut handler, Request::new(())).await.unwrap());
    assert_eq!(reasons("by the handler"), "over_limit");
    hub.drain(Drain::new()).await;
    assert!(hub.subscribe(T).next().await.unwrap().is_err());
    assert_eq!(reasons("as a stream"), "draining");
}

#[tokio::test(start_paused = true)]
async fn what_a_store_does_not_do_is_a_warning() {
    let (collector, _guard) = Collector::collect();
    let (store, faults) = FaultyStore::new();
    let hub = Hub::builder().open(store).await.unwrap();
    assert!(collector.hub.set(hub.clone()).is_ok());
    let first = hub.publish_record(secret(0)).await.unwrap();

    faults.next_append(Fault::Refused);
    hub.publish_record(secret(1)).await.unwrap_err();
    let warning = collector.warning();
    assert_eq!((warning.get("message"), warning.get("operation")), ("the store failed", "append"));
    assert!(warning.get("error").starts_with("the store did not take the events: "), "{warning:?}");

    // Before it was there, and later.
    evict(&hub);
    faults.next_read(Fault::Refused);
    hub.subscribe(T).resume(first.run().at(0)).opened().await.unwrap_err();
    let warning = collector.warning();
    assert_eq!(warning.get("message"), "the subscription failed");
    assert!(warning.get("error").starts_with("the store could not be read: "), "{warning:?}");
    assert_eq!(collector.spans().len(), 0);

    let mut there = reader(hub.subscribe(T));
    assert!(there.next().now_or_never().is_none());
    hub.publish_record(secret(2)).await.unwrap();
    evict(&hub);
    faults.next_read(Fault::Refused);
    to_the_end(there).await;
    let warning = collector.warning();
    assert_eq!(warning.get("message"), "the subscription failed");
    let span = collector.span();
    assert_eq!((span.fields.get("reason"), span.fields.get("id")), ("failed", warning.get("id")));
    assert_eq!(span.fields.get("outcome"), "fresh");

    faults.next_append(Fault::Unknown);
    faults.next_read(Fault::Refused);
    assert!(hub.publish_record(secret(3)).await.unwrap_err().is_unknown());
    // Nobody can tell from outside when that is done.
    while hub.publish_record(secret(4)).await.is_err() {}
    let operations: Vec<_> = collector.events().iter().map(|(_, fields)| fields.get("operation").to_owned()).collect();
    assert_eq!(operations, ["append", "recover"]);
    assert_eq!((hub.stats().store_errors.append, hub.stats().store_errors.read), (2, 3));
}
