//! What the hubs of several nodes tell each other, beside what is in the log that they share.
//!
//! Invariants: a hub does not hear itself; a message that it does not understand, of another version or by someone else,
//! changes nothing.

use super::{
    Shared,
    end::{End, EndReason},
    member::Subscriber,
    publish,
};
use crate::{
    Topic,
    replay::{
        Notice,
        codec::{CodecError, Reader, Writer},
    },
};
use std::sync::Arc;

/// The first byte of a message. Others are for later versions.
const VERSION: u8 = 1;

/// One message, to all other nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Control {
    /// End the subscriptions of a topic.
    EndTopic { topic: Topic, reason: EndReason },
    /// End those that have a label.
    EndLabelled { name: String, value: String, reason: EndReason },
    /// Ask the producers of a topic to stop.
    Stop { topic: Topic },
    /// Take in a client's heartbeat, if its session is here, and tell who asks.
    #[cfg(feature = "client-heartbeats")]
    Heartbeat { token: Vec<u8>, question: u64 },
    /// It is here.
    #[cfg(feature = "client-heartbeats")]
    Known { question: u64 },
}

impl Control {
    fn encode(&self, node: u64) -> Vec<u8> {
        let mut out = Writer::with_capacity(64);
        out.byte(VERSION);
        out.number(node);
        match self {
            Self::EndTopic { topic, reason } => {
                out.byte(1);
                out.text(topic.as_key());
                out.text(reason.as_str());
            }
            Self::EndLabelled { name, value, reason } => {
                out.byte(2);
                out.text(name);
                out.text(value);
                out.text(reason.as_str());
            }
            Self::Stop { topic } => {
                out.byte(3);
                out.text(topic.as_key());
            }
            #[cfg(feature = "client-heartbeats")]
            Self::Heartbeat { token, question } => {
                out.byte(4);
                out.number(*question);
                out.bytes(token);
            }
            #[cfg(feature = "client-heartbeats")]
            Self::Known { question } => {
                out.byte(5);
                out.number(*question);
            }
        }
        out.0
    }

    /// Who says it, and what; nothing if that is for another version.
    fn decode(bytes: &[u8]) -> Result<Option<(u64, Self)>, CodecError> {
        let mut input = Reader(bytes);
        if input.byte()? != VERSION {
            return Ok(None);
        }
        let node = input.number()?;
        let reason = |input: &mut Reader<'_>| Ok(EndReason::from_word(input.text()?));
        let message = match input.byte()? {
            1 => Self::EndTopic { topic: input.topic()?, reason: reason(&mut input)? },
            2 => {
                let (name, value) = (input.text()?.to_owned(), input.text()?.to_owned());
                Self::EndLabelled { name, value, reason: reason(&mut input)? }
            }
            3 => Self::Stop { topic: input.topic()? },
            #[cfg(feature = "client-heartbeats")]
            4 => Self::Heartbeat { question: input.number()?, token: input.bytes()?.to_vec() },
            #[cfg(feature = "client-heartbeats")]
            5 => Self::Known { question: input.number()? },
            _ => return Ok(None),
        };
        Ok(Some((node, message)))
    }
}

impl Shared {
    /// Tells all other nodes, if there are any. Says whether it is on its way.
    pub(super) fn tell_others(self: &Arc<Self>, message: &Control) -> bool {
        let notice = || Notice::Control(message.encode(self.node).into());
        let told = self.has_feed.then(|| publish::notify(self, notice()));
        if let Some(Err(_)) = told {
            self.counters.notify_errors(1);
        }
        matches!(told, Some(Ok(())))
    }

    /// Does what another node says.
    pub(super) fn hear(self: &Arc<Self>, message: &[u8]) {
        let Ok(Some((node, message))) = Control::decode(message) else { return };
        if node == self.node {
            return;
        }
        match message {
            Control::EndTopic { topic, reason } => drop(self.end_topic(&topic, reason)),
            Control::EndLabelled { name, value, reason } => {
                self.end_where(|subscriber| subscriber.label(&name) == Some(&value), reason);
            }
            Control::Stop { topic } => drop(self.window.ask_to_stop(&topic)),
            #[cfg(feature = "client-heartbeats")]
            Control::Heartbeat { token, question } => {
                if self.heartbeat(&token) {
                    self.tell_others(&Control::Known { question });
                }
            }
            #[cfg(feature = "client-heartbeats")]
            Control::Known { question } => self.sessions.answered(question),
        }
    }

    pub(super) fn end_topic(&self, topic: &Topic, reason: EndReason) -> usize {
        self.tell(&self.window.members_of(topic), End { reason, at_once: true })
    }

    pub(super) fn end_where(self: &Arc<Self>, mut picks: impl FnMut(&Subscriber) -> bool, reason: EndReason) -> usize {
        let subscribers = self.window.members().into_iter().map(|member| Subscriber::new(member, self));
        let picked: Vec<_> = subscribers.filter(|subscriber| picks(subscriber)).map(|picked| picked.member).collect();
        self.tell(&picked, End { reason, at_once: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were_and_others_are_left_alone() {
        let topic = Topic::scoped("acme", "orders").unwrap();
        let reason = EndReason::application("logged-out");
        let messages = [
            Control::EndTopic { topic: topic.clone(), reason: EndReason::Drained },
            Control::EndTopic { topic: topic.clone(), reason },
            Control::EndLabelled { name: "user".into(), value: "\n\u{0}".into(), reason },
            Control::Stop { topic },
            #[cfg(feature = "client-heartbeats")]
            Control::Heartbeat { token: vec![0, 255], question: u64::MAX },
            #[cfg(feature = "client-heartbeats")]
            Control::Known { question: 0 },
        ];
        for message in messages {
            let bytes = message.encode(7);
            assert_eq!(Control::decode(&bytes), Ok(Some((7, message))));
            for end in 0..bytes.len() {
                assert!(Control::decode(&bytes[..end]).is_err(), "{bytes:?} cut to {end}");
            }
        }
        let (later, unknown) = ([2, 7, 1], [VERSION, 7, 99]);
        assert_eq!((Control::decode(&later), Control::decode(&unknown)), (Ok(None), Ok(None)));
    }
}
