//! [`Durable`]: the log on disk.
//!
//! It knows who does what: one thread writes ([`writer`]), connections of their own read ([`read`]). What is written is
//! for [`log`] and [`trim`] to say, what the files are for [`file`] and [`mark`].
//!
//! Invariant: nothing here blocks a thread of the runtime, but where the store is dropped.

mod builder;
mod error;
mod file;
mod log;
mod mark;
mod read;
mod trim;
mod writer;

use self::{
    builder::Options,
    file::Files,
    log::Log,
    read::Readers,
    writer::{Job, Seen, Writer},
};
pub use self::{
    builder::{DurableBuilder, DurableCheck},
    error::DurableError,
};
use super::{AppendError, Cursor, Page, Read, ReadError, Record, Refused, ReplayStore, Run};
use crate::Topic;
use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::oneshot};

/// After how long it is looked again whether another opener has let go.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[doc = include_str!("durable.md")]
pub struct Durable {
    folder: PathBuf,
    run: Run,
    readers: Arc<Readers>,
    seen: Arc<Seen>,
    /// Dropped before the thread is waited for, because that is what ends it.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Durable {
    /// Opens the log in a folder with the default options.
    ///
    /// # Errors
    ///
    /// As [`DurableBuilder::open`].
    ///
    /// # Cancel safety
    ///
    /// As [`DurableBuilder::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, DurableError> {
        Self::builder().open(path).await
    }

    /// The options of a log, to be set before it is opened.
    pub fn builder() -> DurableBuilder {
        DurableBuilder::new()
    }

    async fn open_with(options: Options, folder: PathBuf) -> Result<Self, DurableError> {
        let runtime = Handle::try_current().map_err(|_| DurableError::new(error::Kind::NoRuntime))?;
        // Dropped with this future, which ends the waiting.
        let (_asks, asked) = mpsc::channel();
        let opening = runtime.spawn_blocking(move || {
            Self::open_in_time(&options, &folder, &asked).map_err(|error| error.when_there_is_room("open it again"))
        });
        // It does not panic, so the runtime has ended.
        opening.await.unwrap_or_else(|_| Err(DurableError::new(error::Kind::NoRuntime)))
    }

    /// Opens it once no other opener has it, if that is in time and somebody still asks for it.
    fn open_in_time(
        options: &Options,
        folder: &Path,
        asked: &mpsc::Receiver<Infallible>,
    ) -> Result<Self, DurableError> {
        let began = Instant::now();
        loop {
            let opened = Self::open_now(options.clone(), folder.to_owned());
            let left = options.wait.saturating_sub(began.elapsed());
            if left.is_zero() || !opened.as_ref().is_err_and(DurableError::is_in_use) {
                return opened;
            }
            if asked.recv_timeout(left.min(LOOK_AGAIN)) != Err(RecvTimeoutError::Timeout) {
                return opened;
            }
        }
    }

    fn open_now(options: Options, folder: PathBuf) -> Result<Self, DurableError> {
        let files = Files::open(&folder, &options)?;
        let run = files.run;
        let seen = Arc::<Seen>::default();
        let readers = Readers::new(folder.clone(), run, Arc::clone(&seen));
        let (jobs, asked) = mpsc::channel();
        let writer = Writer::new(files, Log::new(options, run), asked, Arc::clone(&seen));
        let thread = std::thread::Builder::new().name("tidings-durable".into()).spawn(move || writer.run());
        let thread = thread.map_err(|error| DurableError::io(&folder, &error))?;
        Ok(Self { folder, run, readers, seen, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Copies the log as it is at one moment into another folder, while it is in use. What is opened there is this log, up
    /// to that moment: when it is opened for the first time, every client is told of a gap.
    ///
    /// # Errors
    ///
    /// When that folder has a log already, or cannot be written, or this log cannot be read.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the copy is made all the same. One that was interrupted by the end of the process is not
    /// taken for a log.
    pub async fn copy_to(&self, path: impl AsRef<Path>) -> Result<(), DurableError> {
        let runtime = Handle::try_current().map_err(|_| DurableError::new(error::Kind::NoRuntime))?;
        let (from, to) = (self.folder.clone(), path.as_ref().to_owned());
        let copying = runtime
            .spawn_blocking(move || file::copy(&from, &to).map_err(|error| error.when_there_is_room("copy again")));
        copying.await.unwrap_or_else(|_| Err(DurableError::new(error::Kind::NoRuntime)))
    }

    fn ask(&self, job: Job) -> Result<(), DurableError> {
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or_else(writer::closed)
    }
}

impl Drop for Durable {
    /// Waits until what is under way is on the disk and the files are closed, so that they can be opened again.
    fn drop(&mut self) {
        self.jobs = None;
        // So that the writer's connection is the last, which leaves one whole file.
        self.readers.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable")
            .field("folder", &self.folder)
            .field("run", &self.run)
            .field("commits", &self.seen.commits.load(Ordering::Relaxed))
            .field("syncs", &self.seen.syncs.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl ReplayStore for Durable {
    async fn head(&self) -> Result<Cursor, ReadError> {
        self.readers.head().await
    }

    async fn append(&self, records: Arc<[Record]>) -> Result<Vec<Result<Cursor, Refused>>, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Append(records, reply)).map_err(AppendError::refused)?;
        // A thread that is gone does not say how far it came.
        answer.await.unwrap_or_else(|_| Err(AppendError::unknown(writer::closed())))
    }

    async fn read(&self, read: Read) -> Result<Page, ReadError> {
        self.readers.page(read).await
    }

    async fn forget(&self, topic: Topic) -> Result<(), ReadError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Forget(topic, reply)).map_err(ReadError::new)?;
        answer.await.unwrap_or_else(|_| Err(ReadError::new(writer::closed())))
    }
}
