//! Random scripts against a model: whatever happens, a client that comes back with its last id sees every event of its
//! topics once and in order, or is told of a gap before the first event after it; and its stream ends when all its topics
//! are finished, and not before.
//!
//! `TIDINGS_SCRIPTS=100000 cargo test --release --test model` runs longer. A failure prints the shortest script and the
//! seed; with `TIDINGS_SEED=<seed>` the same scripts run again.

use futures_util::StreamExt;
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{RngAlgorithm, TestError, TestRng, TestRunner},
};
use std::{
    env, panic,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tidings::{
    EndReason, Event, Gap, GapReason, Hub, Message, Resume, Subscription, Topic, Topics,
    replay::{AppendError, Cursor, Kind, Page, Read, ReadError, ReadFrom, Record, Refused, ReplayStore, Run},
};
use tokio::time::{sleep, timeout};

const TOPICS: usize = 2;
const CLIENTS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(usize, Answer),
    /// With a last event, or without.
    Finish(usize, bool, Answer),
    Forget(usize),
    /// A client connects with what it has, if it is not connected.
    Connect(usize),
    Cut(usize),
    /// A client reads up to so many messages; those who do not read lag behind.
    Read(usize, usize),
    /// The same, but a page of the store is on its way until the client reads again.
    ReadSlowly(usize, usize),
    /// The store lets go all but so many of the newest records.
    Evict(usize),
    /// The hub and its store are opened anew; so many of the newest records were lost.
    Restart(usize),
    /// The log is lost altogether.
    NewLog,
}

/// What the store answers to an append.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Answer {
    #[default]
    Known,
    /// Known, but on its way until the next step that changes the log. The publisher does not wait for it.
    Late,
    UnknownNotTaken,
    UnknownTaken,
    /// It was taken, and everything was evicted before the hub asks.
    UnknownEvicted,
}

fn step() -> impl Strategy<Value = Step> {
    let (topic, client, count) = (0..TOPICS, 0..CLIENTS, 1..6usize);
    let others = [Answer::Late, Answer::UnknownNotTaken, Answer::UnknownTaken, Answer::UnknownEvicted];
    let answer = prop_oneof![2 => Just(Answer::Known), 1 => select(others.to_vec())];
    prop_oneof![
        8 => (topic.clone(), answer.clone()).prop_map(|(topic, answer)| Step::Publish(topic, answer)),
        3 => (topic.clone(), any::<bool>(), answer).prop_map(|(topic, event, answer)| Step::Finish(topic, event, answer)),
        2 => topic.prop_map(Step::Forget),
        6 => client.clone().prop_map(Step::Connect),
        2 => client.clone().prop_map(Step::Cut),
        5 => (client.clone(), count.clone()).prop_map(|(client, count)| Step::Read(client, count)),
        3 => (client, count.clone()).prop_map(|(client, count)| Step::ReadSlowly(client, count)),
        1 => count.prop_map(Step::Evict),
        2 => (0..3usize).prop_map(Step::Restart),
        1 => Just(Step::NewLog),
    ]
}

/// A log that can lose its end, and be opened anew.
#[derive(Clone)]
struct Log(Arc<Mutex<Truth>>);

/// Every record of the log as it is, also those that it no longer holds.
#[derive(Default)]
struct Truth {
    epoch: u64,
    /// Where each run began, after the first.
    began: Vec<u64>,
    position: u64,
    records: Vec<Stored>,
    next_answer: Answer,
    slow_reads: bool,
    /// What comes after is stored, and the hub does not know it yet.
    shown: u64,
}

struct Stored {
    position: u64,
    record: Record,
    held: bool,
    forgotten: bool,
}

fn topic(index: usize) -> Topic {
    Topic::new(format!("{index}")).unwrap()
}

impl Truth {
    fn at(&self, position: u64) -> Cursor {
        Run { epoch: self.epoch, number: self.began.len().try_into().unwrap() }.at(position)
    }

    fn head(&self) -> Cursor {
        self.at(self.position)
    }

    fn show_all(&mut self) {
        self.shown = self.position;
    }

    fn is_ahead(&self) -> bool {
        self.shown < self.position
    }

    fn is_good(&self, id: Cursor) -> bool {
        let later = self.began.get(usize::try_from(id.run().number).unwrap()..);
        let is_before = |later: &[u64]| later.iter().chain([&self.position]).all(|began| id.position() <= *began);
        id.run().epoch == self.epoch && later.is_some_and(is_before)
    }

    fn of(&self, topics: &Topics) -> impl Iterator<Item = &Stored> {
        self.records.iter().filter(|stored| topics.contains(stored.record.topic()))
    }

    /// What clients see: a finish without an event is only an end.
    fn events(&self, topics: &Topics) -> impl Iterator<Item = &Stored> {
        self.of(topics).filter(|stored| !stored.record.body().is_empty())
    }

    fn gone(&self, topics: &Topics) -> impl Iterator<Item = u64> {
        self.of(topics).filter(|stored| !stored.held).map(|stored| stored.position)
    }

    /// Whether topics were finished at or before a position.
    fn are_finished<'a>(&self, topics: impl IntoIterator<Item = &'a Topic>, position: u64) -> bool {
        topics.into_iter().all(|topic| {
            let newest = self.records.iter().rfind(|stored| stored.record.topic() == topic && !stored.forgotten);
            newest.is_some_and(|newest| newest.record.kind() == Kind::Finish && newest.position <= position)
        })
    }

    fn push(&mut self, record: &Record) -> Result<Cursor, Refused> {
        if self.are_finished([record.topic()], u64::MAX) {
            return Err(Refused::Finished);
        }
        self.position += 1;
        self.records.push(Stored { position: self.position, record: record.clone(), held: true, forgotten: false });
        Ok(self.head())
    }

    fn evict(&mut self, keep: usize) {
        let held = self.records.iter_mut().rev().filter(|stored| stored.held);
        held.skip(keep).for_each(|stored| stored.held = false);
    }

    fn reopen(&mut self, lost: usize) {
        let held = self.records.iter().enumerate().rev().filter(|(_, stored)| stored.held);
        if let Some((kept, _)) = held.take(lost).last() {
            self.position = self.records[kept].position - 1;
            self.records.truncate(kept);
        }
        self.began.push(self.position);
    }
}

impl Log {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Truth { epoch: Run::new_log().epoch, ..Truth::default() })))
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.0.lock().unwrap()
    }

    /// Waits until the hub knows what is stored.
    async fn settle(&self) {
        if self.truth().is_ahead() {
            sleep(Duration::from_secs(2)).await;
            self.truth().show_all();
        }
    }
}

impl ReplayStore for Log {
    async fn head(&self) -> Result<Cursor, ReadError> {
        Ok(self.truth().head())
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let answer = std::mem::take(&mut self.truth().next_answer);
        let taken = if answer == Answer::UnknownNotTaken { &[] } else { &records[..] };
        let outcomes: Vec<_> = taken.iter().map(|record| self.truth().push(record)).collect();
        if answer == Answer::UnknownEvicted {
            self.truth().evict(0);
        }
        if answer == Answer::Late && outcomes.iter().all(Result::is_ok) {
            sleep(Duration::from_secs(1)).await;
        }
        let known = matches!(answer, Answer::Known | Answer::Late);
        if known { Ok(outcomes) } else { Err(AppendError::unknown("scripted")) }
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        let page = self.truth().page(&read);
        if self.truth().slow_reads {
            tokio::task::yield_now().await;
        }
        Ok(page)
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        let mut truth = self.truth();
        let all = truth.records.iter_mut().filter(|stored| *stored.record.topic() == topic);
        all.for_each(|stored| (stored.held, stored.forgotten) = (false, true));
        Ok(())
    }
}

impl Truth {
    fn page(&self, read: &Read) -> Page {
        let mut page = Page::new(self.head());
        let after = match read.from {
            ReadFrom::After(after) if !self.is_good(after) => return Page::foreign(page.through),
            ReadFrom::After(after) => after.position(),
            ReadFrom::Earliest => 0,
            _ => unreachable!("no client here asks for it"),
        };
        page.floor = self.gone(&read.topics).max().unwrap_or(0);
        for stored in self.of(&read.topics).filter(|stored| stored.held && stored.position > after) {
            if page.entries.len() == read.max_events {
                page.through = page.entries.last().unwrap().cursor();
                break;
            }
            page.push(self.at(stored.position), stored.record.clone());
        }
        let is_finished = |topic: &&Topic| self.are_finished([*topic], page.through.position());
        page.finished = read.topics.iter().filter(is_finished).cloned().collect();
        page
    }
}

/// What a client may see: each event of its topics, in order, but for those that are gone and that it was told of.
struct Expected {
    topics: Topics,
    /// It saw the events up to here.
    seen: u64,
    /// It was told of what is gone up to here.
    told: u64,
    /// Its id is none of this log, and it is to be told so before anything else.
    foreign: bool,
}

impl Expected {
    /// Without an id of this log: with what comes from now on, but topics that are all finished have no "now".
    fn begin(&mut self, truth: &Truth, now: u64) {
        self.seen = if truth.are_finished(&self.topics, now) { 0 } else { now };
        self.told = truth.gone(&self.topics).max().unwrap_or(0);
    }

    /// The events that it is to see.
    fn due(&self, truth: &Truth) -> impl Iterator<Item = u64> {
        let due = truth.events(&self.topics).filter(|stored| stored.held || stored.position > self.told);
        due.map(|stored| stored.position).filter(|position| *position > self.seen)
    }

    fn event(&mut self, truth: &Truth, position: u64) {
        assert!(!self.foreign, "what the client had was lost, and it was not told");
        assert!(position > self.seen, "an event was repeated, or came too late");
        assert!(truth.events(&self.topics).any(|stored| stored.position == position), "not an event of its topics");
        assert_eq!(self.due(truth).find(|due| *due < position), None, "an event was skipped");
        self.seen = position;
    }

    fn gap(&mut self, truth: &Truth, gap: Gap) {
        assert_eq!(gap.reason == GapReason::Foreign, self.foreign, "a gap for the wrong reason");
        if !std::mem::take(&mut self.foreign) {
            let missing = self.seen.max(gap.after.unwrap().position()) + 1..=gap.through.position();
            assert!(truth.gone(&self.topics).any(|gone| missing.contains(&gone)), "a gap, and nothing is missing");
            self.told = gap.through.position();
        }
    }

    /// It has everything: before the end at least what the hub knows.
    fn level(&self, truth: &Truth, has_ended: bool) {
        let through = if has_ended { u64::MAX } else { truth.shown };
        assert!(!self.foreign, "what the client had was lost, and it was not told");
        assert_eq!(self.due(truth).find(|due| *due <= through), None, "an event did not come");
        assert_eq!(has_ended, truth.are_finished(&self.topics, through), "whether the stream has ended");
    }
}

struct Client {
    id: Option<Cursor>,
    subscription: Option<Subscription>,
    waits: Arc<Waits>,
    expected: Expected,
}

/// Whether a client was told to wait, and not yet woken.
#[derive(Default)]
struct Waits(Mutex<bool>);

impl Wake for Waits {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = false;
    }
}

impl Client {
    async fn connect(&mut self, hub: &Hub, log: &Log) {
        let topics = &self.expected.topics;
        let subscribe = || hub.subscribe(topics.clone()).resume(self.id).opened();
        let (subscription, again) = (subscribe().await.unwrap(), subscribe().await.unwrap());
        let (outcome, truth) = (subscription.outcome().unwrap(), log.truth());
        let expected = match self.id {
            None => Resume::Fresh,
            Some(id) if !truth.is_good(id) => Resume::Gap(GapReason::Foreign),
            // What was evicted may still be on the window; what was forgotten is nowhere.
            Some(id)
                if truth.of(topics).any(|it| {
                    it.position > id.position() && (it.forgotten || !it.held && outcome != Resume::Resumed)
                }) =>
            {
                Resume::Gap(GapReason::Evicted)
            }
            Some(_) => Resume::Resumed,
        };
        assert_eq!(outcome, expected);
        let has_all = |id: Cursor| truth.of(topics).all(|stored| stored.position <= id.position());
        let is_complete = outcome == Resume::Resumed && self.id.is_some_and(has_all);
        let is_complete = is_complete && truth.are_finished(topics, u64::MAX);
        let status = again.into_http_response().status();
        assert_eq!(status == 204, is_complete, "whether an EventSource is stopped for good");
        match (outcome, self.id) {
            (Resume::Fresh, _) => self.expected.begin(&truth, truth.shown),
            (Resume::Gap(GapReason::Foreign), _) => self.expected.begin(&truth, truth.position),
            // It is told again of what is after its id.
            (_, id) => self.expected.told = self.expected.told.min(id.unwrap().position()),
        }
        self.expected.foreign = outcome == Resume::Gap(GapReason::Foreign);
        self.subscription = Some(subscription);
    }

    /// Reads up to so many messages, and says whether there is nothing more.
    fn read(&mut self, log: &Log, count: usize) -> bool {
        let waker = Waker::from(Arc::clone(&self.waits));
        for _ in 0..count {
            let Some(subscription) = &mut self.subscription else { return true };
            let next = subscription.poll_next_unpin(&mut Context::from_waker(&waker));
            let truth = log.truth();
            if next.is_ready() && !truth.is_ahead() {
                assert!(!*self.waits.0.lock().unwrap(), "it was not woken");
            }
            match next {
                Poll::Ready(Some(Ok(Message::Event(entry)))) => self.expected.event(&truth, entry.cursor().position()),
                Poll::Ready(Some(Ok(Message::Gap(gap)))) => self.expected.gap(&truth, gap),
                Poll::Ready(None) => {
                    assert_eq!(subscription.end_reason(), Some(EndReason::Finished));
                    self.expected.level(&truth, true);
                    self.cut();
                }
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending if truth.slow_reads => return false,
                Poll::Pending => {
                    self.expected.level(&truth, false);
                    *self.waits.0.lock().unwrap() = true;
                    return true;
                }
            }
        }
        false
    }

    fn cut(&mut self) {
        *self.waits.0.lock().unwrap() = false;
        if let Some(subscription) = self.subscription.take() {
            self.id = Some(subscription.cursor().unwrap());
        }
    }
}

async fn append(hub: &Hub, log: &Log, record: Record, answer: Answer) {
    let is_finished = log.truth().are_finished([record.topic()], u64::MAX);
    let before = log.truth().records.len();
    log.truth().next_answer = answer;
    let outcome = timeout(Duration::from_millis(1), hub.publish_record(record)).await;
    match (answer, outcome) {
        (Answer::Known, Ok(Ok(id))) => assert_eq!(id, log.truth().head()),
        (Answer::Known | Answer::Late, Ok(Err(error))) => assert!(is_finished && error.is_finished()),
        (Answer::Late, Err(_)) => return,
        (_, outcome) => assert!(outcome.unwrap().unwrap_err().is_unknown()),
    }
    let taken = usize::from(!is_finished && answer != Answer::UnknownNotTaken);
    assert_eq!(log.truth().records.len() - before, taken, "it is stored once, or not at all");
    log.settle().await;
}

async fn open(log: &Log, clients: &mut [Client]) -> Hub {
    log.truth().show_all();
    clients.iter_mut().for_each(Client::cut);
    Hub::builder().window_events(2).page(1, 1 << 20).open(log.clone()).await.unwrap()
}

async fn play(script: &[Step]) {
    let mut log = Log::new();
    let mut clients: [Client; CLIENTS] = std::array::from_fn(|last| {
        let topics = Topics::new((0..=last.min(TOPICS - 1)).map(topic)).unwrap();
        let expected = Expected { topics, seen: 0, told: 0, foreign: false };
        Client { id: None, subscription: None, waits: Arc::default(), expected }
    });
    let mut hub = open(&log, &mut clients).await;
    let event = || Event::new().data("");
    for step in script {
        if !matches!(step, Step::Connect(_) | Step::Cut(_) | Step::Read(..) | Step::ReadSlowly(..) | Step::Evict(_)) {
            log.settle().await;
        }
        match *step {
            Step::Publish(index, answer) => append(&hub, &log, Record::new(topic(index), event()), answer).await,
            Step::Finish(index, with_event, answer) => {
                append(&hub, &log, Record::finish(topic(index), with_event.then(event)), answer).await;
            }
            Step::Forget(index) => hub.forget(topic(index)).await.unwrap(),
            Step::Connect(client) if clients[client].subscription.is_some() => {}
            Step::Connect(client) => clients[client].connect(&hub, &log).await,
            Step::Cut(client) => clients[client].cut(),
            Step::Read(client, count) | Step::ReadSlowly(client, count) => {
                log.truth().slow_reads = matches!(step, Step::ReadSlowly(..));
                clients[client].read(&log, count);
                log.truth().slow_reads = false;
            }
            Step::Evict(keep) => log.truth().evict(keep),
            Step::Restart(lost) => log.truth().reopen(lost),
            Step::NewLog => log = Log::new(),
        }
        if matches!(step, Step::Restart(_) | Step::NewLog) {
            hub = open(&log, &mut clients).await;
        }
    }
    // In the end everyone comes back, and has everything.
    log.settle().await;
    for client in &mut clients {
        client.cut();
        client.connect(&hub, &log).await;
        assert!(client.read(&log, 1_000), "there is always more");
    }
}

fn run(script: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(play(script));
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = match env::var(name) {
        Err(env::VarError::NotPresent) => return None,
        text => text.unwrap_or_else(|error| panic!("{name}: {error}")),
    };
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(number.unwrap_or_else(|error| panic!("{name} is to be a number like 17 or 0x11, not {text:?}: {error}")))
}

#[test]
fn every_event_once_and_in_order_or_a_gap() {
    let cases = setting("TIDINGS_SCRIPTS").unwrap_or(2_000).try_into().expect("TIDINGS_SCRIPTS has up to 32 bits");
    let seed = setting("TIDINGS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &key);
    let config = ProptestConfig { cases, max_shrink_iters: 100_000, failure_persistence: None, ..Default::default() };
    // Of the many failures on the way to the shortest script, only the last is of interest.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let scripts = prop::collection::vec(step(), 1..60);
    let outcome = TestRunner::new_with_rng(config, rng).run(&scripts, |script| {
        run(&script);
        Ok(())
    });
    panic::set_hook(hook);
    if let Err(TestError::Fail(_, script)) = &outcome {
        eprintln!("TIDINGS_SEED={seed:#x} fails, in short with the script");
        for step in script {
            eprintln!("    {step:?}");
        }
        run(script);
    }
    outcome.unwrap();
}
