//! How often a follower looks for what is new, and how far behind it may be.

use super::Follower;
use crate::{
    hub::{
        lag::{LagBudget, Meter},
        pace::Pace,
    },
    replay::Stretch,
};
use std::{
    task::{Context, Poll},
    time::Duration,
};

impl Follower {
    pub(crate) fn set_min_interval(&mut self, interval: Duration) {
        self.pace = Some(Box::new(Pace::new(interval)));
    }

    /// Sets how far it may fall behind, from now on.
    pub(crate) fn set_lag_budget(&mut self, budget: LagBudget) {
        self.meter = None;
        if budget != LagBudget::new() {
            let window = &self.shared.window;
            let meter = Meter::new(budget, window.head(), window.published(&self.attached));
            self.meter = Some(Box::new(meter));
        }
    }

    /// Waits while it is not to look for what is new. Then says up to where it may, if not as far as the log goes.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<u64>> {
        let Some(pace) = &mut self.pace else { return Poll::Ready(None) };
        match pace.poll_limit(self.cursor, cx) {
            Poll::Pending if !self.shared.window.sleep(&self.attached, self.cursor, cx.waker()) => Poll::Ready(None),
            limit => limit,
        }
    }

    /// Whether it is further behind than it may be. Not in the loop, which is long enough: most have no budget.
    #[cold]
    #[inline(never)]
    pub(super) fn lags(&mut self) -> bool {
        let (window, Some(meter)) = (&self.shared.window, &mut self.meter) else { return false };
        if !meter.is_over(&window.published(&self.attached)) {
            return false;
        }
        // Some of what was published may have been replaced, and is not to be read any more.
        let after = meter.counts_after(self.cursor);
        let Some((now, behind)) = window.behind(&self.attached, self.cursor, after) else { return true };
        meter.is_behind_by(now, behind);
        meter.is_over(&now)
    }

    pub(super) fn count(&mut self, stretch: &Stretch) {
        if let Some(meter) = &mut self.meter {
            meter.handed_stretch(self.cursor.run(), stretch);
        }
    }

    /// What it can no longer read does not count against it.
    pub(super) fn restart_meter(&mut self) {
        if let Some(meter) = self.meter.take() {
            self.set_lag_budget(meter.budget);
        }
    }
}
