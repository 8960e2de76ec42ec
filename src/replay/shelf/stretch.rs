//! Stretches: frames that stand behind each other in one piece of memory, so that a crowd of readers who are behind
//! shares one copy of them, and goes on by many entries in one step.
//!
//! The entries of a row are cut into blocks of about a frame, and the frames of a block are joined when someone asks for
//! more than one of them. That is a cache: dropping it changes nothing but speed.
//!
//! Invariant: every entry of a row that has blocks is in one of them.

use super::{Row, Shelf};
use crate::{replay::Entry, response::FRAME_TARGET};
use bytes::{Bytes, BytesMut};
use std::{collections::VecDeque, sync::Arc};

/// What is joined may take this much over all rows, beside the entries themselves.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// Entries of one topic that follow each other, as the bytes of one frame.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) frame: Bytes,
    /// The positions of the first and the last entry.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) events: usize,
}

impl Stretch {
    fn of(entry: &Entry) -> Self {
        Self { frame: entry.frame().clone(), first: entry.position(), last: entry.position(), events: 1 }
    }
}

/// Those of one row, in order.
#[derive(Default)]
pub(super) struct Blocks(VecDeque<Block>);

struct Block {
    /// The positions of the first and the newest entry that were ever in it.
    first: u64,
    newest: u64,
    entries: usize,
    bytes: usize,
    /// What it holds, in one piece.
    joined: Option<Joined>,
}

struct Joined {
    frame: Bytes,
    /// Position and end of each entry.
    ends: Box<[(u64, usize)]>,
}

impl Blocks {
    fn of(entries: &VecDeque<Arc<Entry>>) -> Self {
        let mut blocks = Self::default();
        for entry in entries {
            blocks.push(entry);
        }
        blocks
    }

    /// Says how much memory that frees here, as `remove` does.
    pub(super) fn push(&mut self, entry: &Entry) -> usize {
        let (position, len) = (entry.position(), entry.frame().len());
        // What an end without an event looks like is for each subscription to say.
        let fits = |block: &&mut Block| block.bytes + len <= FRAME_TARGET && !entry.record().is_bare_finish();
        if let Some(block) = self.0.back_mut().filter(fits) {
            block.newest = position;
            block.entries += 1;
            block.bytes += len;
            return block.split();
        }
        self.0.push_back(Block { first: position, newest: position, entries: 1, bytes: len, joined: None });
        0
    }

    /// Takes in that an entry is gone, the oldest one or another.
    pub(super) fn remove(&mut self, entry: &Entry, oldest: bool) -> usize {
        let Some(index) = self.find(entry.position()) else { return 0 };
        let block = &mut self.0[index];
        block.entries -= 1;
        block.bytes -= entry.frame().len();
        if block.entries == 0 {
            return self.0.remove(index).map_or(0, |mut block| block.split());
        }
        // What stands behind the oldest is still whole.
        if oldest { 0 } else { block.split() }
    }

    fn find(&self, position: u64) -> Option<usize> {
        let last = self.0.len().checked_sub(1)?;
        let at_end = self.0[last].first <= position;
        Some(if at_end { last } else { self.0.partition_point(|block| block.newest < position) })
    }
}

impl Block {
    fn split(&mut self) -> usize {
        self.joined.take().map_or(0, |joined| joined.cost())
    }
}

impl Joined {
    fn new<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>, count: usize, bytes: usize) -> Self {
        let (mut frame, mut ends) = (BytesMut::with_capacity(bytes), Vec::with_capacity(count));
        for entry in entries.take(count) {
            frame.extend_from_slice(entry.frame());
            ends.push((entry.position(), frame.len()));
        }
        Self { frame: frame.freeze(), ends: ends.into() }
    }

    /// What it has from a position on, unless that is nothing.
    fn from(&self, position: u64) -> Option<Stretch> {
        let next = self.ends.partition_point(|(at, _)| *at < position);
        let start = next.checked_sub(1).map_or(0, |before| self.ends[before].1);
        let (first, last) = (self.ends.get(next)?.0, self.ends.last()?.0);
        Some(Stretch { frame: self.frame.slice(start..), first, last, events: self.ends.len() - next })
    }

    fn cost(&self) -> usize {
        self.frame.len() + size_of_val(&*self.ends)
    }
}

impl Row {
    /// What stands at an index and behind it in its block, as one frame; adds what had to be joined for it to `cost`.
    fn stretch_at(&mut self, index: usize, cost: &mut usize) -> Option<Stretch> {
        let first = &self.entries[index];
        let blocks = self.blocks.get_or_insert_with(|| Box::new(Blocks::of(&self.entries)));
        let found = blocks.find(first.position())?;
        let block = &mut blocks.0[found];
        if block.entries == 1 {
            return Some(Stretch::of(first));
        }
        if block.joined.is_none() {
            let start = self.entries.partition_point(|entry| entry.position() < block.first);
            let joined = Joined::new(self.entries.range(start..), block.entries, block.bytes);
            *cost += joined.cost();
            block.joined = Some(joined);
        }
        block.joined.as_ref()?.from(first.position())
    }
}

#[cfg(test)]
impl Row {
    pub(super) fn joined_cost(&self) -> usize {
        let blocks = self.blocks.iter().flat_map(|blocks| &blocks.0);
        blocks.filter_map(|block| block.joined.as_ref()).map(Joined::cost).sum()
    }
}

impl Shelf {
    /// What some rows have after a position as one frame, if it is of one row; and whether that is all there is. An end
    /// without an event is not in a frame.
    #[inline]
    pub(crate) fn stretch_after(
        &mut self,
        rows: impl Iterator<Item = usize>,
        position: u64,
    ) -> Option<(Stretch, bool)> {
        let mut rows = rows.filter(|row| self.has_after(*row, position));
        let (row, None) = (rows.next()?, rows.next()) else { return None };
        drop(rows);
        let it = &self.rows[row];
        let index = it.after(position);
        let first = it.entries.get(index).filter(|entry| !entry.record().is_bare_finish())?;
        if index + 1 == it.entries.len() {
            // The usual case: it is read as it is published.
            return Some((Stretch::of(first), true));
        }
        let stretch = self.joined_at(row, index)?;
        let all = stretch.last == self.rows[row].newest();
        Some((stretch, all))
    }

    fn joined_at(&mut self, row: usize, index: usize) -> Option<Stretch> {
        let it = &mut self.rows[row];
        if it.blocks.is_none() {
            self.with_blocks.push(row);
        }
        let stretch = it.stretch_at(index, &mut self.joined);
        if self.with_blocks.len() > 64 + 2 * self.rows.len() {
            self.drop_blocks();
        } else if self.joined > MOST_BYTES {
            self.drop_joined();
        }
        stretch
    }

    /// Where blocks begin and end stays: to find that again takes a look at every entry of a row.
    fn drop_joined(&mut self) {
        for row in &self.with_blocks {
            if let Some(blocks) = self.rows.get_mut(*row).and_then(|it| it.blocks.as_mut()) {
                blocks.0.iter_mut().for_each(|block| block.joined = None);
            }
        }
        self.joined = 0;
    }

    /// They are made anew where they are needed.
    pub(super) fn drop_blocks(&mut self) {
        for row in self.with_blocks.drain(..) {
            if let Some(it) = self.rows.get_mut(row) {
                it.blocks = None;
            }
        }
        self.joined = 0;
    }
}
