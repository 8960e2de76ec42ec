//! A hub's [`Stats`] by the `metrics` facade.
//!
//! They are pulled: nothing is told to a recorder where events are delivered, and none is called under a lock. Every series
//! is there from the first time on, also at zero, and there are as many as the table has room for.

use crate::{FeedStats, Gaps, Lag, Opened, Refusals, Stats, StoreErrors, Volume};
use metrics::{Label, Unit, counter, describe_counter, describe_gauge, gauge};

impl Stats {
    /// Gives the numbers to the recorder that the application has installed for the
    /// [`metrics`](https://docs.rs/metrics) facade. To be called before each scrape, or every few seconds:
    ///
    /// ```
    /// # let hub = tidings::Hub::new();
    /// hub.stats().record();
    /// ```
    ///
    /// Of several hubs in one process, each wants [a name](Self::record_as).
    ///
    /// | name | kind | unit | label | what it is |
    /// | --- | --- | --- | --- | --- |
    /// | `tidings_subscriptions` | gauge | count | | [`subscriptions`](Self::subscriptions) |
    /// | `tidings_topics` | gauge | count | | [`topics`](Self::topics) |
    /// | `tidings_events_published_total` | counter | count | | [`published`](Self::published) |
    /// | `tidings_published_bytes_total` | counter | bytes | | the same as bytes on the wire |
    /// | `tidings_events_delivered_total` | counter | count | | [`delivered`](Self::delivered) |
    /// | `tidings_delivered_bytes_total` | counter | bytes | | the same as bytes on the wire |
    /// | `tidings_events_ephemeral_total` | counter | count | | [`ephemeral`](Self::ephemeral) |
    /// | `tidings_events_filtered_total` | counter | count | | [`filtered`](Self::filtered) |
    /// | `tidings_events_evicted_total` | counter | count | | [`evicted`](Self::evicted) |
    /// | `tidings_subscriptions_opened_total` | counter | count | `outcome`: `fresh`, `resumed`, `evicted`, `foreign`, `malformed` | [`opened`](Self::opened) |
    /// | `tidings_subscriptions_left_total` | counter | count | `reason`: the words of [`Left::iter`](crate::Left::iter); all of the application's own are `application` | [`left`](Self::left) |
    /// | `tidings_subscriptions_refused_total` | counter | count | `reason`: `over_limit`, `draining` | [`refused`](Self::refused) |
    /// | `tidings_gaps_total` | counter | count | | [`gaps`](Self::gaps) |
    /// | `tidings_gap_positions_total` | counter | count | | the positions that they span |
    /// | `tidings_lag_max` | gauge | count | | [`lag`](Self::lag): the furthest behind, in positions |
    /// | `tidings_lag_subscriptions` | gauge | count | `le`: `0`, `10`, `100`, `1000`, `10000`, `+Inf` | how many subscriptions are at most so far behind: each bound counts those below it, too, as the buckets of a histogram do |
    /// | `tidings_store_errors_total` | counter | count | `operation`: `append`, `read`, `notify` | [`store_errors`](Self::store_errors) |
    /// | `tidings_feed_connected` | gauge | count | | [`feed`](Self::feed): 1 while it is followed, else 0; this and the next only over a log that is shared |
    /// | `tidings_feed_interruptions_total` | counter | count | | how often it was cut off |
    /// | `tidings_feed_missed_total` | counter | count | | events that it did not bring by itself |
    /// | `tidings_feed_skips_total` | counter | count | | how often every subscription had to read for itself |
    /// | `tidings_heartbeats_total` | counter | count | | [`heartbeats`](Self::heartbeats) |
    ///
    /// A counter of the facade never goes back, so after a hub was made anew in the same process, its counters stand still
    /// until they have passed those of the earlier one.
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn record(&self) {
        self.record_to(&Series { hub: None });
    }

    /// The same with one more label, `hub`, for a process that has several: of two that record without a name, or with the
    /// same, the one with more would hide the other.
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn record_as(&self, hub: &'static str) {
        self.record_to(&Series { hub: Some(hub) });
    }

    /// Field by field, so that none is forgotten that is new.
    fn record_to(&self, series: &Series) {
        let Self {
            subscriptions,
            topics,
            published,
            delivered,
            ephemeral,
            filtered,
            opened,
            left,
            refused,
            gaps,
            lag,
            evicted,
            store_errors,
            feed,
            heartbeats,
        } = self;
        series.now("tidings_subscriptions", "Subscriptions that are there now.", *subscriptions as u64);
        series.now("tidings_topics", "Topics that are known now.", *topics as u64);

        let Volume { events, bytes } = *published;
        series.total("tidings_events_published_total", "Events that were published and are in the log.", events);
        series.bytes("tidings_published_bytes_total", "Bytes on the wire of what was published.", bytes);
        let Volume { events, bytes } = *delivered;
        let what = "Events that were handed over to subscriptions, once for each of them.";
        series.total("tidings_events_delivered_total", what, events);
        series.bytes("tidings_delivered_bytes_total", "Bytes on the wire of what was handed over.", bytes);
        series.total("tidings_events_ephemeral_total", "Ephemeral events that were published.", *ephemeral);
        series.total("tidings_events_filtered_total", "Events that filters have left out.", *filtered);
        series.total("tidings_events_evicted_total", "Events that the ring had to let go or forgot.", *evicted);

        let Opened { fresh, resumed, evicted, foreign, malformed } = *opened;
        let outcomes = [
            ("fresh", fresh),
            ("resumed", resumed),
            ("evicted", evicted),
            ("foreign", foreign),
            ("malformed", malformed),
        ];
        series.totals("tidings_subscriptions_opened_total", "How subscriptions began.", "outcome", outcomes);
        series.totals("tidings_subscriptions_left_total", "How subscriptions left.", "reason", left.iter());
        let Refusals { over_limit, draining } = *refused;
        let reasons = [("over_limit", over_limit), ("draining", draining)];
        series.totals("tidings_subscriptions_refused_total", "Subscriptions that were turned away.", "reason", reasons);

        let Gaps { reports, positions } = *gaps;
        series.total("tidings_gaps_total", "Gaps that were reported to subscriptions.", reports);
        series.total("tidings_gap_positions_total", "Positions of the log that reported gaps span.", positions);
        let Lag { max, subscriptions } = lag;
        series.now("tidings_lag_max", "How many positions the furthest subscription is behind.", *max);
        series.lag("tidings_lag_subscriptions", "Subscriptions that are at most so far behind.", subscriptions);

        let StoreErrors { append, read, notify } = *store_errors;
        let operations = [("append", append), ("read", read), ("notify", notify)];
        let what = "Calls to the store that failed, or were not answered in time.";
        series.totals("tidings_store_errors_total", what, "operation", operations);
        if let Some(FeedStats { connected, interruptions, missed, skips }) = *feed {
            let what = "Whether the feed of the shared log is followed.";
            series.now("tidings_feed_connected", what, u64::from(connected));
            series.total("tidings_feed_interruptions_total", "How often the feed was cut off.", interruptions);
            series.total("tidings_feed_missed_total", "Events that the feed did not bring by itself.", missed);
            series.total("tidings_feed_skips_total", "How often every subscription had to read for itself.", skips);
        }
        series.total("tidings_heartbeats_total", "Heartbeats that were sent.", *heartbeats);
    }
}

/// Those of one hub. Each is described whenever it is recorded: which recorder that reaches can change, and an application
/// may have installed it later.
struct Series {
    hub: Option<&'static str>,
}

impl Series {
    fn labels(&self, own: Option<Label>) -> Vec<Label> {
        self.hub.map(|hub| Label::from_static_parts("hub", hub)).into_iter().chain(own).collect()
    }

    fn now(&self, name: &'static str, what: &'static str, value: u64) {
        describe_gauge!(name, Unit::Count, what);
        gauge!(name, self.labels(None)).set(float(value));
    }

    fn total(&self, name: &'static str, what: &'static str, value: u64) {
        describe_counter!(name, Unit::Count, what);
        counter!(name, self.labels(None)).absolute(value);
    }

    fn bytes(&self, name: &'static str, what: &'static str, value: u64) {
        describe_counter!(name, Unit::Bytes, what);
        counter!(name, self.labels(None)).absolute(value);
    }

    fn totals(
        &self,
        name: &'static str,
        what: &'static str,
        label: &'static str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) {
        describe_counter!(name, Unit::Count, what);
        for (word, value) in values {
            counter!(name, self.labels(Some(Label::from_static_parts(label, word)))).absolute(value);
        }
    }

    fn lag(&self, name: &'static str, what: &'static str, subscriptions: &[usize]) {
        describe_gauge!(name, Unit::Count, what);
        let bounds = Lag::BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        let mut up_to = 0;
        for (bound, count) in bounds.zip(subscriptions) {
            up_to += *count as u64;
            gauge!(name, self.labels(Some(Label::new("le", bound)))).set(float(up_to));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and nobody has that many")]
fn float(value: u64) -> f64 {
    value as f64
}
