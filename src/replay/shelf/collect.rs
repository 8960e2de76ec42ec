//! Reading a [`Shelf`]: the entries of several rows in the one order of their positions.

use super::Shelf;
use crate::replay::Entry;
use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

impl Shelf {
    /// Appends to `out` what some rows have after a position and up to another, in order, as long as there is room. Says
    /// whether that is all there is.
    pub(crate) fn collect(
        &self,
        rows: impl Iterator<Item = usize>,
        (after, up_to): (u64, u64),
        room: &mut Room,
        out: &mut impl Extend<Arc<Entry>>,
    ) -> bool {
        let within = |entry: &&Arc<Entry>| entry.position() <= up_to;
        let put = |entry: &Arc<Entry>| {
            let fits = room.take(entry);
            out.extend(fits.then(|| Arc::clone(entry)));
            fits
        };
        let mut rows = rows.map(|row| &self.rows[row]).filter(|row| row.newest() > after);
        let Some(first) = rows.next() else { return true };
        let Some(second) = rows.next() else {
            // The usual case, live delivery of one topic: nothing is allocated.
            return first.entries.range(first.after(after)..).take_while(within).all(put);
        };
        let mut heads: Vec<_> =
            [first, second].into_iter().chain(rows).map(|row| row.entries.range(row.after(after)..)).collect();
        merge(&mut heads, Reverse).take_while(within).all(put)
    }

    /// How many entries some rows have after a position, and their bytes on the wire.
    pub(crate) fn sum_after(&self, rows: impl Iterator<Item = usize>, after: u64) -> (u64, u64) {
        let entries = rows.flat_map(|row| self.rows[row].entries.range(self.rows[row].after(after)..));
        entries.fold((0, 0), |(events, bytes), entry| (events + 1, bytes + entry.frame().len() as u64))
    }

    /// The position before the last `n` entries of some rows.
    pub(crate) fn before_last(&self, rows: impl Iterator<Item = usize>, n: usize) -> u64 {
        let mut tails: Vec<_> = rows.map(|row| self.rows[row].entries.iter().rev()).collect();
        merge(&mut tails, |position| position).take(n).last().map_or(u64::MAX, |first| first.position() - 1)
    }
}

/// The entries of several rows in one order: of those that come next, the one with the greatest key.
fn merge<'a, K: Ord>(
    rows: &mut [impl Iterator<Item = &'a Arc<Entry>>],
    key: impl Fn(u64) -> K,
) -> impl Iterator<Item = &'a Arc<Entry>> {
    let mut nexts: Vec<_> = rows.iter_mut().map(Iterator::next).collect();
    let mut heap: BinaryHeap<_> =
        nexts.iter().enumerate().filter_map(|(row, next)| Some((key(next.as_ref()?.position()), row))).collect();
    std::iter::from_fn(move || {
        let (_, row) = heap.pop()?;
        let next = rows[row].next();
        heap.extend(next.map(|entry| (key(entry.position()), row)));
        std::mem::replace(&mut nexts[row], next)
    })
}

/// How much one look at a shelf may take: at most so many entries, and up to the one that reaches so many bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl Room {
    pub(crate) fn take(&mut self, entry: &Entry) -> bool {
        let fits = self.events > 0 && self.bytes > 0;
        if fits {
            self.events -= 1;
            self.bytes = self.bytes.saturating_sub(entry.frame().len());
        }
        fits
    }
}
