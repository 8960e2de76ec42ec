//! What no disk at hand does when it is asked to: commits that fail at their end.

use super::{
    super::{Options, read::Readers},
    *,
};
use crate::{
    Event,
    replay::{Durable, Read, ReadFrom, Run},
};
use std::{
    path::PathBuf,
    sync::{atomic::AtomicUsize, mpsc},
    thread::JoinHandle,
};
use tokio::sync::oneshot::{self, Receiver as Answer};

const T: Topic = Topic::from_static("t");

/// A writer whose next commits fail, as many as is said.
struct Bench {
    folder: PathBuf,
    run: Run,
    seen: Arc<Seen>,
    readers: Arc<Readers>,
    jobs: Option<mpsc::Sender<Job>>,
    fail: Arc<AtomicUsize>,
    writer: Option<Writer>,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    fn new(options: Options) -> Self {
        let keeps_all = options.age > Duration::from_secs(3600);
        let folder = std::env::temp_dir().join(format!("tidings-writer-{}", Run::new_log().epoch));
        let files = Files::open(&folder, &options).unwrap();
        let fail = Arc::new(AtomicUsize::new(0));
        let failing = Arc::clone(&fail);
        let fails = move || failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        files.db.commit_hook(Some(fails));
        let (run, seen) = (files.run, Arc::<Seen>::default());
        let readers = Readers::new(folder.clone(), run, Arc::clone(&seen));
        let (jobs, asked) = mpsc::channel();
        let mut writer = Writer::new(files, Log::new(options, run), asked, Arc::clone(&seen));
        if keeps_all {
            // So that it is known which commit fails.
            writer.trim_at += Duration::from_secs(3600);
        }
        Self { folder, run, seen, readers, jobs: Some(jobs), fail, writer: Some(writer), thread: None }
    }

    fn start(mut self) -> Self {
        let writer = self.writer.take().unwrap();
        self.thread = Some(std::thread::spawn(move || writer.run()));
        self
    }

    fn append(&self, text: &str) -> Answer<Result<Outcomes, AppendError>> {
        let (reply, answer) = oneshot::channel();
        let record = Record::new(T, Event::new().data(text));
        self.jobs.as_ref().unwrap().send(Job::Append([record].into(), reply)).unwrap();
        answer
    }

    async fn held(&self) -> Result<Vec<String>, ReadError> {
        let page = self.readers.page(Read::new(T, ReadFrom::Earliest)).await?;
        Ok(page.entries.iter().map(|entry| entry.record().data().unwrap().into_owned()).collect())
    }

    fn end(&mut self) {
        self.jobs = None;
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn those_who_wait_share_one_commit_and_are_answered_in_their_order() {
    let bench = Bench::new(Durable::builder().options);
    let answers: Vec<_> = (0..64).map(|n: usize| bench.append(&n.to_string())).collect();
    let (reply, forgotten) = oneshot::channel();
    bench.jobs.as_ref().unwrap().send(Job::Forget(T, reply)).unwrap();
    let mut bench = bench.start();
    bench.end();
    for (position, mut answer) in (1..).zip(answers) {
        assert_eq!(answer.try_recv().unwrap().unwrap(), [Ok(bench.run.at(position))]);
    }
    forgotten.blocking_recv().unwrap().unwrap();
    assert_eq!(bench.seen.commits.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_commit_that_failed_and_was_overwritten_is_refused() {
    let bench = Bench::new(Durable::builder().options).start();
    bench.append("1").await.unwrap().unwrap();
    bench.fail.store(1, Ordering::SeqCst);
    let error = bench.append("2").await.unwrap().unwrap_err();
    assert!(!error.is_unknown(), "{error:?}");
    assert_eq!(bench.held().await.unwrap(), ["1"]);
    assert_eq!(bench.append("3").await.unwrap().unwrap(), [Ok(bench.run.at(2))]);
    assert_eq!(bench.held().await.unwrap(), ["1", "3"]);
}

#[tokio::test]
async fn while_a_commit_may_come_back_nothing_is_read_or_appended() {
    let bench = Bench::new(Durable::builder().options).start();
    bench.append("1").await.unwrap().unwrap();
    // The commit, and what is to say that it cannot come back.
    bench.fail.store(usize::MAX, Ordering::SeqCst);
    let error = bench.append("2").await.unwrap().unwrap_err();
    assert!(error.is_unknown());
    assert!(bench.held().await.is_err(), "nobody can say what there is");
    let error = bench.append("3").await.unwrap().unwrap_err();
    assert!(!error.is_unknown(), "this one was not given to the disk");
    bench.fail.store(0, Ordering::SeqCst);
    // It is tried again by itself.
    let held = loop {
        match bench.held().await {
            Ok(held) => break held,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(held, ["1"]);
    assert_eq!(bench.append("4").await.unwrap().unwrap(), [Ok(bench.run.at(2))]);
    assert_eq!(bench.held().await.unwrap(), ["1", "4"]);
}

#[tokio::test]
async fn what_is_acknowledged_before_it_is_synced_is_synced_in_time_and_at_the_end() {
    let options = Durable::builder().sync_every(Duration::from_millis(20)).options;
    let bench = Bench::new(options).start();
    bench.append("1").await.unwrap().unwrap();
    let syncs = || bench.seen.syncs.load(Ordering::Relaxed);
    while syncs() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(bench);
    let options = Durable::builder().sync_every(Duration::from_secs(3600)).options;
    let mut bench = Bench::new(options).start();
    for n in 0..10 {
        bench.append(&n.to_string()).await.unwrap().unwrap();
    }
    assert_eq!((bench.seen.syncs.load(Ordering::Relaxed), bench.seen.commits.load(Ordering::Relaxed)), (0, 10));
    bench.end();
    assert_eq!(bench.seen.syncs.load(Ordering::Relaxed), 1);
}

#[test]
fn an_idle_log_writes_nothing() {
    let options = Durable::builder().max_age(Duration::from_millis(4)).options;
    let mut bench = Bench::new(options).start();
    bench.append("1").blocking_recv().unwrap().unwrap();
    // Appended, and then removed for its age.
    while bench.seen.commits.load(Ordering::Relaxed) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(100));
    bench.end();
    assert_eq!(bench.seen.commits.load(Ordering::Relaxed), 2);
}
