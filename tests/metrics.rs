//! The numbers of a hub by the `metrics` facade: as they are in its stats, and as they are documented.

mod support;

use futures_util::{FutureExt as _, StreamExt as _};
use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder},
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use support::nodes::Log;
use tidings::{
    EndReason, Event, GapPolicy, Hub, Limit, Stats, Topic,
    test_util::{EventReader, Fault, FaultyStore, evict, foreign_id, next_event},
};
use tokio::time::sleep;

const T: Topic = Topic::from_static("t");

/// A series: its name and its labels.
type Name = (String, BTreeMap<String, String>);

#[derive(Debug, PartialEq)]
struct Value {
    kind: MetricKind,
    unit: &'static str,
    value: u64,
}

/// What a recorder gets.
fn recorded(record: impl FnOnce()) -> BTreeMap<Name, Value> {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, record);
    let mut series = BTreeMap::new();
    for (key, unit, description, value) in recorder.snapshotter().snapshot().into_vec() {
        let (kind, key) = key.into_parts();
        assert!(description.is_some_and(|text| !text.is_empty()), "{key}");
        let value = match value {
            DebugValue::Counter(value) => value,
            DebugValue::Gauge(value) => format!("{value}").parse().unwrap(),
            DebugValue::Histogram(_) => panic!("{key}"),
        };
        let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
        let value = Value { kind, unit: unit.unwrap().as_str(), value };
        assert!(series.insert((key.name().to_owned(), labels), value).is_none(), "{key}");
    }
    series
}

/// What it has of one name: the value of each label's value, or of the empty text.
fn values(series: &BTreeMap<Name, Value>, name: &str, label: &str) -> BTreeMap<String, u64> {
    let those = series.iter().filter(|((of, _), _)| of == name);
    those.map(|((_, labels), value)| (labels.get(label).cloned().unwrap_or_default(), value.value)).collect()
}

/// Stats of a hub in which everything has happened that can happen over one store.
async fn eventful(hub: Hub) -> Hub {
    let first = hub.publish(T, Event::new().data("1")).await.unwrap();
    hub.publish(T, Event::new().data("22")).await.unwrap();
    let mut reader = hub.subscribe(T).resume(first);
    next_event(&mut reader).await;
    hub.publish_ephemeral(T, Event::new().data("psst")).unwrap();
    let mut filtered = hub.subscribe(T).resume(first).filter(|record| record.data().is_none_or(|data| data != "22"));
    assert!(filtered.next().now_or_never().is_none());
    for id in [foreign_id().to_string(), "what is that?".to_owned()] {
        let mut gap = EventReader::new(
            hub.subscribe(T).resume(id.as_str()).on_gap(GapPolicy::End).into_http_response().into_body(),
        );
        while gap.next().await.is_some() {}
    }
    let told = hub.subscribe(T).into_http_response();
    hub.end_topic(T, EndReason::application("logged-out"));
    let mut told = EventReader::new(told.into_body());
    while told.next().await.is_some() {}
    assert!(reader.next().await.is_none());
    drop(filtered);
    assert!(hub.subscribe(T).limit(Limit::per("nobody", 0)).next().await.unwrap().is_err());

    // Those who stay: one has everything, the others are behind.
    let mut level = hub.subscribe(T);
    let behind: Vec<_> = (0..3).map(|_| hub.subscribe(T).into_http_response()).collect();
    for n in 0..20 {
        hub.publish(T, Event::new().data(n.to_string())).await.unwrap();
        next_event(&mut level).await;
    }
    assert!(level.next().now_or_never().is_none());
    // They are there for as long as the test.
    std::mem::forget((level, behind));
    hub
}

fn assert_same(series: &BTreeMap<Name, Value>, stats: &Stats) {
    let one = |name: &str| values(series, name, "")[""];
    let of = |name: &str, label: &str, word: &str| values(series, name, label)[word];
    assert_eq!(one("tidings_subscriptions"), stats.subscriptions as u64);
    assert_eq!(one("tidings_topics"), stats.topics as u64);
    assert_eq!(one("tidings_events_published_total"), stats.published.events);
    assert_eq!(one("tidings_published_bytes_total"), stats.published.bytes);
    assert_eq!(one("tidings_events_delivered_total"), stats.delivered.events);
    assert_eq!(one("tidings_delivered_bytes_total"), stats.delivered.bytes);
    assert_eq!(one("tidings_events_ephemeral_total"), stats.ephemeral);
    assert_eq!(one("tidings_events_filtered_total"), stats.filtered);
    assert_eq!(one("tidings_events_evicted_total"), stats.evicted);
    for (outcome, count) in [
        ("fresh", stats.opened.fresh),
        ("resumed", stats.opened.resumed),
        ("evicted", stats.opened.evicted),
        ("foreign", stats.opened.foreign),
        ("malformed", stats.opened.malformed),
    ] {
        assert_eq!(of("tidings_subscriptions_opened_total", "outcome", outcome), count, "{outcome}");
    }
    let left = stats.left.iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
    assert_eq!(values(series, "tidings_subscriptions_left_total", "reason"), left);
    assert_eq!(of("tidings_subscriptions_refused_total", "reason", "over_limit"), stats.refused.over_limit);
    assert_eq!(of("tidings_subscriptions_refused_total", "reason", "draining"), stats.refused.draining);
    assert_eq!(one("tidings_gaps_total"), stats.gaps.reports);
    assert_eq!(one("tidings_gap_positions_total"), stats.gaps.positions);
    assert_eq!(one("tidings_lag_max"), stats.lag.max);
    let mut up_to = 0;
    for (bound, count) in ["0", "10", "100", "1000", "10000", "+Inf"].iter().zip(stats.lag.subscriptions) {
        up_to += count as u64;
        assert_eq!(of("tidings_lag_subscriptions", "le", bound), up_to, "{bound}");
    }
    assert_eq!(up_to, stats.subscriptions as u64);
    assert_eq!(of("tidings_store_errors_total", "operation", "append"), stats.store_errors.append);
    assert_eq!(of("tidings_store_errors_total", "operation", "read"), stats.store_errors.read);
    assert_eq!(of("tidings_store_errors_total", "operation", "notify"), stats.store_errors.notify);
    if let Some(feed) = stats.feed {
        assert_eq!(one("tidings_feed_connected"), u64::from(feed.connected));
        assert_eq!(one("tidings_feed_interruptions_total"), feed.interruptions);
        assert_eq!(one("tidings_feed_missed_total"), feed.missed);
        assert_eq!(one("tidings_feed_skips_total"), feed.skips);
    }
    assert_eq!(one("tidings_heartbeats_total"), stats.heartbeats);
}

#[tokio::test(start_paused = true)]
async fn they_are_those_of_the_stats() {
    let hub = eventful(Hub::new()).await;
    tidings::test_util::evict(&hub);
    let stats = hub.stats();
    // So that what is compared is not all zero.
    assert!(stats.published.events == 22 && stats.delivered.events >= 21 && stats.evicted == 22, "{stats:?}");
    assert!(stats.ephemeral == 1 && stats.filtered == 1 && stats.gaps.reports == 2, "{stats:?}");
    assert_eq!((stats.left.gap, stats.left.application, stats.refused.over_limit), (2, 3, 1), "{stats:?}");
    assert_eq!((stats.subscriptions, stats.lag.max, stats.lag.subscriptions), (4, 20, [1, 0, 3, 0, 0, 0]));
    assert_same(&recorded(|| stats.record()), &stats);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_seen() {
    let (store, faults) = FaultyStore::new();
    let hub = eventful(Hub::builder().open(store).await.unwrap()).await;
    faults.next_append(Fault::Refused);
    hub.publish(T, Event::new()).await.unwrap_err();
    evict(&hub);
    faults.next_read(Fault::Refused);
    let first = hub.subscribe(T).cursor().unwrap().run().at(1);
    assert!(hub.subscribe(T).resume(first).opened().await.unwrap_err().is_read());
    let stats = hub.stats();
    assert_eq!((stats.store_errors.append, stats.store_errors.read), (1, 1));
    assert_same(&recorded(|| stats.record()), &stats);
}

#[tokio::test(start_paused = true)]
async fn a_feed_is_seen() {
    let log = Log::new();
    let hub = eventful(Hub::builder().open(log.node()).await.unwrap()).await;
    log.cut(0);
    sleep(Duration::from_millis(1)).await;
    hub.publish(T, Event::new()).await.unwrap();
    hub.publish_ephemeral(T, Event::new()).unwrap();
    log.heal(0);
    sleep(Duration::from_millis(1)).await;
    log.skip(0);
    hub.publish(T, Event::new()).await.unwrap();
    log.cut(0);
    sleep(Duration::from_millis(1)).await;
    let stats = hub.stats();
    let feed = stats.feed.unwrap();
    assert_eq!((feed.connected, feed.interruptions, feed.missed, feed.skips), (false, 2, 1, 1));
    assert_same(&recorded(|| stats.record()), &stats);
}

#[tokio::test(start_paused = true)]
async fn there_are_as_many_series_before_anything_has_happened_as_after() {
    let names = |hub: &Hub| recorded(|| hub.stats().record()).into_keys().collect::<BTreeSet<_>>();
    let (before, after) = (names(&Hub::new()), names(&eventful(Hub::new()).await));
    assert_eq!(before, after);
    assert_eq!(before.len(), 43);
}

#[tokio::test]
async fn several_hubs_have_their_names() {
    let (one, two) = (Hub::new(), Hub::new());
    one.publish(T, Event::new().data("1")).await.unwrap();
    let series = recorded(|| {
        one.stats().record_as("one");
        two.stats().record_as("two");
    });
    assert_eq!(series.len(), 2 * 43);
    let published = values(&series, "tidings_events_published_total", "hub");
    assert_eq!(published, [("one".to_owned(), 1), ("two".to_owned(), 0)].into());
}

/// The rows of the table in the documentation, each cell's words in backquotes apart.
fn documented() -> BTreeMap<String, Vec<String>> {
    let rows = include_str!("../src/metrics.rs").lines().filter_map(|line| line.trim().strip_prefix("/// | `"));
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    rows.map(cells).map(|row| (row[0].trim_end_matches('`').to_owned(), row)).collect()
}

#[tokio::test]
async fn they_are_as_documented() {
    let hub = Hub::builder().open(Log::new().node()).await.unwrap();
    let series = recorded(|| hub.stats().record());
    let table = documented();
    let names: BTreeSet<_> = series.keys().map(|(name, _)| name).collect();
    assert_eq!(names, table.keys().collect());
    for ((name, labels), Value { kind, unit, .. }) in &series {
        let [_, kind_cell, unit_cell, label_cell, ..] = &table[name][..] else { panic!("{name}") };
        assert_eq!((kind_cell.as_str(), unit_cell.as_str()), (format!("{kind:?}").to_lowercase().as_str(), *unit));
        assert_eq!(labels.is_empty(), label_cell.is_empty(), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == MetricKind::Counter, "{name}");
        for (label, value) in labels {
            assert!(label_cell.starts_with(&format!("`{label}`: ")), "{label_cell}");
            let by_name = label_cell.contains("Left::iter");
            assert!(by_name || label_cell.contains(&format!("`{value}`")), "{name}: {value}");
        }
    }
}
