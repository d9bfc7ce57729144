//! The transactions of a backup and of a restore, and the roles that they take on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Row as _};
use tenancy_core::{Actor, Error, ErrorKind, NewTenant, Result, TenantId};

use super::fit::Fit;
use super::tables::{self, Table, quoted};
use crate::dangerous::begin_as;
use crate::db::Inner;
use crate::error::from_sqlx;
use crate::settle::BYSTANDER;
use crate::tx::SystemTx;

/// The tables of now, as the backup's role sees them.
pub(super) async fn tables(inner: &Inner) -> Result<Vec<Table>> {
    let role = inner.roles.backup();
    let mut tx = begin_as(inner, Actor::System, &format!("BEGIN READ ONLY; SET LOCAL ROLE {role}"), &[role]).await?;
    tables::read(&mut tx).await
}

/// Begins the one snapshot that a backup reads: as a role that can write nothing, in a transaction that can't either. The database lets
/// one in at a time.
///
/// # Errors
/// [`Unavailable`](ErrorKind::Unavailable) while another backup reads.
pub(super) async fn begin_snapshot(inner: &Inner, paced: bool) -> Result<SystemTx> {
    let role = inner.roles.backup();
    // Sorted on all cores the rows would be there at once, and wait for the pace then.
    let kind = if paced { "SET LOCAL max_parallel_workers_per_gather = 0;" } else { "" };
    // With its first snapshot it can't be SET to READ WRITE any more. row_security: an error rather than fewer rows, should the role be bound.
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL ROLE {role}; SET LOCAL row_security = off;
         SET LOCAL extra_float_digits = 1; SET LOCAL intervalstyle = 'postgres'; SET LOCAL datestyle = 'ISO'; {kind} SELECT"
    );
    let mut tx = begin_as(inner, Actor::System, &begin, &[role]).await?;
    let alone: bool =
        sqlx::query_scalar("select pg_try_advisory_xact_lock($1, 1)").bind(BYSTANDER).fetch_one(&mut tx).await.map_err(from_sqlx)?;
    if alone { Ok(tx) } else { Err(Error::new(ErrorKind::Unavailable, "another tenant of this database is being backed up")) }
}

/// What became of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Changed {
    pub(super) removed: i64,
    pub(super) changed: i64,
    pub(super) added: i64,
}

impl Changed {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The one transaction of a restore, bound to one tenant.
///
/// Rows are staged as a role that may do nothing but that, and written as the application's, under row-level security: whatever an archive
/// says, no other tenant's row can be touched. Triggers don't fire, and foreign keys are looked after once all is written.
pub(super) struct Restoring<'a> {
    pub(super) tx: SystemTx,
    pub(super) inner: &'a Inner,
    pub(super) tenant: TenantId,
    /// How many rows were staged of each table; of others, nothing has to be restored.
    pub(super) loaded: BTreeMap<usize, u64>,
    /// Of which of them the planner knows the keys.
    pub(super) known: BTreeSet<usize>,
}

impl fmt::Debug for Restoring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restoring").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl<'a> Restoring<'a> {
    pub(super) async fn begin(inner: &'a Inner, tenant: TenantId) -> Result<Self> {
        let (app, restore) = (inner.roles.app(), inner.roles.restore());
        let bound = inner.begin_for(&format!("BEGIN; SET LOCAL ROLE {app}"), tenant);
        // Of rows that were written in this transaction the planner knows nothing: a nested loop over them would take for ever.
        let begin = format!(
            "{bound}; SET LOCAL ROLE {restore}; SET LOCAL enable_nestloop = off; SET LOCAL jit = off; SET LOCAL work_mem = '64MB'; SET LOCAL session_replication_role = replica; SET LOCAL extra_float_digits = 1;
             SET LOCAL intervalstyle = 'postgres'; SET LOCAL datestyle = 'ISO'; SELECT pg_advisory_xact_lock_shared({BYSTANDER}, 2)"
        );
        let tx = begin_as(inner, Actor::System, &begin, &[app, restore]).await?;
        Ok(Self { tx, inner, tenant, loaded: BTreeMap::new(), known: BTreeSet::new() })
    }

    pub(super) async fn become_role(&mut self, role: &str) -> Result<()> {
        self.tx.control(&format!("SET LOCAL ROLE {role}")).await.map_err(from_sqlx)
    }

    /// Loads the rows of one table, and gives how many there were.
    pub(super) async fn stage(
        &mut self,
        n: usize,
        fit: &Fit,
        rows: futures_core::stream::BoxStream<'_, Result<bytes::Bytes>>,
    ) -> Result<u64> {
        self.become_role(&self.inner.roles.restore()).await?;
        let (make, copy) = fit.make(n, &self.inner.roles.app());
        self.tx.control(&make).await.map_err(|error| does_not_fit(fit, error))?;
        let count = self.tx.copy_in(&copy, rows).await?;
        if let Some(spread) = fit.spread(n) {
            self.tx.control(&format!("{spread}; drop table r{n}")).await.map_err(|error| does_not_fit(fit, error))?;
        }
        self.loaded.insert(n, count);
        Ok(count)
    }

    /// Works as the application's role from here on.
    pub(super) async fn as_app(&mut self) -> Result<()> {
        self.become_role(&self.inner.roles.app()).await
    }

    /// Has the planner know what joins by the key of what was staged go by.
    pub(super) async fn know(&mut self, n: usize, fit: &Fit) -> Result<()> {
        if self.known.insert(n) && fit.is_keyed() {
            let (app, restore) = (self.inner.roles.app(), self.inner.roles.restore());
            let analyze = format!("SET LOCAL ROLE {restore}; {}; SET LOCAL ROLE {app}", fit.analyze(n));
            self.tx.control(&analyze).await.map_err(from_sqlx)?;
        }
        Ok(())
    }

    /// What a restore would do to a table.
    pub(super) async fn difference(&mut self, n: usize, fit: &Fit) -> Result<Changed> {
        self.know(n, fit).await?;
        let row = sqlx::query(AssertSqlSafe(fit.difference(n))).bind(self.tenant.as_uuid()).fetch_one(&mut self.tx).await;
        let row = row.map_err(from_sqlx)?;
        Ok(Changed { removed: row.get(0), changed: row.get(1), added: row.get(2) })
    }

    /// The keys of some of the rows that would be `removed`, `changed` or `added`.
    pub(super) async fn examples(&mut self, n: usize, fit: &Fit, how: &str) -> Result<Vec<serde_json::Value>> {
        let Some(sql) = fit.examples(n, how) else { return Ok(Vec::new()) };
        sqlx::query_scalar(AssertSqlSafe(sql)).bind(self.tenant.as_uuid()).fetch_all(&mut self.tx).await.map_err(from_sqlx)
    }

    /// Makes the tables what was staged: removes from all, then adds to all. What is the same already is read, and not written.
    pub(super) async fn merge(&mut self, fits: &[Fit]) -> Result<Vec<Changed>> {
        let mut changed = vec![Changed::default(); fits.len()];
        let mut missing = Vec::new();
        for (n, fit) in fits.iter().enumerate() {
            let Some(&loaded) = self.loaded.get(&n) else { continue };
            let there = self.count(&fit.table).await?;
            if fit.is_keyed() {
                if there > 0 {
                    self.know(n, fit).await?;
                    changed[n] = self.remove(n, fit).await?;
                }
                // Each row that stayed is one of those that were staged.
                let same = there.saturating_sub((changed[n].changed + changed[n].removed).cast_unsigned());
                if same < loaded {
                    missing.push((n, same == 0));
                }
            } else {
                // Only a difference is reason enough to write all rows again.
                changed[n] = self.difference(n, fit).await?;
                if !changed[n].is_none() {
                    self.remove(n, fit).await?;
                    missing.push((n, true));
                }
            }
        }
        for (n, all) in missing {
            let fit = &fits[n];
            let added = sqlx::query(AssertSqlSafe(fit.add(n, all, self.tenant))).execute(&mut self.tx).await;
            let added = added.map_err(|error| conflicting(fit, error))?.rows_affected().cast_signed();
            if fit.is_keyed() {
                changed[n].added = added - changed[n].changed;
            }
        }
        Ok(changed)
    }

    /// Removes the rows that are not as they were staged.
    async fn remove(&mut self, n: usize, fit: &Fit) -> Result<Changed> {
        let row = sqlx::query(AssertSqlSafe(fit.remove(n))).bind(self.tenant.as_uuid()).fetch_one(&mut self.tx).await;
        let row = row.map_err(from_sqlx)?;
        Ok(Changed { changed: row.get(0), removed: row.get(1), added: 0 })
    }

    /// How many rows of the tenant a table has.
    pub(super) async fn count(&mut self, table: &Table) -> Result<u64> {
        let sql = format!("select count(*) from {} t where t.{} = $1", table.from(), quoted(&table.tenant_column));
        let rows: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(self.tenant.as_uuid()).fetch_one(&mut self.tx).await.map_err(from_sqlx)?;
        Ok(rows.cast_unsigned())
    }

    /// The hash of a table's rows, or of what stands for it, as a backup of them would have it. Where they were written
    /// `in_order`, its key's index gives them, and nothing is sorted.
    pub(super) async fn digest(&mut self, table: &Table, from: &str, in_order: bool) -> Result<String> {
        self.tx.control(&format!("SET LOCAL enable_sort = {}", if in_order { "off" } else { "on" })).await.map_err(from_sqlx)?;
        let copy = table.copy_out_of(from, &self.tenant.to_string());
        let (mut hash, mut rows) = (blake3::Hasher::new(), std::pin::pin!(self.tx.copy_out(&copy).await?));
        while let Some(bytes) = rows.try_next().await.map_err(from_sqlx)? {
            hash.update(&bytes);
        }
        Ok(hash.finalize().to_hex().to_string())
    }

    /// The highest value in each column whose default counts.
    pub(super) async fn counted(&mut self, fits: &[Fit]) -> Result<Vec<(String, String, i64)>> {
        let mut highest = Vec::new();
        for fit in fits {
            for column in fit.columns().filter(|column| column.sequence) {
                let sql = format!(
                    "select max(t.{})::bigint from {} t where t.{} = $1",
                    column.quoted(),
                    fit.table.from(),
                    quoted(&fit.table.tenant_column)
                );
                let max: Option<i64> =
                    sqlx::query_scalar(AssertSqlSafe(sql)).bind(self.tenant.as_uuid()).fetch_one(&mut self.tx).await.map_err(from_sqlx)?;
                highest.extend(max.map(|max| (fit.table.sql.clone(), column.name.clone(), max)));
            }
        }
        Ok(highest)
    }

    /// Makes the tenant first, where what is restored is another one than before.
    pub(super) async fn create(&mut self, new: NewTenant, now: DateTime<Utc>) -> Result<()> {
        self.become_admin().await?;
        self.tx.create_tenant(new, now).await?;
        let restore = self.inner.roles.restore();
        let sql = format!("SET LOCAL ROLE {restore}; SET LOCAL session_replication_role = replica");
        self.tx.control(&sql).await.map_err(from_sqlx)
    }

    async fn become_admin(&mut self) -> Result<()> {
        let (restore, admin) = (self.inner.roles.restore(), self.inner.roles.admin());
        let sql = format!("SET LOCAL ROLE {restore}; SET LOCAL session_replication_role = origin; SET LOCAL ROLE {admin}");
        self.tx.control(&sql).await.map_err(from_sqlx)
    }

    /// Whether it sees a row of somebody else, or could delete one. Where none of its own is there, also without saying whose.
    pub(super) async fn reaches_others(&mut self, table: &Table, written: bool) -> Result<bool> {
        let (from, tenant) = (table.from(), self.tenant);
        // The fewer rows there are, the less an index takes; and a table is as large as all tenants.
        self.tx.control("SET LOCAL enable_seqscan = off").await.map_err(from_sqlx)?;
        let theirs = format!("where t.{} <> '{tenant}'", quoted(&table.tenant_column));
        let seen = format!("select exists (select from {from} t {theirs})");
        if sqlx::query_scalar(AssertSqlSafe(seen)).fetch_one(&mut self.tx).await.map_err(from_sqlx)? {
            return Ok(true);
        }
        let gone = format!("delete from {from} t {}", if written { &theirs } else { "" });
        let gone = sqlx::query(AssertSqlSafe(gone)).execute(&mut self.tx).await.map_err(from_sqlx)?;
        Ok(gone.rows_affected() > 0)
    }

    /// The rows are written: what is left is the kit's own business, with its triggers.
    pub(super) async fn into_admin(mut self) -> Result<SystemTx> {
        self.become_admin().await?;
        Ok(self.tx)
    }

    pub(super) async fn rollback(self) -> Result<()> {
        self.tx.rollback().await
    }
}

pub(super) fn does_not_fit(fit: &Fit, error: sqlx::Error) -> Error {
    match error.as_database_error() {
        Some(db) if db.code().is_some_and(|code| code.starts_with("42") || code.starts_with("22")) => {
            let why = format!("the backup does not fit {}: {}", fit.table.sql, db.message());
            Error::new(ErrorKind::Conflict, why).with_source(error)
        }
        _ => from_sqlx(error),
    }
}

fn conflicting(fit: &Fit, error: sqlx::Error) -> Error {
    match error.as_database_error() {
        Some(db) if db.code().is_some_and(|code| code.starts_with("23")) => {
            let rule = db.constraint().unwrap_or("a constraint").to_owned();
            let why = format!("the backup does not fit {}: its rows break {rule}", fit.table.sql);
            Error::new(ErrorKind::Conflict, why).with_source(error)
        }
        _ => from_sqlx(error),
    }
}
