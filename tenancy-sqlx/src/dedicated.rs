//! A thread, a runtime and connections of its own, for work that must not slow requests.

use std::fmt;
use std::time::Duration;

use tenancy_core::{Error, ErrorKind, Result};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::db::{Options, TenantDb};

/// How long connections may take to be closed.
const CLOSING: Duration = Duration::from_secs(2);

/// A thread with a runtime of its own, and connections of its own to one database.
///
/// [Operations](crate::operations::Operations) read, compress and write in bulk. On the runtime that serves requests they wake its threads a
/// thousand times a second, and whoever waits for an answer waits for them: see `docs/performance.md` for how long. Here they take turns
/// with requests by the system's scheduler alone.
///
/// To the database it is another node: it follows the catalog by itself, and is waited for by fences.
///
/// Dropped, the work is told to stop, and not waited for.
///
/// ```no_run
/// # use std::time::Duration;
/// # use tenancy_sqlx::operations::Operations;
/// # use tenancy_sqlx::{DedicatedRuntime, Options, TenantDb};
/// # async fn example() -> tenancy_core::Result<()> {
/// let options = Options::new("postgres://tenancy_app@localhost/app")?.with_admin_url("postgres://admin@localhost/app")?;
/// let db = TenantDb::open(options.clone()).await?; // for requests
/// let work = DedicatedRuntime::start("operations", options, async |db| {
///     let worker = Operations::new(&db); // with what it can do
///     Ok(worker.run(Duration::from_millis(250)))
/// })
/// .await?;
/// // … serve …
/// work.shutdown().await;
/// # drop(db);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropped, the work stops"]
pub struct DedicatedRuntime {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl fmt::Debug for DedicatedRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DedicatedRuntime").finish_non_exhaustive()
    }
}

impl DedicatedRuntime {
    /// Starts a thread of this name, opens the database in it, and does what `begin` gives until that ends, or is stopped.
    ///
    /// What `begin` makes belongs to that runtime: a client that keeps connections, such as an object store over HTTP, is better made
    /// there than brought along.
    ///
    /// # Errors
    /// Those of [`TenantDb::open`] and of `begin`; [`Internal`](ErrorKind::Internal) where the system gives no thread.
    ///
    /// # Cancel safety
    /// Safe: the thread ends.
    pub async fn start<W: Future<Output = ()>>(
        name: &str,
        options: Options,
        begin: impl AsyncFnOnce(TenantDb) -> Result<W> + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (begun, beginning) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let no_thread = |error| Error::new(ErrorKind::Internal, "there is no thread to be had").with_source(error);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let thread = move || {
            let _end = end; // dropped when all is over, also by a panic
            runtime.block_on(live(options, begin, begun, stopped));
            runtime.shutdown_background(); // a file that is being written can't be stopped
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(thread).map_err(no_thread)?;
        let gone = |error| Error::new(ErrorKind::Internal, "the thread ended before it began").with_source(error);
        beginning.await.map_err(gone)??;
        Ok(Self { stop, ended })
    }

    /// Stops the work where it is, and waits until its connections are closed, for two seconds at most. Another node goes on with an operation that was under way.
    ///
    /// # Cancel safety
    /// A dropped future waits for nothing: the work stops all the same.
    pub async fn shutdown(self) {
        let _ = self.stop.send(()); // it may have ended by itself
        let _ = self.ended.await;
    }
}

/// What the thread does.
async fn live<W: Future<Output = ()>>(
    options: Options,
    begin: impl AsyncFnOnce(TenantDb) -> Result<W>,
    begun: oneshot::Sender<Result<()>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let opened = tokio::select! {
        opened = TenantDb::open(options) => opened,
        _ = &mut stopped => return,
    };
    let db = match opened {
        Ok(db) => db,
        Err(error) => return drop(begun.send(Err(error))),
    };
    let work = async {
        match begin(db.clone()).await {
            Ok(work) => {
                let _ = begun.send(Ok(())); // nobody waits for it who is gone: then it is to stop
                work.await;
            }
            Err(error) => drop(begun.send(Err(error))),
        }
    };
    tokio::select! {
        () = work => {}
        _ = stopped => {}
    }
    let _ = tokio::time::timeout(CLOSING, db.close()).await;
}
