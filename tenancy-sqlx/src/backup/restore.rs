//! Restores a tenant. Each step can be stopped at any point, and done again; the rows come back in one transaction.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, TenantChange, TenantId, TenantStatus};
use uuid::Uuid;

use super::archive::ArchiveReader;
use super::as_of::AsOf;
use super::details::{Details, Was};
use super::fit::{Fit, Fits, Wanted};
use super::renew::Renewal;
use super::session::{self, Changed, Restoring};
use super::tables::Table;
use super::{Backups, NewRestore};
use crate::error::from_sqlx;
use crate::operations::{Operation, Progress, is_tried_again};
use crate::settle::{heard, settle};
use crate::tx::SystemTx;

/// A backup that is open, and how it fits the database.
pub(super) struct Source {
    pub(super) archive: ArchiveReader,
    pub(super) details: Details,
    /// All tables of now.
    pub(super) tables: Vec<Table>,
    pub(super) fits: Fits,
    /// Where its rows are to be those of another moment.
    pub(super) as_of: Option<AsOf>,
}

impl Source {
    /// How many rows the backup has of a table, and their hash.
    pub(super) fn segment(&self, fit: &Fit) -> Result<(u64, &str)> {
        let segment = self.archive.segments().iter().find(|segment| segment.name == fit.was.sql);
        let segment = segment.ok_or_else(|| Error::invalid("archive", format!("has no rows of {}", fit.was.sql)))?;
        Ok((segment.rows, &segment.hash))
    }

    /// How many rows the backup has of all tables that are restored.
    pub(super) fn rows(&self) -> Result<u64> {
        self.fits.fits.iter().map(|fit| self.segment(fit).map(|(rows, _)| rows)).sum()
    }
}

impl Backups {
    pub(super) async fn restore(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        let tenant = TenantId::from_uuid(operation.tenant_id)?;
        let asked: NewRestore = serde_json::from_value(operation.input.clone())
            .map_err(|error| Error::new(ErrorKind::Internal, "the operation can't be read").with_source(error))?;
        if asked.dry_run {
            return self.differences(&asked, tenant, progress).await;
        }
        match self.restored(&asked, tenant, operation, progress).await {
            Ok(result) => Ok(result),
            Err(error) if is_tried_again(&error) => Err(error), // goes on later, behind the fence
            Err(error) => {
                self.give_up(tenant, &error, progress).await?;
                Err(error)
            }
        }
    }

    pub(super) async fn source(&self, asked: &NewRestore, tenant: TenantId, progress: &Progress) -> Result<Source> {
        progress.at("checking the archive", 0, None, "").await?;
        let id = asked.backup.ok_or_else(|| Error::new(ErrorKind::Internal, "the operation names no backup"))?;
        let backup = progress.read().await?.backup(tenant, id).await?;
        let (archive, _) = self.open(&backup).await?;
        let details: Details = serde_json::from_value(archive.details().clone())
            .map_err(|error| Error::invalid("archive", "has a manifest of another kind").with_source(error))?;
        let tables = session::tables(self.db.inner()).await?;
        let wanted = Wanted { tables: asked.tables.as_deref(), may_lose: asked.may_lose };
        let fits = Fits::of(&details.tables, &tables, wanted)?;
        let as_of = match asked.as_of {
            Some(at) => Some(AsOf::of(at, (&details, &fits), asked.tables.is_none(), tenant, progress).await?),
            None => None,
        };
        Ok(Source { archive, details, tables, fits, as_of })
    }

    /// Stages all tables, as they were at the moment that is wanted.
    pub(super) async fn stage(&self, restoring: &mut Restoring<'_>, source: &Source, progress: &Progress) -> Result<()> {
        for n in 0..source.fits.fits.len() {
            self.stage_table(restoring, n, source, progress).await?;
        }
        self.rewind(restoring, source, progress).await
    }

    /// Stages, before anybody has to wait for it, what will be needed: as far as the backup that was taken first tells, or the number of rows.
    async fn stage_ahead(&self, restoring: &mut Restoring<'_>, source: &Source, before: Option<Uuid>, progress: &Progress) -> Result<()> {
        if source.as_of.is_some() {
            return self.stage(restoring, source, progress).await;
        }
        let now = match before {
            Some(before) => self.taken_before(restoring.tenant, before, progress).await,
            None => None,
        };
        for (n, fit) in source.fits.fits.iter().enumerate() {
            let (rows, hash) = source.segment(fit)?;
            let same = match &now {
                Some(now) => now.segments().iter().any(|segment| segment.name == fit.was.sql && segment.hash == hash),
                None => {
                    restoring.as_app().await?;
                    restoring.count(&fit.table).await? == rows
                }
            };
            if !same || !fit.is_exact() {
                self.stage_table(restoring, n, source, progress).await?;
            }
        }
        Ok(())
    }

    /// The backup that was taken first, if it is still there: what it tells is made sure of later.
    async fn taken_before(&self, tenant: TenantId, id: Uuid, progress: &Progress) -> Option<ArchiveReader> {
        let opened = async {
            let backup = progress.read().await?.backup(tenant, id).await?;
            self.open(&backup).await
        };
        match opened.await {
            Ok((archive, _)) => Some(archive),
            Err(error) => {
                tracing::warn!(%tenant, backup = %id, ?error, "the backup that a restore took first can't be read: rows are counted");
                None
            }
        }
    }

    /// Stages the tables that are not to the last bit as the backup has them, unless they are staged already.
    async fn stage_changed(&self, restoring: &mut Restoring<'_>, source: &Source, progress: &Progress) -> Result<()> {
        for (n, fit) in source.fits.fits.iter().enumerate() {
            if restoring.loaded.contains_key(&n) {
                continue;
            }
            progress.at(&format!("comparing {}", fit.table.sql), n as u64, Some(source.fits.fits.len() as u64), "tables").await?;
            restoring.as_app().await?;
            if !fit.is_exact() || restoring.digest(&fit.table, &fit.table.from(), false).await? != source.segment(fit)?.1 {
                self.stage_table(restoring, n, source, progress).await?;
            }
        }
        Ok(())
    }

    async fn stage_table(&self, restoring: &mut Restoring<'_>, n: usize, source: &Source, progress: &Progress) -> Result<()> {
        let fit = &source.fits.fits[n];
        progress.at(&format!("loading {}", fit.was.sql), restoring.loaded.values().sum(), Some(source.rows()?), "rows").await?;
        let content = source.archive.segment(&fit.was.sql)?.inspect_ok(|bytes| progress.moved(bytes.len()));
        let rows = restoring.stage(n, fit, Box::pin(content)).await?;
        if rows == source.segment(fit)?.0 {
            return Ok(());
        }
        Err(Error::invalid("archive", format!("has {rows} rows of {}, and says otherwise", fit.was.sql)))
    }

    /// What a restore would change: nothing does.
    async fn differences(&self, asked: &NewRestore, tenant: TenantId, progress: &Progress) -> Result<Value> {
        let source = self.source(asked, tenant, progress).await?;
        let mut restoring = Restoring::begin(self.db.inner(), tenant).await?;
        if source.as_of.is_some() {
            self.stage(&mut restoring, &source, progress).await?;
        }
        self.stage_changed(&mut restoring, &source, progress).await?;
        restoring.as_app().await?;
        let mut tables = BTreeMap::new();
        for (n, fit) in source.fits.fits.iter().enumerate() {
            progress.at(&format!("comparing {}", fit.table.sql), n as u64, Some(source.fits.fits.len() as u64), "tables").await?;
            if !restoring.loaded.contains_key(&n) {
                tables.insert(fit.table.sql.clone(), json!(Changed::default()));
                continue;
            }
            let difference = restoring.difference(n, fit).await?;
            let mut row = json!(difference);
            for how in ["removed", "changed", "added"].into_iter().filter(|how| row[*how].as_i64() > Some(0)).collect::<Vec<_>>() {
                row["examples"][how] = restoring.examples(n, fit, how).await?.into();
            }
            tables.insert(fit.table.sql.clone(), row);
        }
        let (objects, missing) = match (asked.as_of, &asked.tables) {
            (Some(_), only) => self.objects_as_of(&mut restoring, &source, (tenant, only.is_none())).await?.unzip(),
            (None, None) => (self.object_differences(&source, tenant).await?, None),
            (None, Some(_)) => (None, None),
        };
        restoring.rollback().await?;
        Ok(json!({
            "backup": asked.backup, "taken_at": source.details.taken_at, "as_of": asked.as_of, "dry_run": true,
            "tables": tables, "objects": objects, "objects_missing": missing, "left_out": source.fits.lost, "new_since": source.fits.new,
        }))
    }

    async fn restored(&self, asked: &NewRestore, tenant: TenantId, operation: &Operation, progress: &Progress) -> Result<Value> {
        let source = self.source(asked, tenant, progress).await?;
        let all = asked.tables.is_none();
        if progress.finished("applied").await?.is_none() {
            // Whole: a backup of how the tenant is now is not taken in vain.
            source.archive.verify().await?;
            let before = self.before(asked, operation, progress).await?;
            if all {
                // Most objects come before anybody has to wait for them: what no row names is seen by nobody.
                self.put_missing(&source, tenant, progress).await?;
            }
            self.halted("objects before").await;
            let mut restoring = Restoring::begin(self.db.inner(), tenant).await?;
            self.stage_ahead(&mut restoring, &source, before, progress).await?;
            self.halted("staged").await;
            self.fence(asked, tenant, progress).await?;
            // What is not staged is as in the backup: behind the fence that can be made sure of.
            self.stage_changed(&mut restoring, &source, progress).await?;
            if all {
                self.put_missing(&source, tenant, progress).await?;
            }
            self.apply(restoring, &source, (asked, before), tenant, operation, progress).await?;
        }
        self.halted("applied").await;
        if self.objects_follow(asked) {
            if asked.reads {
                heard(tenant, progress).await?;
            }
            self.match_objects(&source, tenant, progress).await?;
        }
        self.halted("objects after").await;
        let applied = progress.finished("applied").await?.unwrap_or_default();
        let mut tx = progress.begin().await?;
        progress.tell(&mut tx, "done", 0, None, "").await?;
        progress.done(&mut tx, &applied).await?; // first: only then may the tenant be served again
        self.lower_fence(&mut tx, tenant, progress).await?;
        tx.commit().await?;
        self.refresh().await;
        Ok(applied)
    }

    /// Backs the tenant up as it is, so that a restore can be undone.
    async fn before(&self, asked: &NewRestore, operation: &Operation, progress: &Progress) -> Result<Option<Uuid>> {
        if asked.without_backup {
            return Ok(None);
        }
        if let Some(done) = progress.finished("backed up").await? {
            return Ok(serde_json::from_value(done).ok());
        }
        let id = Uuid::now_v7();
        let backup = self.taken(operation, progress, id, "before restore").await?;
        let mut tx = progress.begin().await?;
        tx.insert_backup(&backup).await?;
        progress.finish(&mut tx, "backed up", &json!(id)).await?;
        tx.commit().await?;
        Ok(Some(id))
    }

    /// Whether objects are made the backup's once the rows are.
    const fn objects_follow(&self, asked: &NewRestore) -> bool {
        asked.tables.is_none() && asked.as_of.is_none() && self.objects.is_some()
    }

    /// From here on nobody is served on behalf of the tenant, or reads alone are, and what was under way is over.
    async fn fence(&self, asked: &NewRestore, tenant: TenantId, progress: &Progress) -> Result<()> {
        if progress.finished("fenced").await?.is_none() {
            let mut tx = progress.begin().await?;
            let was = tx.lock_tenant(tenant).await?.status;
            let fence = TenantChange::status(TenantStatus::Restoring).with_reads(asked.reads && was == TenantStatus::Active);
            tx.update_tenant(tenant, fence, None, self.db.inner().clock.now()).await?;
            progress.finish(&mut tx, "fenced", &json!(was)).await?;
            tx.commit().await?;
            self.refresh().await;
        }
        self.halted("fenced").await;
        if progress.finished("settled").await?.is_none() {
            settle(tenant, progress).await?;
            let mut tx = progress.begin().await?;
            progress.finish(&mut tx, "settled", &json!(true)).await?;
            tx.commit().await?;
        }
        self.halted("settled").await;
        Ok(())
    }

    async fn lower_fence(&self, tx: &mut SystemTx, tenant: TenantId, progress: &Progress) -> Result<()> {
        let Some(was) = progress.finished_in(tx, "fenced").await? else { return Ok(()) };
        let was: TenantStatus = was.as_str().unwrap_or_default().parse()?;
        tx.update_tenant(tenant, TenantChange::status(was), None, self.db.inner().clock.now()).await.map(drop)
    }

    pub(super) async fn refresh(&self) {
        if let Err(error) = self.db.catalog().refresh().await {
            tracing::warn!(?error, "the catalog was not refreshed during a restore");
        }
    }

    /// Has the tenant served again, as it was. Not once its rows are the backup's: then the rest has to follow.
    pub(super) async fn cancel_restore(&self, tenant: TenantId, progress: &Progress) -> Result<bool> {
        let mut tx = progress.begin().await?;
        if progress.finished_in(&mut tx, "applied").await?.is_some() {
            tx.rollback().await?;
            return Ok(false);
        }
        progress.cancelled(&mut tx).await?; // first: only then may the tenant be served again
        self.lower_fence(&mut tx, tenant, progress).await?;
        tx.commit().await?;
        self.refresh().await;
        Ok(true)
    }

    /// Ends an operation that can't succeed: the tenant is as it was, and served again.
    async fn give_up(&self, tenant: TenantId, error: &Error, progress: &Progress) -> Result<()> {
        if progress.finished("applied").await?.is_some() {
            return Ok(()); // its rows are the backup's already: an operator has to look
        }
        let mut tx = progress.begin().await?;
        progress.failed(&mut tx, error).await?;
        self.lower_fence(&mut tx, tenant, progress).await?;
        tx.commit().await?;
        self.refresh().await;
        Ok(())
    }

    /// The one transaction: all rows, or none.
    async fn apply(
        &self,
        mut restoring: Restoring<'_>,
        source: &Source,
        (asked, before): (&NewRestore, Option<Uuid>),
        tenant: TenantId,
        operation: &Operation,
        progress: &Progress,
    ) -> Result<()> {
        progress.at("restoring rows", 0, None, "").await?;
        restoring.as_app().await?;
        let fits = &source.fits.fits;
        let changed = restoring.merge(fits).await?;
        self.halted("merged").await;
        progress.at("verifying", 0, None, "").await?;
        restoring.check_references(&source.tables, fits, &changed).await?;
        self.verify(&mut restoring, source, &changed, None).await?;
        let (mut missing, mut gauges) = (None, None);
        if source.as_of.is_some() {
            missing = self.objects_as_of(&mut restoring, source, (tenant, asked.tables.is_none())).await?.map(|(_, missing)| missing);
            if asked.tables.is_none() {
                gauges = Some(self.gauges_as_of(&mut restoring, source).await?);
            }
        }
        let mut tx = self.written(restoring, fits).await?;
        sqlx::query("select tenancy.restore_shares()").execute(&mut tx).await.map_err(from_sqlx)?;
        match gauges {
            Some(gauges) => self.put_gauges(&mut tx, &gauges, tenant).await?,
            None if asked.tables.is_none() => self.put_settings(&mut tx, &source.details.tenant, tenant).await?,
            None => {}
        }
        if asked.reads && self.objects_follow(asked) {
            // They are replaced one by one: rows and objects would not belong together.
            tx.update_tenant(tenant, TenantChange::default().with_reads(false), None, self.db.inner().clock.now()).await?;
        }
        let tables: BTreeMap<&str, &Changed> = fits.iter().zip(&changed).map(|(fit, changed)| (fit.table.sql.as_str(), changed)).collect();
        let result = json!({
            "backup": asked.backup, "taken_at": source.details.taken_at, "as_of": asked.as_of, "before": before,
            "tables": tables, "objects_missing": missing, "left_out": source.fits.lost, "new_since": source.fits.new,
        });
        let event = AuditEvent::new(tx.actor().clone(), "backup.restore", asked.backup.map(|id| id.to_string()).unwrap_or_default())
            .with_tenant(tenant);
        tx.audit(&event.with_detail(json!({ "operation": operation.id, "result": result }))).await?;
        progress.take_hold(&mut tx).await?;
        progress.finish(&mut tx, "applied", &result).await?;
        self.halted("before commit").await;
        tx.commit().await
    }

    /// What follows once the rows are written: sequences go on after them.
    pub(super) async fn written(&self, mut restoring: Restoring<'_>, fits: &[Fit]) -> Result<SystemTx> {
        let counted = restoring.counted(fits).await?;
        let mut tx = restoring.into_admin().await?;
        for (table, column, highest) in counted {
            let query = sqlx::query("select tenancy.restore_sequence($1::regclass, $2::name, $3)").bind(table).bind(column).bind(highest);
            query.execute(&mut tx).await.map_err(from_sqlx)?;
        }
        Ok(tx)
    }

    /// Makes sure that the tables are to the last bit what the backup has, their ids as they were before they were renewed; or what was
    /// loaded, where that is not the same.
    pub(super) async fn verify(
        &self,
        restoring: &mut Restoring<'_>,
        source: &Source,
        changed: &[Changed],
        renewal: Option<&Renewal>,
    ) -> Result<()> {
        for (n, (fit, changed)) in source.fits.fits.iter().zip(changed).enumerate() {
            if !restoring.loaded.contains_key(&n) {
                continue; // it has the archive's hash
            }
            let (rows, hash) = source.segment(fit)?;
            let wrong = if source.as_of.is_some() || !fit.is_exact() {
                match restoring.difference(n, fit).await? {
                    none if none.is_none() => None,
                    Changed { removed: 0, added: 0, .. } => Some("contents"),
                    _ => Some("rows"),
                }
            } else if changed.is_none() {
                (restoring.count(&fit.table).await? != rows).then_some("rows")
            } else {
                let from = renewal.and_then(|renewal| renewal.back(fit)).unwrap_or_else(|| fit.table.from());
                // A hash that is the same is one of as many rows.
                let in_order = changed.added.cast_unsigned() == rows;
                match restoring.digest(&fit.table, &from, in_order).await? == hash {
                    true => None,
                    false if restoring.count(&fit.table).await? == rows => Some("contents"),
                    false => Some("rows"),
                }
            };
            if let Some(wrong) = wrong {
                let than = if source.as_of.is_some() { "it had then" } else { "the backup" };
                return Err(Error::new(ErrorKind::Conflict, format!("{} has other {wrong} than {than} after a restore", fit.table.sql)));
            }
        }
        Ok(())
    }

    /// The tenant's settings, branding, flags and gauges. Its slug, plan and quotas are the provider's.
    pub(super) async fn put_settings(&self, tx: &mut SystemTx, was: &Was, tenant: TenantId) -> Result<()> {
        tx.restore_settings(tenant, &was.settings).await?;
        tx.restore_looks(tenant, (&was.branding, &was.flags), self.db.inner().clock.now()).await?;
        self.put_gauges(tx, &json!(was.gauges), tenant).await
    }

    async fn put_gauges(&self, tx: &mut SystemTx, gauges: &Value, tenant: TenantId) -> Result<()> {
        let query = sqlx::query("select tenancy.restore_gauges($1, $2)").bind(tenant.as_uuid()).bind(gauges);
        query.execute(&mut *tx).await.map(drop).map_err(from_sqlx)
    }
}
