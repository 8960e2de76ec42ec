//! A record as bytes, for stores that keep it in one piece, and what else goes from node to node.
//!
//! Invariant: what was encoded is decoded to the same, and other bytes are an error, never a panic.

#[cfg(any(feature = "durable", feature = "redis", test))]
use super::{Kind, Record};
use crate::Topic;
use std::fmt;
#[cfg(any(feature = "durable", feature = "redis", test))]
use std::time::{Duration, SystemTime};

/// The first byte of an encoded record. A change of the format changes it.
#[cfg(any(feature = "durable", feature = "redis", test))]
const VERSION: u8 = 1;

/// A record as bytes, without its idempotency key.
#[cfg(any(feature = "durable", feature = "redis", test))]
pub(crate) fn encode(record: &Record) -> Vec<u8> {
    let mut out = Writer::with_capacity(record.size() + record.topic().as_key().len() + 32);
    out.byte(VERSION);
    out.record(record);
    out.0
}

/// The record that [`encode`] made these bytes of.
#[cfg(any(feature = "durable", feature = "redis", test))]
pub(crate) fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
    let mut input = Reader(bytes);
    match input.byte()? {
        VERSION => {}
        later => return Err(CodecError(format!("a record of format {later}, of another version of this library"))),
    }
    let record = input.record()?;
    input.end()?;
    Ok(record)
}

/// The bytes are not what was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CodecError(String);

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes that are not what was written: {}", self.0)
    }
}

impl std::error::Error for CodecError {}

/// Puts values one behind the other.
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    #[cfg(any(feature = "durable", feature = "redis", test))]
    pub(crate) fn record(&mut self, record: &Record) {
        self.text(record.topic().as_key());
        self.text(record.kind().as_str());
        // In microseconds, which is what a log keeps of it. No record was made before 1970.
        let time = record.time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.number(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        self.byte(u8::from(record.key().is_some()));
        record.key().into_iter().for_each(|key| self.text(key));
        self.number(record.labels().count() as u64);
        for (name, value) in record.labels() {
            self.text(name);
            self.text(value);
        }
        self.bytes(record.body());
    }
}

/// Takes them out again.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn byte(&mut self) -> Result<u8, CodecError> {
        let (first, rest) = self.0.split_first().ok_or_else(cut)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn number(&mut self) -> Result<u64, CodecError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                break;
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(CodecError("a number is too large".into()))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let len = usize::try_from(self.number()?).map_err(|_| cut())?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| CodecError("a text is not UTF-8".into()))
    }

    pub(crate) fn topic(&mut self) -> Result<Topic, CodecError> {
        Topic::from_key(self.text()?).map_err(|error| CodecError(error.to_string()))
    }

    #[cfg(any(feature = "durable", feature = "redis", test))]
    pub(crate) fn record(&mut self) -> Result<Record, CodecError> {
        let topic = self.topic()?;
        let kind = Kind::from_name(self.text()?).ok_or_else(|| CodecError("an unknown kind".into()))?;
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(self.number()?));
        let time = time.ok_or_else(|| CodecError("a time that no clock shows".into()))?;
        let key = if self.byte()? == 0 { None } else { Some(self.text()?) };
        let mut labels = Vec::new();
        for _ in 0..self.number()? {
            labels.push((self.text()?, self.text()?));
        }
        let record = Record::from_stored(topic, kind, self.bytes()?, time);
        let mut record = record.map_err(|error| CodecError(error.to_string()))?;
        if let Some(key) = key {
            record = record.with_key(key);
        }
        Ok(labels.into_iter().fold(record, |record, (name, value)| record.with_label(name, value)))
    }

    #[cfg(any(feature = "durable", feature = "redis", test))]
    pub(crate) fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError("there is more than there should be".into())) }
    }
}

fn cut() -> CodecError {
    CodecError("they end too early".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, EventType};

    fn records() -> Vec<Record> {
        let topic = Topic::scoped("acme", "orders").unwrap();
        let event = || Event::new().data("one\ntwo").event_type(EventType::from_static("e"));
        vec![
            Record::new(&topic, event()),
            Record::new(&topic, Event::new()).with_key("").with_label("", "").with_label("user", "7"),
            Record::latest(&topic, "k".repeat(300), event()),
            Record::removal(&topic, "\u{0}\n", event()),
            Record::finish(&topic, None),
        ]
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        for original in records() {
            let back = decode(&encode(&original)).unwrap();
            assert_eq!(back.topic(), original.topic());
            assert_eq!((back.kind(), back.key(), back.body()), (original.kind(), original.key(), original.body()));
            assert!(back.labels().eq(original.labels()));
            let late = original.time().duration_since(back.time()).unwrap();
            assert!(late < Duration::from_micros(1), "{late:?}");
        }
    }

    #[test]
    fn what_is_cut_or_altered_is_an_error_or_another_record_and_never_a_panic() {
        for original in records() {
            let whole = encode(&original);
            for end in 0..whole.len() {
                assert!(decode(&whole[..end]).is_err(), "cut to {end} of {}", whole.len());
            }
            for at in 0..whole.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut altered = whole.clone();
                    altered[at] ^= flip;
                    let _ = decode(&altered);
                }
            }
        }
    }

    #[test]
    fn numbers_of_every_size_come_back() {
        for number in [0, 1, 127, 128, 1 << 35, u64::MAX - 1, u64::MAX] {
            let mut out = Writer::with_capacity(0);
            out.number(number);
            assert_eq!(Reader(&out.0).number(), Ok(number));
        }
        assert!(Reader(&[0xff; 20]).number().is_err());
        assert!(Reader(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]).number().is_err());
    }
}
