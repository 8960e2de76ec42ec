//! [`Cursor`]: a place in a log, and its text form, which is the `id:` of an event.
//!
//! Invariant: a cursor has one text form and a text form one cursor. Runs are compared for equality, never for order.

use crate::{EventId, LastEventId};
use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    str::FromStr,
    time::SystemTime,
};

/// One opening of one log: positions of the same run can be compared, positions of different runs cannot.
///
/// The epoch is drawn at random when a log is created, so that an id of another deployment, or of a log that was lost,
/// is recognised. The number is another one whenever the log is opened anew or may have been rewound, because positions past
/// the point where it was opened may be given a second time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    /// Which log.
    pub epoch: u64,
    /// Which opening of that log. The first may have 0; to be sure that no other has the same, draw it.
    pub number: u32,
}

impl Run {
    /// The first run of a new log.
    #[must_use]
    pub fn new_log() -> Self {
        // The keys come from the operating system's randomness. The time is there for a process image that was forked
        // or restored with its keys.
        let epoch = RandomState::new().hash_one((SystemTime::now(), std::process::id()));
        Self { epoch, number: 0 }
    }

    /// What the text forms of all its cursors end with.
    pub(crate) fn text(self) -> CursorText {
        let mut text = CursorText { bytes: [0; CursorText::MAX], start: CursorText::MAX };
        text.prepend_number::<36>(self.epoch);
        text.prepend(b'.');
        text.prepend_number::<10>(self.number.into());
        text.prepend(b'.');
        text
    }

    /// The cursor of a position in this run.
    #[must_use]
    pub const fn at(self, position: u64) -> Cursor {
        Cursor { run: self, position }
    }
}

/// A place in a log: after the event with this position, before the next.
///
/// Its text form is what clients receive as `id:` and send back as `Last-Event-ID`. It is short (at most 45 bytes), has
/// only characters that a browser sends across origins without a preflight, and is opaque to clients. It does tell how
/// many events the whole hub has had: do not give it to those who must not know.
///
/// ```
/// use tidings::replay::Run;
///
/// let cursor = Run { epoch: 35, number: 0 }.at(17);
/// assert_eq!(cursor.to_string(), "17.0.z");
/// assert_eq!("17.0.z".parse(), Ok(cursor));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    run: Run,
    position: u64,
}

impl Cursor {
    /// The run that gave the position.
    #[must_use]
    pub const fn run(self) -> Run {
        self.run
    }

    /// The position, from 1; 0 is the place before the first event.
    #[must_use]
    pub const fn position(self) -> u64 {
        self.position
    }

    /// The place just before this one.
    pub(crate) const fn before(self) -> Self {
        Self { position: self.position.saturating_sub(1), ..self }
    }

    /// The text form without an allocation.
    pub(crate) fn text(self) -> CursorText {
        self.run.text().at(self.position)
    }
}

/// A [`Cursor`] as text, written from its end, which is the same for all of one run.
#[derive(Clone, Copy)]
pub(crate) struct CursorText {
    bytes: [u8; Self::MAX],
    start: usize,
}

impl CursorText {
    /// 20 digits, 10 digits, 13 digits of base 36, two dots.
    const MAX: usize = 45;

    /// What a run's text is before a position.
    pub(crate) fn at(mut self, position: u64) -> Self {
        self.prepend_number::<10>(position);
        self
    }

    fn prepend(&mut self, byte: u8) {
        self.start -= 1;
        self.bytes[self.start] = byte;
    }

    // The base is known to the compiler, because dividing by what it does not know takes several times as long.
    fn prepend_number<const BASE: u64>(&mut self, mut number: u64) {
        loop {
            let [digit, ..] = (number % BASE).to_le_bytes();
            self.prepend(b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::from(digit)]);
            number /= BASE;
            if number == 0 {
                return;
            }
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        // Only ASCII was written.
        std::str::from_utf8(&self.bytes[self.start..]).unwrap_or_default()
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({})", self.text().as_str())
    }
}

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let parse = || {
            let (position, run) = text.split_once('.')?;
            let (number, epoch) = run.split_once('.')?;
            let run = Run { epoch: u64::from_str_radix(epoch, 36).ok()?, number: number.parse().ok()? };
            Some(run.at(position.parse().ok()?))
        };
        // Signs, leading zeros and capitals are read by the standard library, but are not what was sent.
        parse().filter(|cursor: &Self| cursor.text().as_str() == text).ok_or(ParseCursorError(()))
    }
}

impl From<Cursor> for EventId {
    fn from(cursor: Cursor) -> Self {
        // The text form has nothing that an id refuses.
        EventId::new(cursor.text().as_str()).unwrap_or(EventId::from_static(""))
    }
}

impl From<Cursor> for LastEventId {
    fn from(cursor: Cursor) -> Self {
        cursor.text().as_str().into()
    }
}

/// The text is not the id of any event of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseCursorError(());

impl fmt::Display for ParseCursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an id of this kind of hub: expected POSITION.RUN.EPOCH")
    }
}

impl std::error::Error for ParseCursorError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_cursor_are_one_to_one() {
        for run in [Run { epoch: 0, number: 0 }, Run { epoch: u64::MAX, number: u32::MAX }, Run::new_log()] {
            for position in [0, 1, 9, 10, u64::MAX] {
                let cursor = run.at(position);
                let text = cursor.to_string();
                assert_eq!(text.parse(), Ok(cursor));
                assert!(text.len() <= 45);
                assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b)));
            }
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", ".", "1", "1.0", "1.0.", "01.0.z", "+1.0.z", "1.0.Z", "1.0.z ", " 1.0.z", "1.0.z.", "-1.0.z"] {
            assert!(text.parse::<Cursor>().is_err(), "{text:?}");
        }
        assert!("99999999999999999999999.0.z".parse::<Cursor>().is_err());
        assert!("1.0.zzzzzzzzzzzzzz".parse::<Cursor>().is_err());
    }

    #[test]
    fn logs_do_not_share_an_epoch() {
        assert_ne!(Run::new_log(), Run::new_log());
    }
}
