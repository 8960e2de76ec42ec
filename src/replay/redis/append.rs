//! Appending: one script call for a batch, sent again until it is known what came of it.
//!
//! Invariant: however often a batch is sent, it is stored once. One whose answer was that it is unknown may still be stored,
//! but not once this node has reached the server again: it appends and reads nothing before the fence is up.

use super::{
    error::CallError,
    lane::Ticket,
    link::{Link, WRITES},
    node::{Node, Retry},
    script::{Answer, Ask, Malformed},
};
use crate::replay::{AppendError, Cursor, Kind, Outcomes, Record, Refused, codec};

/// How many words a server takes in one command, but for those that every command has: with more it closes the connection.
const MOST_WORDS: usize = 1024 * 1024 - 64;

/// What an entry costs beside its bytes: as in `log.lua`.
const OVERHEAD: usize = 64;

impl Node {
    pub(super) async fn append(&self, records: &[Record]) -> Outcomes {
        let mut outcomes = Vec::with_capacity(records.len());
        let held = self.lanes.take();
        let ask = self.batch(held.ticket, records, &mut outcomes);
        if outcomes.iter().all(Option::is_some) {
            return Ok(outcomes.into_iter().flatten().collect());
        }
        if ask.keys.len() + ask.args.len() > MOST_WORDS {
            let count = records.len();
            return Err(AppendError::refused(format!("{count} events are more than the server takes in one batch")));
        }
        let mut retry = self.retry();
        // What was given up before must not come after this.
        self.fence(&mut retry).await.map_err(AppendError::refused)?;
        let mut is_unknown = false;
        loop {
            let error = match self.append_once(&ask, &mut outcomes, &retry).await {
                Ok(()) => return Ok(outcomes.into_iter().flatten().collect()),
                Err(error) => error,
            };
            is_unknown |= error.is_unknown;
            if error.is_passing && retry.again().await {
                continue;
            }
            if !is_unknown {
                return Err(AppendError::refused(error));
            }
            self.lanes.give_up(held.ticket);
            return Err(AppendError::unknown(error));
        }
    }

    fn batch(&self, ticket: Ticket, records: &[Record], outcomes: &mut Vec<Option<Result<Cursor, Refused>>>) -> Ask {
        let mut ask = Ask::default().key(self.keys.of_lane(self.lanes.node, ticket.lane));
        for limit in self.settings.limits() {
            ask = ask.number(limit);
        }
        ask = ask.number(ticket.number);
        let most = self.settings.bytes_per_topic.min(self.settings.total_bytes);
        let mut last = None;
        for record in records {
            let bytes = encode(record);
            if bytes.len() + OVERHEAD > most || u32::try_from(record.body().len()).is_err() {
                outcomes.push(Some(Err(Refused::TooLarge)));
                continue;
            }
            outcomes.push(None);
            let topic = record.topic();
            if last != Some(topic) {
                ask = self.keys.of_topic(topic).into_iter().fold(ask, Ask::key);
                last = Some(topic);
            }
            let (kind, key) = match (record.kind(), record.replaces()) {
                (Kind::Finish, _) => ("f", ""),
                (Kind::Latest, Some(key)) => ("l", key),
                (Kind::Removal, Some(key)) => ("r", key),
                // Without a key there is no place to take.
                _ => ("e", ""),
            };
            let name = record.idempotency_key().map(|key| self.keys.of_idempotency_key(topic, key)).unwrap_or_default();
            if !name.is_empty() {
                ask = ask.key(name.clone());
            }
            ask = ask.arg(topic.as_key()).arg(kind).arg(key).arg(name).arg(bytes);
        }
        ask
    }

    async fn append_once(
        &self,
        ask: &Ask,
        outcomes: &mut [Option<Result<Cursor, Refused>>],
        retry: &Retry,
    ) -> Result<(), CallError> {
        let link = self.links.get(WRITES, retry.left()).await?;
        let (head, answer) = self.ask_on(&link, &self.scripts.append, ask, retry.left()).await?;
        let open = outcomes.iter_mut().filter(|outcome| outcome.is_none());
        let malformed = |error: Malformed| CallError { is_passing: false, ..CallError::new(error, true) };
        let entered: Vec<_> = read_outcomes(head, answer).map_err(malformed)?;
        let open: Vec<_> = open.collect();
        if entered.len() != open.len() {
            return Err(malformed(Malformed));
        }
        self.wait_for_replicas(&link, retry).await?;
        open.into_iter().zip(entered).for_each(|(open, entered)| *open = Some(entered));
        Ok(())
    }

    /// On the connection that has appended: it is what was written there that is waited for.
    async fn wait_for_replicas(&self, link: &Link, retry: &Retry) -> Result<(), CallError> {
        let Some((replicas, within)) = self.settings.replicas else { return Ok(()) };
        let mut cmd = redis::cmd("WAIT");
        cmd.arg(replicas).arg(u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1));
        let waited = self.links.call(link, &cmd, retry.left()).await;
        match waited.map_err(|error| CallError { is_unknown: true, ..error })? {
            redis::Value::Int(have) if have >= i64::from(replicas) => Ok(()),
            redis::Value::Int(have) => {
                let error = format!("the events are stored, but only {have} of {replicas} replicas have them in time");
                Err(CallError { is_passing: false, ..CallError::new(error, true) })
            }
            _ => Err(CallError { is_passing: false, ..CallError::new(Malformed, true) }),
        }
    }
}

/// The length of the body, by which a script counts, and the record.
fn encode(record: &Record) -> Vec<u8> {
    let body = u32::try_from(record.body().len()).unwrap_or(u32::MAX);
    let mut bytes = body.to_be_bytes().to_vec();
    bytes.extend_from_slice(&codec::encode(record));
    bytes
}

fn read_outcomes(head: Cursor, mut answer: Answer) -> Result<Vec<Result<Cursor, Refused>>, Malformed> {
    let mut outcomes = Vec::with_capacity(answer.len());
    while !answer.is_empty() {
        let word = answer.text()?;
        let place = |position: &str| position.parse().map(|position| head.run().at(position)).map_err(|_| Malformed);
        outcomes.push(match word.strip_prefix('D') {
            Some(first) => Err(Refused::Duplicate(place(first)?)),
            None if word == "F" => Err(Refused::Finished),
            None => Ok(place(&word)?),
        });
    }
    Ok(outcomes)
}
