//! A restore as of a moment: the rows of a backup, and what the journal has between the two, whichever is the earlier one.
//!
//! The journal has an image of every row that came and of every row that went. So the rows of the moment are those of the backup, less
//! and more those that went and came in transactions that are in one of the two and not in the other. No order matters, and a row that
//! should go and is not there shows that something was not journaled: nothing is restored then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tenancy_core::objects::into_error;
use tenancy_core::{Error, ErrorKind, Result, TenantId};

use super::details::Details;
use super::fit::{Fit, Fits};
use super::journal::{self, Point};
use super::restore::Source;
use super::session::{Changed, Restoring, does_not_fit};
use super::tables::{object_columns, quoted};
use super::take::OBJECTS;
use super::{Backup, Backups, objects};
use crate::error::from_sqlx;
use crate::operations::Progress;
use crate::tx::SystemTx;

/// A moment, and where in the journal the backup is that it is reached from.
#[derive(Debug)]
pub(super) struct AsOf {
    at: DateTime<Utc>,
    point: Point,
}

fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Conflict, why)
}

fn said(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// Makes sure that the tenant's journal reaches back to the moment.
pub(super) async fn reaches(tx: &mut SystemTx, tenant: TenantId, at: DateTime<Utc>) -> Result<()> {
    let future = sqlx::query_scalar("select $1 > clock_timestamp()").bind(at).fetch_one(&mut *tx).await.map_err(from_sqlx)?;
    if future {
        return Err(Error::invalid("as_of", "must not be in the future"));
    }
    match tx.journal_since(tenant).await? {
        None => Err(refused("the tenant keeps no journal, or no backup was taken since it does: only whole backups can be restored")),
        Some(since) if at < since => {
            Err(refused(format!("the tenant's journal goes back to {}: an earlier moment can't be restored", said(since))))
        }
        Some(_) => Ok(()),
    }
}

/// The backup to reach a moment from: the newest one before it, or else the oldest one after it.
pub(super) async fn backup_for(tx: &mut SystemTx, tenant: TenantId, at: DateTime<Utc>) -> Result<Backup> {
    let since = tx.journal_since(tenant).await?;
    let all = tx.backups(tenant, None, i64::MAX).await?;
    let usable = || all.iter().filter(|backup| since.is_none_or(|since| backup.taken_at >= since));
    let found = usable().find(|backup| backup.taken_at <= at).or_else(|| usable().next_back());
    found.cloned().ok_or_else(|| {
        refused("no backup of the tenant was taken since its journal begins: take one, from which the moment can be reached")
    })
}

impl AsOf {
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict), saying why, where the moment can't be reached from the backup.
    pub(super) async fn of(
        at: DateTime<Utc>,
        (details, fits): (&Details, &Fits),
        all: bool,
        tenant: TenantId,
        progress: &Progress,
    ) -> Result<Self> {
        let mut tx = progress.read().await?;
        reaches(&mut tx, tenant, at).await?;
        let Some(point) = details.journal.clone() else {
            return Err(refused("the backup was taken without the journal: choose one that was taken since it began"));
        };
        let now = journal::marks(&mut tx).await?;
        let mut refusals = Vec::new();
        for sql in fits.fits.iter().map(|fit| fit.table.sql.as_str()).chain(all.then_some(journal::GAUGES)) {
            match (point.tables.get(sql), now.get(sql)) {
                (_, None) => refusals.push(format!("{sql} is not journaled, or a part of it is not: call tenancy.journal_tables()")),
                (None, _) => refusals.push(format!("{sql} was not journaled when the backup was taken")),
                (Some(then), Some(now)) if !now.covers(then) => {
                    refusals.push(format!("{sql} was not journaled for a while, or lost a part, since the backup"));
                }
                (Some(then), Some(now)) if then.form != now.form => refusals.push(format!("{sql} has other columns since the backup")),
                _ => {}
            }
        }
        if !refusals.is_empty() {
            let why = format!(
                "the moment can't be reached from this backup: {}. Take a backup, and restore from it or without as_of",
                refusals.join("; ")
            );
            return Err(refused(why));
        }
        let as_of = Self { at, point };
        as_of.is_covered(&mut tx, tenant).await?;
        drop(tx);
        as_of.committed(progress).await?;
        Ok(as_of)
    }

    /// Makes sure that all is in the journal that is between the backup and the moment.
    async fn is_covered(&self, tx: &mut SystemTx, tenant: TenantId) -> Result<()> {
        reaches(tx, tenant, self.at).await?;
        let query = sqlx::query_as(
            "select j.era = $2, pg_snapshot_xmin($3::pg_snapshot) > j.pruned,
                    exists (select from tenancy.journal r where r.tenant_id = $1 and not exists (
                              select from tenancy.journal_commits c where c.tenant_id = $1 and c.xid = r.xid and c.at is not null))
               from tenancy.journaled j where j.tenant_id = $1",
        );
        let query = query.bind(tenant.as_uuid()).bind(self.point.era).bind(&self.point.snapshot);
        let (same, kept, unknown): (bool, bool, bool) = query.fetch_one(tx).await.map_err(from_sqlx)?;
        if !same {
            return Err(refused("the journal was switched off since the backup: choose one that was taken since"));
        } else if !kept {
            return Err(refused("the backup is older than what the journal still has: choose a later one, also one from after the moment"));
        } else if unknown {
            return Err(refused("the journal has rows without the time of their commit: somebody took its triggers away"));
        }
        Ok(())
    }

    /// Waits for those who have written down an earlier time than now for their commit, and that others don't see yet.
    async fn committed(&self, progress: &Progress) -> Result<()> {
        let holders = "select virtualtransaction from pg_locks where locktype = 'advisory' and classid = 1953391466 and granted
                          and database = (select oid from pg_database where datname = current_database())";
        let mut open: BTreeSet<String> = BTreeSet::new();
        let mut first = true;
        while first || !open.is_empty() {
            let held: Vec<String> = sqlx::query_scalar(holders).fetch_all(&mut progress.read().await?).await.map_err(from_sqlx)?;
            if first {
                open.extend(held);
            } else {
                open.retain(|id| held.contains(id));
                progress.at("waiting for commits under way", 0, None, "").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            first = false;
        }
        Ok(())
    }
}

impl Backups {
    /// Makes the staged rows those of the moment.
    pub(super) async fn rewind(&self, restoring: &mut Restoring<'_>, source: &Source, progress: &Progress) -> Result<()> {
        let Some(as_of) = &source.as_of else { return Ok(()) };
        progress.at("reading the journal", 0, None, "").await?;
        restoring.read_journal(&as_of.point.snapshot, as_of.at).await?;
        // Only now is it known that nothing was removed before it was read.
        as_of.is_covered(&mut progress.read().await?, restoring.tenant).await?;
        for (n, fit) in source.fits.fits.iter().enumerate() {
            restoring.rewind(n, fit, as_of).await?;
        }
        Ok(())
    }

    /// The gauges go with the rows; settings, branding and flags stay as they are.
    pub(super) async fn gauges_as_of(&self, restoring: &mut Restoring<'_>, source: &Source) -> Result<Value> {
        Ok(json!(restoring.gauges(source.details.tenant.gauges.clone()).await?))
    }

    /// What becomes of objects: how many of the backup's come back (none go), and which ones the rows name that are neither there nor in it.
    pub(super) async fn objects_as_of(
        &self,
        restoring: &mut Restoring<'_>,
        source: &Source,
        (tenant, all): (TenantId, bool),
    ) -> Result<Option<(Changed, Vec<String>)>> {
        let named = restoring.named(&source.fits.fits).await?;
        let Some(store) = self.store_of(tenant)? else { return Ok(None) };
        let mut there: BTreeSet<String> =
            store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.map_err(into_error)?;
        let mut changed = Changed::default();
        if all {
            let mut lines = objects::lines(source.archive.segment(OBJECTS)?);
            while let Some(listed) = lines.try_next().await? {
                changed.added += i64::from(there.insert(listed.path));
            }
        }
        Ok(Some((changed, named.difference(&there).cloned().collect())))
    }
}

impl Restoring<'_> {
    /// Takes out of the journal what the tenant's rows of the snapshot differ by from those of the moment.
    async fn read_journal(&mut self, snapshot: &str, at: DateTime<Utc>) -> Result<()> {
        self.become_role(&self.inner.roles.restore()).await?;
        let sql = "create temp table journal_net on commit drop as select rel, form, image, n from tenancy.journal_net($1::text::pg_snapshot, $2)";
        sqlx::query(sql).bind(snapshot).bind(at).execute(&mut self.tx).await.map_err(from_sqlx)?;
        self.tx.control("analyze journal_net").await.map_err(from_sqlx)
    }

    /// Takes the rows that went out of those that were staged, and puts in those that came.
    async fn rewind(&mut self, n: usize, fit: &Fit, as_of: &AsOf) -> Result<()> {
        let sql = &fit.table.sql;
        let query = sqlx::query_as(
            "select count(*), count(*) filter (where form <> $2), coalesce(sum(-n) filter (where n < 0), 0)::bigint from journal_net where rel = $1",
        );
        let query = query.bind(sql).bind(as_of.point.tables.get(sql).map(|mark| mark.form));
        let (changes, others, gone): (i64, i64, i64) = query.fetch_one(&mut self.tx).await.map_err(from_sqlx)?;
        if changes == 0 {
            return Ok(());
        } else if others > 0 {
            return Err(refused(format!("{sql} had other columns for a while between the backup and the moment: restore a whole backup")));
        }
        self.known.insert(n);
        self.tx.control(&fit.analyze(n)).await.map_err(from_sqlx)?;
        // A value's text is that of the journal's trigger.
        let path: String = sqlx::query_scalar("select current_setting('search_path')").fetch_one(&mut self.tx).await.map_err(from_sqlx)?;
        let same = "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD';
                    SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'";
        self.tx.control(same).await.map_err(from_sqlx)?;
        let query = sqlx::query(AssertSqlSafe(fit.take_out(n))).bind(sql);
        let found = query.execute(&mut self.tx).await.map_err(from_sqlx)?.rows_affected();
        if found != gone.unsigned_abs() {
            return Err(refused(format!(
                "{} rows of {sql} that went since are not in the backup: something was written that is not in the journal. Restore a whole backup",
                gone.unsigned_abs().abs_diff(found)
            )));
        }
        let query = sqlx::query(AssertSqlSafe(fit.put_in(n))).bind(sql);
        query.execute(&mut self.tx).await.map_err(|error| does_not_fit(fit, error))?;
        // As it was: operators of types that an extension brought are found by it.
        let path = if path.is_empty() { "''".to_owned() } else { path };
        self.tx.control(&format!("SET LOCAL search_path = {path}; analyze s{n}")).await.map_err(from_sqlx)?;
        let rows = self.staged(n).await?;
        self.loaded.insert(n, rows);
        Ok(())
    }

    /// What the tenant's gauges measured in the moment, by what they did in the backup.
    async fn gauges(&mut self, mut gauges: BTreeMap<String, i64>) -> Result<BTreeMap<String, i64>> {
        self.become_role(&self.inner.roles.restore()).await?;
        self.tx.control("create temp table journal_gauge (metric text, used bigint) on commit drop").await.map_err(from_sqlx)?;
        let query = sqlx::query_as(
            "select (x.r).metric, (x.r).used, n from (select j.image::journal_gauge as r, j.n from journal_net j where j.rel = $1 offset 0) x order by n",
        );
        let net: Vec<(String, i64, i64)> = query.bind(journal::GAUGES).fetch_all(&mut self.tx).await.map_err(from_sqlx)?;
        self.as_app().await?;
        for (metric, used, n) in net {
            let fits = match n {
                -1 => gauges.remove(&metric) == Some(used),
                1 => gauges.insert(metric, used).is_none(),
                _ => false,
            };
            if !fits {
                return Err(refused("a gauge of the tenant's was changed and that is not in the journal: restore a whole backup"));
            }
        }
        Ok(gauges)
    }

    /// How many rows were staged.
    async fn staged(&mut self, n: usize) -> Result<u64> {
        let rows: i64 =
            sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from s{n}"))).fetch_one(&mut self.tx).await.map_err(from_sqlx)?;
        Ok(rows.cast_unsigned())
    }

    /// The objects that the staged rows name, where the host declared how.
    async fn named(&mut self, fits: &[Fit]) -> Result<BTreeSet<String>> {
        let declared = object_columns(&mut self.tx).await?;
        let mut named = BTreeSet::new();
        for (sql, column, path) in declared {
            let Some(n) = fits.iter().position(|fit| fit.table.sql == sql && fit.columns().any(|has| has.name == column)) else { continue };
            let column = quoted(&column);
            let sql = format!("select replace($1, '{{}}', s.{column}::text) from s{n} s where s.{column} is not null");
            let paths: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).bind(path).fetch_all(&mut self.tx).await.map_err(from_sqlx)?;
            named.extend(paths);
        }
        Ok(named)
    }
}

impl Fit {
    fn image_columns(&self, of: &str) -> String {
        self.columns().map(|column| format!("{of}{}", column.quoted())).collect::<Vec<_>>().join(", ")
    }

    /// Takes as many rows of each image out of those staged as went.
    fn take_out(&self, n: usize) -> String {
        format!(
            "with gone as (select image, -n as n from journal_net where rel = $1 and n < 0),
                  found as (select s.at, g.n, row_number() over (partition by g.image) as nth
                              from (select s.ctid as at, row({})::text as image from s{n} s) s join gone g on g.image = s.image)
             delete from s{n} s using found f where s.ctid = f.at and f.nth <= f.n",
            self.image_columns("s.")
        )
    }

    /// Adds those that came. The subquery is one for itself, so that each image is read once and not once per column.
    fn put_in(&self, n: usize) -> String {
        if self.columns().next().is_none() {
            return format!("insert into s{n} select from journal_net j, generate_series(1, j.n) where j.rel = $1 and j.n > 0");
        }
        format!(
            "insert into s{n} ({}) select (x.r).* from (select j.image::s{n} as r, j.n from journal_net j where j.rel = $1 and j.n > 0 offset 0) x, generate_series(1, x.n)",
            self.image_columns("")
        )
    }
}
