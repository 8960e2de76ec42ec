//! What goes over the channel of the feed.
//!
//! A line of words, then items of a letter, a length, a line break and bytes:
//!
//! | line | items |
//! | --- | --- |
//! | `B epoch run prev last` | what was given the positions after `prev`: `e` a record, `g` the name of a topic that is gone |
//! | `R epoch run newest` | a run that began |
//! | `N` | notices: `e` an ephemeral record, `c` a control message |
//!
//! Invariant: bytes that are none of ours are told apart, never a panic.

use crate::{
    Topic,
    replay::{Cursor, Notice, Record, Run, codec},
};
use bytes::Bytes;

pub(super) enum Message {
    Batch { after: Cursor, items: Vec<Item> },
    Run(Cursor),
    Notices(Vec<Notice>),
}

pub(super) enum Item {
    Record(Record),
    Gone(Topic),
}

impl Message {
    /// None if the bytes are no message of this version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (line, rest) = split_line(bytes)?;
        let mut words = line.split(' ');
        match words.next()? {
            "B" => {
                let run = run(&mut words)?;
                let after = run.at(words.next()?.parse().ok()?);
                let last: u64 = words.next()?.parse().ok()?;
                let items: Vec<_> =
                    Frames(rest).map(|(kind, bytes)| Item::parse(kind, bytes)).collect::<Option<_>>()?;
                (after.position().checked_add(items.len() as u64)? == last).then_some(Self::Batch { after, items })
            }
            "R" => {
                let run = run(&mut words)?;
                Some(Self::Run(run.at(words.next()?.parse().ok()?)))
            }
            "N" => Some(Self::Notices(Frames(rest).map(|(kind, bytes)| notice(kind, bytes)).collect::<Option<_>>()?)),
            _ => None,
        }
    }

    pub(super) fn of_notices(notices: &[Notice]) -> Vec<u8> {
        let mut out = b"N\n".to_vec();
        for notice in notices {
            match notice {
                Notice::Ephemeral(record) => put(&mut out, 'e', &codec::encode(record)),
                Notice::Control(bytes) => put(&mut out, 'c', bytes),
            }
        }
        out
    }
}

impl Item {
    pub(super) fn parse(kind: u8, bytes: &[u8]) -> Option<Self> {
        match kind {
            b'e' => Some(Self::Record(decode(bytes)?)),
            b'g' => Some(Self::Gone(Topic::from_key(std::str::from_utf8(bytes).ok()?).ok()?)),
            _ => None,
        }
    }
}

/// A record as it is stored, behind the length of its body.
pub(super) fn decode(bytes: &[u8]) -> Option<Record> {
    codec::decode(bytes.get(4..)?).ok()
}

fn notice(kind: u8, bytes: &[u8]) -> Option<Notice> {
    match kind {
        b'e' => Some(Notice::Ephemeral(codec::decode(bytes).ok()?)),
        b'c' => Some(Notice::Control(Bytes::copy_from_slice(bytes))),
        _ => None,
    }
}

fn run<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Run> {
    Some(Run { epoch: words.next()?.parse().ok()?, number: words.next()?.parse().ok()? })
}

fn split_line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

fn put(out: &mut Vec<u8>, kind: char, bytes: &[u8]) {
    out.extend_from_slice(format!("{kind}{}\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

/// The items one by one. One that is cut comes out as a kind that there is not.
struct Frames<'a>(&'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let frame = || {
            let (line, rest) = split_line(self.0)?;
            let (kind, len) = line.split_at_checked(1)?;
            let (bytes, rest) = rest.split_at_checked(len.parse().ok()?)?;
            Some((kind.as_bytes()[0], bytes, rest))
        };
        let (kind, bytes, rest) = frame().unwrap_or((0, &[], &[]));
        self.0 = rest;
        Some((kind, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;

    fn record() -> Record {
        Record::latest(Topic::scoped("a", "b").unwrap(), "k\n", Event::new().data("one\ntwo"))
    }

    fn batch() -> Vec<u8> {
        let mut out = b"B 35 7 4 6\n".to_vec();
        let mut stored = 5_u32.to_be_bytes().to_vec();
        stored.extend(codec::encode(&record()));
        put(&mut out, 'e', &stored);
        put(&mut out, 'g', b"gone");
        out
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let Some(Message::Batch { after, items }) = Message::parse(&batch()) else { panic!("a batch") };
        assert_eq!(after, Run { epoch: 35, number: 7 }.at(4));
        let [Item::Record(back), Item::Gone(topic)] = &items[..] else { panic!("two items") };
        assert_eq!((back.body(), back.key()), (record().body(), Some("k\n")));
        assert_eq!(topic.as_key(), "gone");

        let notices = [Notice::Control(Bytes::from_static(b"any\n\0")), Notice::Ephemeral(record())];
        let Some(Message::Notices(back)) = Message::parse(&Message::of_notices(&notices)) else { panic!("notices") };
        let [Notice::Control(bytes), Notice::Ephemeral(back)] = &back[..] else { panic!("two notices") };
        assert_eq!((&bytes[..], back.body()), (&b"any\n\0"[..], record().body()));
    }

    #[test]
    fn what_is_cut_or_altered_is_no_message_or_another_and_never_a_panic() {
        let whole = batch();
        for end in 0..whole.len() {
            assert!(Message::parse(&whole[..end]).is_none(), "cut to {end}");
        }
        for at in 0..whole.len() {
            for flip in [1, 0x10, 0xff] {
                let mut altered = whole.clone();
                altered[at] ^= flip;
                let _ = Message::parse(&altered);
            }
        }
        for text in ["", "\n", "B", "B 1 2 3 4\n", "R 1 2\n", "B 1 2 18446744073709551615 0\ng1\na", "X\n"] {
            assert!(Message::parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
