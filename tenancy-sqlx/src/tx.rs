//! A transaction that is bound to one tenant from its first message to its last.
//!
//! [`TenantTx`] is an sqlx [`Executor`] of its own: `query.fetch_one(&mut tx)`. It derefs to nothing, so sqlx's nested `begin` and raw
//! `COPY`, which lose track of the tenant when they are cancelled, can't be reached.
//!
//! | what happens | what follows |
//! |---|---|
//! | dropped | rolled back in the background; the connection goes back to the pool only when proven clean |
//! | a statement fails | PostgreSQL refuses the rest; [`commit`](Tx::commit) is an error and nothing is kept |
//! | a statement's future is dropped | the statement may have run, so the transaction refuses the rest and can't be committed |
//! | a [`Savepoint`] is dropped | what was done since is undone before the next statement |
//! | `COMMIT` or `ROLLBACK` as a statement | what follows sees no tenant, and [`commit`](Tx::commit) is an error |
//!
//! ```compile_fail
//! # async fn nested(mut tx: tenancy_sqlx::TenantTx) {
//! sqlx::Acquire::begin(&mut tx).await; // no way to sqlx's nested transactions
//! # }
//! ```
//! ```compile_fail
//! # async fn copy(mut tx: tenancy_sqlx::TenantTx) {
//! tx.copy_out_raw("COPY notes TO STDOUT").await; // no way to the raw connection
//! # }
//! ```

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Execute, Executor, Postgres, Row as _, SqlStr};
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, TenantId};

use crate::error::{from_sqlx, is_lost};
use crate::lease::Lease;

/// The scope of a transaction that serves one tenant.
#[derive(Debug)]
pub struct ForTenant {
    pub(crate) tenant_id: TenantId,
    pub(crate) request_id: uuid::Uuid,
}

/// The scope of a transaction that no tenant confines: see [`Dangerous`](crate::Dangerous).
#[derive(Debug)]
pub struct ForSystem(pub(crate) tenancy_core::Actor);

/// A transaction of one tenant: made by [`TenantDb::begin`](crate::TenantDb::begin) and [`read`](crate::TenantDb::read).
pub type TenantTx = Tx<ForTenant>;

/// A transaction across tenants: made by [`Dangerous::begin_system`](crate::Dangerous::begin_system).
pub type SystemTx = Tx<ForSystem>;

/// A transaction with its scope; use it as [`TenantTx`] or [`SystemTx`].
#[must_use = "a transaction that is dropped is rolled back"]
pub struct Tx<S> {
    lease: Lease,
    scope: S,
    read_only: bool,
    /// Of a read-only context: whatever is done in it is undone.
    unchanging: bool,
    /// Whether the server connection outlives the transaction for us, so that it can keep named statements.
    named_statements: bool,
    /// A statement was sent and its end not seen.
    in_flight: bool,
    /// Open savepoints.
    depth: u32,
    /// The outermost savepoint that was dropped and not undone yet.
    unwind: Option<u32>,
}

impl<S> Tx<S> {
    pub(crate) fn new(lease: Lease, scope: S, read_only: bool, named_statements: bool) -> Self {
        Self { lease, scope, read_only, unchanging: false, named_statements, in_flight: false, depth: 0, unwind: None }
    }

    /// Keeps what was done, if all of it was done.
    ///
    /// A transaction from [`read`](crate::TenantDb::read) has nothing to keep: it is just ended. One of a
    /// [read-only context](tenancy_core::TenantContext::read_only) keeps nothing either.
    ///
    /// # Errors
    /// - [`TransactionAborted`](ErrorKind::TransactionAborted): a statement failed (also one whose error nobody looked at), was dropped
    ///   before its end, or ended the transaction. Nothing was kept.
    /// - [`Forbidden`](ErrorKind::Forbidden): the context is read-only, and something was written all the same, as PostgreSQL before 16 can be
    ///   told to. Nothing was kept.
    /// - [`Conflict`](ErrorKind::Conflict), [`Retry`](ErrorKind::Retry): a deferred constraint or serialization failed. Nothing was kept.
    /// - [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the connection was lost before the answer came.
    ///
    /// # Cancel safety
    /// Safe for every later user of the connection. Whether the work was kept is unknown, as with any lost answer.
    pub async fn commit(self) -> Result<()> {
        self.alive().map_err(from_sqlx)?;
        if self.unchanging {
            return self.end_unchanged().await;
        }
        if self.read_only {
            return Ok(());
        }
        // SAVEPOINT is refused both in an aborted transaction and outside of one, so COMMIT is reached only where it means COMMIT:
        // PostgreSQL answers the COMMIT of an aborted transaction without an error. CLOSE ALL: a cursor WITH HOLD would outlive the
        // transaction, with this tenant's rows, on a connection that serves others next.
        let mut sql = String::new();
        if let Some(depth) = self.unwind {
            sql = format!("ROLLBACK TO tenancy_{depth};");
        }
        sql.push_str("SAVEPOINT tenancy_end; CLOSE ALL; COMMIT");
        self.lease.end(&sql).await.map_err(|error| {
            if is_lost(&error) {
                Error::new(ErrorKind::OutcomeUnknown, "the connection was lost during COMMIT: the work may or may not have been kept")
                    .with_source(error)
            } else {
                from_sqlx(error)
            }
        })
    }

    /// Ends a transaction that must change nothing: by ROLLBACK, so that nothing does it.
    async fn end_unchanged(mut self) -> Result<()> {
        self.settle_pending().await.map_err(from_sqlx)?;
        // As in `commit`, SAVEPOINT is refused where the transaction is aborted or over. Whoever writes has a number.
        let ask = sqlx::raw_sql("SAVEPOINT tenancy_end; SELECT pg_current_xact_id_if_assigned() IS NULL");
        let row = self.lease.conn().fetch_one(ask).await.map_err(from_sqlx)?;
        let unchanged: bool = row.try_get(0).map_err(from_sqlx)?;
        self.lease.end("ROLLBACK").await.map_err(from_sqlx)?;
        if unchanged { Ok(()) } else { Err(Error::new(ErrorKind::Forbidden, "this is read-only: nothing was kept")) }
    }

    /// Undoes everything, and waits until that is done; dropping the transaction does the same without waiting.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) if the connection was lost: everything is undone then as well.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn rollback(self) -> Result<()> {
        self.lease.end("ROLLBACK").await.map_err(from_sqlx)
    }

    /// Begins a part that can be undone on its own.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_, S>> {
        self.settle_pending().await.map_err(from_sqlx)?;
        self.control(&format!("SAVEPOINT tenancy_{}", self.depth)).await.map_err(from_sqlx)?;
        self.depth += 1;
        Ok(Savepoint { depth: self.depth - 1, tx: self, released: false })
    }

    /// Fails once a statement's future was dropped before its end.
    fn alive(&self) -> std::result::Result<(), sqlx::Error> {
        if self.in_flight {
            let ours = Error::new(ErrorKind::TransactionAborted, "a statement of this transaction was cancelled, so nothing was kept");
            return Err(sqlx::Error::AnyDriverError(Box::new(ours)));
        }
        Ok(())
    }

    /// Undoes what dropped savepoints left, before anything else runs.
    async fn settle_pending(&mut self) -> std::result::Result<(), sqlx::Error> {
        self.alive()?;
        if let Some(depth) = self.unwind {
            self.control(&format!("ROLLBACK TO tenancy_{depth}; RELEASE tenancy_{depth}")).await?;
            self.unwind = None;
        }
        Ok(())
    }

    /// What `COPY … TO STDOUT` gives. The rest of the transaction can be used once all of it was read.
    #[cfg(any(feature = "backup", feature = "export"))]
    pub(crate) async fn copy_out(
        &mut self,
        sql: &str,
    ) -> Result<impl Stream<Item = std::result::Result<bytes::Bytes, sqlx::Error>> + Send> {
        self.settle_pending().await.map_err(from_sqlx)?;
        let Self { lease, in_flight, .. } = self;
        *in_flight = true;
        let rows = lease.conn().copy_out_raw(sql).await.map_err(from_sqlx)?;
        Ok(rows.chain(stream::once(async {
            *in_flight = false;
            Ok(bytes::Bytes::new())
        })))
    }

    /// Feeds `COPY … FROM STDIN`, and gives how many rows there were.
    #[cfg(feature = "backup")]
    pub(crate) async fn copy_in(&mut self, sql: &str, mut data: BoxStream<'_, Result<bytes::Bytes>>) -> Result<u64> {
        self.settle_pending().await.map_err(from_sqlx)?;
        self.in_flight = true; // for good, if anything fails
        let mut copy = self.lease.conn().copy_in_raw(sql).await.map_err(from_sqlx)?;
        while let Some(chunk) = data.try_next().await? {
            copy.send(chunk).await.map_err(from_sqlx)?;
        }
        let rows = copy.finish().await.map_err(from_sqlx)?;
        self.in_flight = false;
        Ok(rows)
    }

    /// Runs a statement of our own.
    pub(crate) async fn control(&mut self, sql: &str) -> std::result::Result<(), sqlx::Error> {
        self.in_flight = true;
        let done = self.lease.send(sql).await;
        self.in_flight = false;
        done
    }
}

impl Tx<ForTenant> {
    /// The same transaction, whose context is read-only.
    pub(crate) fn unchanging(self) -> Self {
        Self { unchanging: true, ..self }
    }

    /// Whom this transaction serves.
    pub fn tenant_id(&self) -> TenantId {
        self.scope.tenant_id
    }

    /// Writes `event` to this tenant's audit log, as part of this transaction. Another tenant in `event` is overwritten; the request is that of
    /// the context, unless `event` names one.
    ///
    /// # Errors
    /// As any statement; [`Forbidden`](ErrorKind::Forbidden) in a read-only transaction.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn audit(&mut self, event: AuditEvent) -> Result<()> {
        let mut event = event.with_tenant(self.tenant_id());
        event.request_id.get_or_insert(self.scope.request_id);
        write_audit(self, &event).await
    }
}

impl Tx<ForSystem> {
    /// Who opened this transaction.
    pub fn actor(&self) -> &tenancy_core::Actor {
        &self.scope.0
    }

    /// Commits, and begins again with `begin` on the same connection.
    pub(crate) async fn commit_and(mut self, begin: &str) -> Result<Self> {
        self.control(&format!("COMMIT; {begin}")).await.map_err(from_sqlx)?;
        Ok(self)
    }

    /// Writes `event` to the audit log, as part of this transaction.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn audit(&mut self, event: &AuditEvent) -> Result<()> {
        write_audit(self, event).await
    }
}

async fn write_audit<S: Send + fmt::Debug>(tx: &mut Tx<S>, event: &AuditEvent) -> Result<()> {
    sqlx::query(
        "insert into tenancy.audit_events (tenant_id, actor_kind, actor_id, action, target, outcome, detail, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(event.tenant_id.map(TenantId::as_uuid))
    .bind(event.actor.kind())
    .bind(event.actor.subject().map(tenancy_core::Subject::as_str))
    .bind(&event.action)
    .bind(&event.target)
    .bind(event.outcome.as_str())
    .bind(Some(&event.detail).filter(|detail| !detail.is_null()))
    .bind(event.request_id)
    .execute(tx)
    .await
    .map(drop)
    .map_err(from_sqlx)
}

impl<S: fmt::Debug> fmt::Debug for Tx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("scope", &self.scope).field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// A part of a transaction that can be undone on its own. Statements run on `&mut *savepoint`.
///
/// [`release`](Savepoint::release) keeps the part; a dropped savepoint undoes it, before the next statement or the commit.
#[must_use = "a savepoint that is dropped undoes what was done since"]
#[derive(Debug)]
pub struct Savepoint<'a, S> {
    tx: &'a mut Tx<S>,
    depth: u32,
    released: bool,
}

impl<S> Savepoint<'_, S> {
    /// Keeps what was done since, as part of the transaction.
    ///
    /// # Errors
    /// [`TransactionAborted`](ErrorKind::TransactionAborted) if a statement since then failed: the part is undone.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn release(mut self) -> Result<()> {
        self.tx.settle_pending().await.map_err(from_sqlx)?;
        self.tx.control(&format!("RELEASE tenancy_{}", self.depth)).await.map_err(from_sqlx)?;
        self.released = true;
        self.tx.depth = self.depth;
        Ok(())
    }
}

impl<S> Drop for Savepoint<'_, S> {
    fn drop(&mut self) {
        if !self.released {
            self.tx.unwind = Some(self.depth);
            self.tx.depth = self.depth;
        }
    }
}

impl<S> Deref for Savepoint<'_, S> {
    type Target = Tx<S>;

    fn deref(&self) -> &Tx<S> {
        self.tx
    }
}

impl<S> DerefMut for Savepoint<'_, S> {
    fn deref_mut(&mut self) -> &mut Tx<S> {
        self.tx
    }
}

/// A query, with the transaction's say on whether its statement may be named.
struct Scoped<E> {
    query: E,
    named: bool,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Scoped<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        // A statement object names a statement of the server connection that prepared it.
        self.query.statement().filter(|_| self.named)
    }

    fn take_arguments(&mut self) -> std::result::Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.named && self.query.persistent()
    }
}

/// The rows of one statement; until the first answer comes, the statement counts as in flight.
struct Tracked<'e> {
    rows: BoxStream<'e, Step>,
    in_flight: &'e mut bool,
}

type Step = std::result::Result<Either<PgQueryResult, PgRow>, sqlx::Error>;

impl Stream for Tracked<'_> {
    type Item = Step;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        let step = self.rows.as_mut().poll_next(cx);
        if step.is_ready() {
            *self.in_flight = false;
        }
        step
    }
}

impl<'c, S: Send + fmt::Debug> Executor<'c> for &'c mut Tx<S> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Step>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let query = Scoped { query, named: self.named_statements };
        let rows = stream::once(async move {
            self.settle_pending().await?;
            let Tx { lease, in_flight, .. } = self;
            *in_flight = true;
            Ok::<_, sqlx::Error>(Tracked { rows: lease.conn().fetch_many(query), in_flight })
        });
        rows.try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, std::result::Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut rows = self.fetch(query);
        Box::pin(async move { rows.try_next().await })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, std::result::Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            self.settle_pending().await?;
            self.in_flight = true;
            let done = self.lease.conn().prepare_with(sql, parameters).await;
            self.in_flight = false;
            done
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, std::result::Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            self.settle_pending().await?;
            self.in_flight = true;
            let done = self.lease.conn().describe(sql).await;
            self.in_flight = false;
            done
        })
    }
}
