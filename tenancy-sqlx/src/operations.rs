//! Long work on tenants: kept in a table, done by whichever node claims it, and gone on with by another one if that node dies.
//!
//! A [`Handler`] does the work of one kind. It works in steps: what came of a finished one is kept, so that a rerun skips it. Its
//! transactions are [fenced](Progress::begin): a node that was given up can't commit one.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, Row};
use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result, TenantId};
use uuid::Uuid;

use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::{SystemTx, TenantTx};

/// For how long a claim holds without being renewed, in seconds, unless [said](Operations::with_lease).
const LEASE: Duration = Duration::from_secs(15);

/// One piece of long work, as its row says.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
#[non_exhaustive]
pub struct Operation {
    /// Which one.
    pub id: Uuid,
    /// On which tenant.
    pub tenant_id: Uuid,
    /// What is done: `erase`.
    pub kind: String,
    /// `queued`, `running`, `done`, `failed` or `cancelled`.
    pub state: String,
    /// What it is at, in a few words.
    pub step: String,
    /// How much of the step is done, in `unit`s.
    pub done: i64,
    /// How much there is to do, if that is known.
    pub total: Option<i64>,
    /// What is counted: `rows`, `objects`.
    pub unit: String,
    /// How much this attempt has read or written, in bytes.
    pub bytes: i64,
    /// What it was asked to do.
    pub input: Value,
    /// What came of it.
    pub result: Option<Value>,
    /// Why it failed, or why the last attempt did.
    pub error: Option<String>,
    /// Who asked for it.
    pub created_by: String,
    /// The request that asked for it.
    pub request_id: Option<Uuid>,
    /// How often a node took it up.
    pub attempts: i64,
    /// Since when it is to be called off.
    pub cancel_asked_at: Option<DateTime<Utc>>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When its row last changed.
    pub updated_at: DateTime<Utc>,
}

impl Operation {
    /// Whether it has ended, in whatever way.
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "queued" | "running")
    }
}

const COLUMNS: &str = "id, tenant_id, kind, state, step, done, total, unit, bytes, input, result, error, created_by, request_id, attempts, cancel_asked_at, created_at, updated_at";

/// Does the work of one kind of operation.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Does the work, or goes on with it: it may have been stopped at any point, on any node. Gives the operation's result.
    ///
    /// An [`Unavailable`](ErrorKind::Unavailable) or [`Retry`](ErrorKind::Retry) error has it tried again later, and so has a panic; any other
    /// error ends it.
    async fn run(&self, operation: &Operation, progress: &Progress) -> Result<Value>;

    /// Undoes what the operation did. Its work has stopped by then, in the middle of whatever it did, and none of it can be committed any
    /// more. As `run`, it may have been stopped at any point, and may [end](Progress::cancelled) the operation with its last write.
    /// `false` if it is too late: it is gone on with then, to its end.
    ///
    /// An [`Unavailable`](ErrorKind::Unavailable) or [`Retry`](ErrorKind::Retry) error has it tried again later, and so has a panic; any other
    /// error ends the operation as failed.
    async fn cancel(&self, operation: &Operation, progress: &Progress) -> Result<bool> {
        let _ = (operation, progress);
        Ok(true)
    }
}

/// What has to come to its end: a tenant that is half made or half erased is of use to nobody.
const NEVER_CANCELLED: [&str; 2] = ["erase", "provision"];
/// How often a node looks whether its operation is to be called off, at the least.
const LOOK: Duration = Duration::from_secs(1);

impl SystemTx {
    /// Queues an operation of `kind` on a tenant, with its audit event. A tenant has one at a time.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if another one on this tenant is not done.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn queue_operation(&mut self, tenant: TenantId, kind: &str, input: Value, request_id: Option<Uuid>) -> Result<Operation> {
        let by = self.actor().clone();
        let query = format!(
            "insert into tenancy.operations (tenant_id, kind, input, created_by, request_id) values ($1, $2, $3, $4, $5) returning {COLUMNS}"
        );
        let queued: Operation = sqlx::query_as(sqlx::AssertSqlSafe(query))
            .bind(tenant.as_uuid())
            .bind(kind)
            .bind(Json(&input))
            .bind(by.to_string())
            .bind(request_id)
            .fetch_one(&mut *self)
            .await
            .map_err(|error| match error.as_database_error().and_then(|db| db.constraint()) {
                Some("operations_one_idx") => {
                    Error::new(ErrorKind::Conflict, "another operation on this tenant is not done yet").with_source(error)
                }
                _ => from_sqlx(error),
            })?;
        let detail = serde_json::json!({ "kind": kind, "input": input });
        self.audit(&AuditEvent::new(by, "operation.queue", queued.id.to_string()).with_tenant(tenant).with_detail(detail)).await?;
        Ok(queued)
    }

    /// The operation with this id.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn operation(&mut self, id: Uuid) -> Result<Operation> {
        let query = format!("select {COLUMNS} from tenancy.operations where id = $1");
        sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(id).fetch_one(self).await.map_err(from_sqlx)
    }

    /// Calls an operation off. One that no node has begun is cancelled at once; the node that has it stops it within some seconds, undoes what
    /// it did, and ends it as `cancelled`; or as `done`, if that was too late.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) for one that is over, and for a provisioning or an erasure.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn cancel_operation(&mut self, id: Uuid) -> Result<Operation> {
        let query = format!("select {COLUMNS} from tenancy.operations where id = $1 for update");
        let found: Operation = sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(id).fetch_one(&mut *self).await.map_err(from_sqlx)?;
        if found.is_over() {
            return Err(Error::new(ErrorKind::Conflict, format!("the operation is over: it is {}", found.state)));
        }
        if NEVER_CANCELLED.contains(&found.kind.as_str()) {
            return Err(Error::new(ErrorKind::Conflict, format!("an operation of kind {} can't be cancelled: it has to end", found.kind)));
        }
        let query = format!(
            "update tenancy.operations set cancel_asked_at = coalesce(cancel_asked_at, clock_timestamp()), updated_at = clock_timestamp(),
                    state = case when attempts = 0 then 'cancelled' else state end,
                    claimed_until = case when claimed_until < clock_timestamp() then null else claimed_until end
              where id = $1 returning {COLUMNS}"
        );
        let cancelled = sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(id).fetch_one(&mut *self).await.map_err(from_sqlx)?;
        let event =
            AuditEvent::new(self.actor().clone(), "operation.cancel", id.to_string()).with_tenant(TenantId::from_uuid(found.tenant_id)?);
        self.audit(&event.with_detail(serde_json::json!({ "kind": found.kind, "step": found.step }))).await?;
        Ok(cancelled)
    }

    /// The latest operations on a tenant, the newest first: at most a hundred.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn operations(&mut self, tenant: TenantId) -> Result<Vec<Operation>> {
        let query = format!("select {COLUMNS} from tenancy.operations where tenant_id = $1 order by created_at desc, id limit 100");
        sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(tenant.as_uuid()).fetch_all(self).await.map_err(from_sqlx)
    }

    /// The latest ones of one kind, the newest first: at most a hundred.
    #[cfg(feature = "backup")]
    pub(crate) async fn operations_of(&mut self, tenant: TenantId, kind: &str) -> Result<Vec<Operation>> {
        let query =
            format!("select {COLUMNS} from tenancy.operations where tenant_id = $1 and kind = $2 order by updated_at desc limit 100");
        sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(tenant.as_uuid()).bind(kind).fetch_all(self).await.map_err(from_sqlx)
    }
}

/// The worker of a node.
#[derive(Clone)]
pub struct Operations {
    db: TenantDb,
    handlers: BTreeMap<&'static str, Arc<dyn Handler>>,
    lease: Duration,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").field("kinds", &self.handlers.keys()).field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Operations {
    /// A worker that can do nothing yet. `db` needs [administrative credentials](crate::Options::with_admin_url).
    pub fn new(db: &TenantDb) -> Self {
        Self { db: db.clone(), handlers: BTreeMap::new(), lease: LEASE }
    }

    /// It does operations of this kind.
    #[must_use]
    pub fn with(mut self, kind: &'static str, handler: impl Handler) -> Self {
        self.handlers.insert(kind, Arc::new(handler));
        self
    }

    /// For how long a claim holds without being renewed, which happens when a third of it has passed: 15 s unless said. So long may the
    /// work of a node that died stand still.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(300));
        self
    }

    /// Looks for work once per `interval`, and does it, until the future is dropped. Where requests are served as well, better in a
    /// [`DedicatedRuntime`](crate::DedicatedRuntime).
    ///
    /// # Cancel safety
    /// Safe: another node, or a later call, goes on.
    pub async fn run(self, interval: Duration) {
        loop {
            match self.run_next().await {
                Ok(Some(_)) => {}
                Ok(None) => tokio::time::sleep(interval).await,
                Err(error) => {
                    tracing::error!(?error, "an operation was not done");
                    tokio::time::sleep(interval).await;
                }
            }
        }
    }

    /// Claims one operation that waits, or whose node was given up, and does it. Gives its id, if there was one.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) without administrative credentials; [`Unavailable`](ErrorKind::Unavailable). What the
    /// work itself fails with is in its row.
    ///
    /// # Cancel safety
    /// Safe: it is gone on with when the claim has run out.
    pub async fn run_next(&self) -> Result<Option<Uuid>> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let query = format!(
            "update tenancy.operations set state = 'running', attempts = attempts + 1, claimed_until = clock_timestamp() + $2 * interval '1 second', updated_at = clock_timestamp()
              where id = (select id from tenancy.operations
                           where state in ('queued', 'running') and kind = any($1) and (claimed_until is null or claimed_until < clock_timestamp())
                           order by created_at limit 1 for update skip locked)
              returning {COLUMNS}"
        );
        let kinds: Vec<&str> = self.handlers.keys().copied().collect();
        let claimed: Option<Operation> = sqlx::query_as(sqlx::AssertSqlSafe(query))
            .bind(kinds)
            .bind(self.lease.as_secs_f64())
            .fetch_optional(&mut tx)
            .await
            .map_err(from_sqlx)?;
        tx.commit().await?;
        let Some(operation) = claimed else { return Ok(None) };
        let Some(handler) = self.handlers.get(operation.kind.as_str()) else { return Ok(None) };
        let progress = Progress { db: self.db.clone(), id: operation.id, attempt: operation.attempts, bytes: Arc::default() };
        let began = tokio::time::Instant::now();
        let mut cancelling = operation.cancel_asked_at.is_some();
        if !cancelling {
            cancelling = tokio::select! {
                outcome = caught(handler.run(&operation, &progress)) => { progress.end(outcome.map(Some)).await?; false }
                ended = self.keep(&progress, true) => match ended { Ended::Cancelled => true, Ended::Lost(error) => return Err(error) },
            };
        }
        if cancelling {
            // Its work is stopped now: a commit of it that is still under way holds the row, and decides.
            tokio::select! {
                outcome = progress.call_off(&operation, &**handler) => outcome?,
                ended = self.keep(&progress, false) => match ended { Ended::Cancelled => {}, Ended::Lost(error) => return Err(error) },
            }
        }
        self.measured(&progress, &operation.kind, began.elapsed()).await;
        Ok(Some(operation.id))
    }

    /// Renews the claim, when a third of it has passed, until it is lost, or the operation is to be called off.
    async fn keep(&self, progress: &Progress, may_cancel: bool) -> Ended {
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::time::sleep((self.lease / 3).min(LOOK)).await;
            let asked = tokio::time::Instant::now();
            let is_due = renewed.elapsed() >= self.lease / 3;
            match tokio::time::timeout(self.lease / 3, progress.look(is_due.then_some(self.lease))).await {
                Ok(Ok(true)) if may_cancel => return Ended::Cancelled,
                Ok(Ok(_)) if is_due => renewed = asked,
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == ErrorKind::Conflict => match progress.has_ended().await {
                    Ok(true) => return std::future::pending().await, // by its own last step: there is nothing to renew
                    _ => return Ended::Lost(error),
                },
                _ if renewed.elapsed() > self.lease => return Ended::Lost(lost()),
                _ => {}
            }
        }
    }

    /// Counts what has ended, how, and after how long.
    #[cfg(feature = "metrics")]
    async fn measured(&self, progress: &Progress, kind: &str, took: Duration) {
        let state = async { progress.read().await?.operation(progress.id).await };
        let state = match state.await {
            Ok(operation) => operation.state,
            Err(error) => return tracing::debug!(?error, "an operation was not counted"),
        };
        if state == "running" {
            return; // tried again
        }
        metrics::counter!("operations.ended", "kind" => kind.to_owned(), "state" => state).increment(1);
        metrics::histogram!("operations.seconds", "kind" => kind.to_owned()).record(took);
        metrics::counter!("operations.bytes", "kind" => kind.to_owned()).increment(progress.bytes.load(Ordering::Relaxed));
    }

    #[cfg(not(feature = "metrics"))]
    #[expect(clippy::unused_async, reason = "as with metrics")]
    async fn measured(&self, progress: &Progress, kind: &str, took: Duration) {
        let _ = (progress, kind, took);
    }
}

/// Why a node stops to renew its claim.
enum Ended {
    Lost(Error),
    Cancelled,
}

/// How a handler tells what it does, and how it writes.
#[derive(Debug)]
pub struct Progress {
    db: TenantDb,
    id: Uuid,
    attempt: i64,
    bytes: Arc<AtomicU64>,
}

/// Whether the next try may succeed.
pub(crate) fn is_tried_again(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Retry | ErrorKind::OutcomeUnknown)
}

/// A panic is the trouble of its own operation alone.
async fn caught<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let panicked = |_| Err(Error::new(ErrorKind::Unavailable, "the work panicked: its node has said where"));
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(panicked)
}

fn lost() -> Error {
    Error::new(ErrorKind::Conflict, "another node has taken this operation over")
}

impl Progress {
    /// Begins a transaction across tenants that can be committed only while the operation is this node's: nobody else can claim it
    /// before the transaction ends. Keep it short: the claim is not renewed meanwhile.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if another node has taken the operation over; [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn begin(&self) -> Result<SystemTx> {
        let mut tx = self.read().await?;
        self.take_hold(&mut tx).await?;
        Ok(tx)
    }

    /// Fences a transaction that was begun elsewhere, from here on: just before its commit, where it is a long one.
    pub(crate) async fn take_hold(&self, tx: &mut SystemTx) -> Result<()> {
        let mine = sqlx::query("select from tenancy.operations where id = $1 and attempts = $2 and state = 'running' for update");
        match mine.bind(self.id).bind(self.attempt).fetch_optional(tx).await.map_err(from_sqlx)? {
            Some(_) => Ok(()),
            None => Err(lost()),
        }
    }

    /// Begins a transaction across tenants for reading, which is not fenced.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&self) -> Result<SystemTx> {
        begin_admin(self.db.inner(), Actor::System).await
    }

    /// What counts the bytes of this attempt: [`at`](Progress::at) says how many there were.
    #[cfg(feature = "backup")]
    pub(crate) fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    /// Counts bytes that were read or written.
    pub fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Says what is being done.
    ///
    /// # Errors
    /// Those of [`begin`](Progress::begin).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn at(&self, step: &str, done: u64, total: Option<u64>, unit: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        self.tell(&mut tx, step, done, total, unit).await?;
        tx.commit().await
    }

    /// [`at`](Progress::at), as part of a transaction.
    pub(crate) async fn tell(&self, tx: &mut SystemTx, step: &str, done: u64, total: Option<u64>, unit: &str) -> Result<()> {
        let query = "update tenancy.operations set step = $2, done = $3, total = $4, unit = $5, bytes = $6, updated_at = clock_timestamp() where id = $1";
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let query = sqlx::query(query).bind(self.id).bind(step).bind(number(done)).bind(total.map(number)).bind(unit);
        let query = query.bind(number(self.bytes.load(Ordering::Relaxed)));
        query.execute(tx).await.map(drop).map_err(from_sqlx)
    }

    /// What came of the step `name`, if it was finished.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn finished(&self, name: &str) -> Result<Option<Value>> {
        self.finished_in(&mut self.read().await?, name).await
    }

    /// [`finished`](Progress::finished), as part of a transaction.
    pub(crate) async fn finished_in(&self, tx: &mut SystemTx, name: &str) -> Result<Option<Value>> {
        let row = sqlx::query("select steps -> $2 from tenancy.operations where id = $1").bind(self.id).bind(name);
        row.fetch_one(tx).await.and_then(|row| row.try_get(0)).map_err(from_sqlx)
    }

    /// Keeps what came of the step `name`, as part of a transaction from [`begin`](Progress::begin).
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn finish(&self, tx: &mut SystemTx, name: &str, output: &Value) -> Result<()> {
        let query = "update tenancy.operations set steps = steps || jsonb_build_object($2, $3::jsonb), updated_at = clock_timestamp() where id = $1";
        sqlx::query(query).bind(self.id).bind(name).bind(Json(output)).execute(tx).await.map(drop).map_err(from_sqlx)
    }

    /// [`finish`](Progress::finish), as part of a transaction of the tenant itself, which can be committed only while the operation is
    /// this node's.
    pub(crate) async fn finish_within(&self, tx: &mut TenantTx, name: &str, output: &Value) -> Result<()> {
        let query = sqlx::query_scalar("select tenancy.provision_finish($1, $2, $3, $4)");
        let kept: bool = query.bind(self.id).bind(self.attempt).bind(name).bind(Json(output)).fetch_one(tx).await.map_err(from_sqlx)?;
        if kept { Ok(()) } else { Err(lost()) }
    }

    /// Ends the operation, as part of a transaction from [`begin`](Progress::begin): for work whose last write and end must be one.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn done(&self, tx: &mut SystemTx, result: &Value) -> Result<()> {
        let query = "update tenancy.operations set state = 'done', result = $2, bytes = $3, error = null, claimed_until = null, updated_at = clock_timestamp() where id = $1";
        let bytes = i64::try_from(self.bytes.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        sqlx::query(query).bind(self.id).bind(Json(result)).bind(bytes).execute(tx).await.map(drop).map_err(from_sqlx)
    }

    /// Ends the operation as cancelled, as part of a transaction from [`begin`](Progress::begin): for what must be undone in one with it.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn cancelled(&self, tx: &mut SystemTx) -> Result<()> {
        let query = "update tenancy.operations set state = 'cancelled', error = null, claimed_until = null, updated_at = clock_timestamp() where id = $1";
        sqlx::query(query).bind(self.id).execute(tx).await.map(drop).map_err(from_sqlx)
    }

    /// Says why it failed, as part of a transaction from [`begin`](Progress::begin): it is tried again, or over.
    pub(crate) async fn failed(&self, tx: &mut SystemTx, error: &Error) -> Result<()> {
        let again = is_tried_again(error);
        tracing::warn!(operation = %self.id, again, ?error, "an operation failed");
        let query = "update tenancy.operations set error = $2, state = case when $3 then state else 'failed' end,
                        claimed_until = case when $3 then clock_timestamp() + interval '5 seconds' end, updated_at = clock_timestamp() where id = $1";
        sqlx::query(query).bind(self.id).bind(error.to_string()).bind(again).execute(tx).await.map(drop).map_err(from_sqlx)
    }

    /// Gives whether the operation is to be called off, and renews the claim for so long.
    async fn look(&self, renew: Option<Duration>) -> Result<bool> {
        let query = match renew {
            Some(lease) => sqlx::query_scalar(
                "update tenancy.operations set claimed_until = clock_timestamp() + $3 * interval '1 second'
                  where id = $1 and attempts = $2 and state = 'running' returning cancel_asked_at is not null",
            )
            .bind(self.id)
            .bind(self.attempt)
            .bind(lease.as_secs_f64()),
            None => sqlx::query_scalar(
                "select cancel_asked_at is not null from tenancy.operations where id = $1 and attempts = $2 and state = 'running'",
            )
            .bind(self.id)
            .bind(self.attempt),
        };
        let mut tx = self.read().await?;
        let cancel = query.fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        tx.commit().await?;
        cancel.ok_or_else(lost)
    }

    /// Whether this attempt has ended the operation.
    async fn has_ended(&self) -> Result<bool> {
        let ended = "select exists (select from tenancy.operations where id = $1 and attempts = $2 and state <> 'running')";
        sqlx::query_scalar(ended).bind(self.id).bind(self.attempt).fetch_one(&mut self.read().await?).await.map_err(from_sqlx)
    }

    /// Ends the operation as cancelled, or goes on with it to its end if it is too late for that.
    async fn call_off(&self, operation: &Operation, handler: &dyn Handler) -> Result<()> {
        match self.begin().await {
            Ok(tx) => tx.rollback().await?, // what was about to be committed is, or never will be
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(()), // it had ended, or is another node's
            Err(error) => return Err(error),
        }
        let outcome = match caught(handler.cancel(operation, self)).await {
            Ok(true) => Ok(None),
            Ok(false) => caught(handler.run(operation, self)).await.map(Some),
            Err(error) => Err(error),
        };
        self.end(outcome).await
    }

    /// Ends the operation with a result, as cancelled, or as failed, unless its own last step has.
    async fn end(&self, outcome: Result<Option<Value>>) -> Result<()> {
        let mut tx = match self.begin().await {
            Ok(tx) => tx,
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(()), // its own last step has ended it, or it is another node's
            Err(error) => return Err(error),
        };
        match outcome {
            Ok(Some(result)) => self.done(&mut tx, &result).await?,
            Ok(None) => self.cancelled(&mut tx).await?,
            Err(error) => self.failed(&mut tx, &error).await?,
        }
        tx.commit().await
    }
}
