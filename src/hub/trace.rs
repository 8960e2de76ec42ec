//! What `tracing` is told of a hub: a span for each subscription, and what goes wrong.
//!
//! Whoever collects that is code of the application, so nothing here is called under a lock, nor where events are
//! delivered. Invariants: neither the data of an event, nor a label's value, nor the name of a topic is in it, which can
//! tell who somebody is.

use super::{
    error::SubscriptionError,
    gap::Resume,
    member::{LeaveReason, Member},
    registry::Denied,
};
use crate::replay::Cursor;
use std::error::Error;
use tracing::{Span, debug, debug_span, field, warn};

/// For filters: not where the code happens to stand.
const TARGET: &str = "tidings";

/// One that others see now. Its parent is the span in which that happened, such as that of the request.
///
/// Not with the details of the member, who is there for as long as anybody asks for it: the span ends when it leaves.
pub(super) fn entered(member: &Member, outcome: Resume) -> Option<Box<Span>> {
    let span = debug_span!(
        target: TARGET,
        "subscription",
        id = member.number,
        topics = member.topics.len(),
        outcome = outcome.as_str(),
        reason = field::Empty,
        last_event_id = field::Empty,
    );
    debug!(target: TARGET, parent: &span, "the subscription begins");
    (!span.is_disabled()).then(|| Box::new(span))
}

pub(super) fn left(span: Option<Box<Span>>, reason: LeaveReason, last: Option<Cursor>) {
    let Some(span) = span else { return };
    span.record("reason", reason.as_str());
    span.record("last_event_id", last.map(field::display));
    debug!(target: TARGET, parent: &*span, "the subscription has left");
}

/// One that could not be served, or no longer: with its number, because it may have no span yet.
pub(super) fn failed(member: &Member, span: Option<&Span>, error: &SubscriptionError) {
    let (parent, id) = (span.and_then(Span::id), member.number);
    if error.is_unknown_topic() {
        // Not the error itself, which has the topic's name.
        debug!(target: TARGET, parent: parent, id, reason = "unknown_topic", "the subscription was turned away");
    } else {
        let error: &(dyn Error + 'static) = error;
        warn!(target: TARGET, parent: parent, id, error, "the subscription failed");
    }
}

pub(super) fn denied(member: &Member, denied: Denied) {
    let reason = match denied {
        Denied::OverLimit => "over_limit",
        Denied::Draining => "draining",
    };
    debug!(target: TARGET, id = member.number, reason, "the subscription was turned away");
}

/// What the store did not do for the hub itself. What it did not do for a subscription is why that failed.
pub(super) fn store_failed(operation: &'static str, error: &(dyn Error + 'static)) {
    warn!(target: TARGET, operation, error, "the store failed");
}

pub(super) fn feed_lost() {
    warn!(target: TARGET, "the feed of the shared log is cut off: nothing new is received until it is back");
}

/// With how many events it did not bring by itself.
pub(super) fn feed_caught(missed: u64) {
    if missed > 0 {
        warn!(target: TARGET, missed, "the feed of the shared log has caught up");
    } else {
        debug!(target: TARGET, "the feed of the shared log is there");
    }
}

pub(super) fn feed_ended() {
    warn!(target: TARGET, "the feed of the shared log has ended or panicked, and is asked for again");
}
