//! One connection on loan from a pool, which goes back clean or not at all.
//!
//! sqlx returns a dropped connection to its pool as it is; a cancelled `begin` leaves it inside an open transaction, bound to a tenant.
//! So nothing in this crate drops a [`PoolConnection`] that has seen a `BEGIN`. A lease does: in the background it drains what is in
//! flight, rolls back, proves by a nonce that replies are in step and that no tenant is bound, and only then gives the connection back.
//! Whatever fails, or takes longer than [`SCRUB_TIMEOUT`], closes the connection.
//!
//! This is the one module that takes connections from pools.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres, Row};

use crate::error::is_lost;

/// How long a scrub may wait for a statement that is still running before it closes the connection.
pub(crate) const SCRUB_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Lease {
    /// `None` only while being dropped.
    conn: Option<PoolConnection<Postgres>>,
    /// Whether the connection may be inside a transaction, or have replies outstanding.
    dirty: bool,
    /// Off only in the negative control of our own tests.
    scrub: bool,
}

impl Lease {
    /// Takes a connection and sends `begin` as one message, which is also the proof that the connection is alive: a dead one is
    /// discarded and the next is tried, since no statement of the caller has run.
    ///
    /// # Cancel safety
    /// Safe: dropping the future scrubs the connection.
    pub(crate) async fn begin(pool: &PgPool, begin: &str, scrub: bool) -> Result<Self, sqlx::Error> {
        Self::begin_asking(pool, begin, scrub).await.map(|(lease, _)| lease)
    }

    /// [`begin`](Lease::begin), with statements that give rows before the last transaction begins: they may run again after a lost
    /// connection.
    ///
    /// # Cancel safety
    /// As `begin`.
    pub(crate) async fn begin_asking(pool: &PgPool, begin: &str, scrub: bool) -> Result<(Self, Vec<PgRow>), sqlx::Error> {
        // After a restart of the server every idle connection is dead: one try for each, and one for a new one.
        let mut tries = pool.options().get_max_connections() + 1;
        loop {
            let mut lease = Self::acquire(pool, scrub).await?;
            let error = match sqlx::raw_sql(AssertSqlSafe(begin)).fetch_all(lease.conn()).await {
                Ok(rows) => return Ok((lease, rows)),
                Err(error) => error,
            };
            lease.discard();
            tries -= 1;
            if tries == 0 || !is_lost(&error) {
                return Err(error);
            }
        }
    }

    /// Asks one question outside of any transaction, in one message: one round trip. `sql` may run again after a lost connection.
    ///
    /// # Cancel safety
    /// Safe: dropping the future scrubs the connection.
    pub(crate) async fn ask(pool: &PgPool, sql: &str, scrub: bool) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut tries = pool.options().get_max_connections() + 1;
        loop {
            let mut lease = Self::acquire(pool, scrub).await?;
            let error = match sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(lease.conn()).await {
                Ok(rows) => {
                    lease.dirty = false;
                    return Ok(rows);
                }
                Err(error) => error,
            };
            tries -= 1;
            if tries == 0 || !is_lost(&error) {
                return Err(error);
            }
            lease.discard();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that takes connections from a pool")]
    async fn acquire(pool: &PgPool, scrub: bool) -> Result<Self, sqlx::Error> {
        Ok(Self { conn: Some(pool.acquire().await?), dirty: true, scrub })
    }

    /// The connection.
    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        self.conn.as_mut().expect("a lease holds its connection until it is dropped")
    }

    /// Runs statements that we wrote, as one message.
    pub(crate) async fn send(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(self.conn()).await.map(drop)
    }

    /// Ends the transaction with `sql` and gives the connection back.
    ///
    /// # Cancel safety
    /// Safe for the pool; whether `sql` took effect is unknown.
    pub(crate) async fn end(mut self, sql: &str) -> Result<(), sqlx::Error> {
        self.send(sql).await?;
        self.dirty = false;
        Ok(())
    }

    /// Closes the connection without a word: it can't be trusted.
    fn discard(mut self) {
        if let Some(conn) = self.conn.take() {
            drop(conn.detach());
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.dirty && self.scrub => drop(runtime.spawn(scrub(Quarantine(Some(conn))))),
            Ok(_) => drop(conn),
            // No runtime to scrub in, nor for sqlx to return it in: close it.
            Err(_) => drop(conn.detach()),
        }
    }
}

/// Holds a connection that is not clean yet; if the scrub itself is dropped (the runtime ends), the connection is closed.
struct Quarantine(Option<PoolConnection<Postgres>>);

impl Drop for Quarantine {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            drop(conn.detach());
        }
    }
}

async fn scrub(mut quarantine: Quarantine) {
    let Some(conn) = quarantine.0.as_mut() else { return };
    match tokio::time::timeout(SCRUB_TIMEOUT, roll_back(conn)).await {
        Ok(Ok(true)) => drop(quarantine.0.take()), // clean: back to the pool
        verdict => {
            tracing::warn!(?verdict, "a connection could not be cleaned, and is closed");
            if let Some(conn) = quarantine.0.take() {
                // A farewell is a courtesy: whether it is heard doesn't matter.
                let _ = tokio::time::timeout(SCRUB_TIMEOUT, conn.detach().close_hard()).await;
            }
        }
    }
}

/// Rolls back whatever is open. `false`: the replies are out of step, or a tenant is bound to the session.
async fn roll_back(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let nonce = rand::random::<u64>().to_string();
    // The sealed mode keeps the tenant in the other setting.
    let sql = format!(
        "ROLLBACK; SELECT '{nonce}' || coalesce(current_setting('tenancy.tenant_id', true), '')
            || coalesce(substring(current_setting('backtrace_functions') from '^tenancy_.*'), '')"
    );
    let row = conn.fetch_one(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    Ok(row.try_get::<String, _>(0).is_ok_and(|reply| reply == nonce))
}
