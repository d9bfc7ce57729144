//! Proves that a backup can be restored: by restoring it, into a tenant that nobody ever sees.

use std::collections::BTreeMap;
use std::time::Instant;

use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use tenancy_core::{AuditEvent, Error, ErrorKind, NewTenant, Outcome, Result, TenantId, TenantStatus};
use uuid::Uuid;

use super::fit::Fit;
use super::references::Between;
use super::restore::Source;
use super::scratch::Shape;
use super::session::Restoring;
use super::{Backups, NewRestore};
use crate::operations::{Operation, Progress, is_tried_again};

impl Backups {
    pub(super) async fn drill(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        let tenant = TenantId::from_uuid(operation.tenant_id)?;
        let backup: Uuid = serde_json::from_value(operation.input["backup"].clone())
            .map_err(|error| Error::new(ErrorKind::Internal, "the operation can't be read").with_source(error))?;
        let report = self.drilled(backup, tenant, progress).await;
        let (outcome, detail) = match &report {
            Ok(report) => (Outcome::Done, report.clone()),
            Err(error) if is_tried_again(error) => return report,
            Err(error) => (Outcome::Denied, json!({ "error": error.to_string() })),
        };
        let mut tx = progress.begin().await?;
        let mut event = AuditEvent::new(tx.actor().clone(), "backup.drill", backup.to_string()).with_tenant(tenant).with_detail(detail);
        event.outcome = outcome;
        tx.audit(&event).await?;
        match &report {
            Ok(report) => progress.done(&mut tx, report).await?,
            Err(error) => progress.failed(&mut tx, error).await?,
        }
        tx.commit().await?;
        report
    }

    async fn drilled(&self, backup: Uuid, tenant: TenantId, progress: &Progress) -> Result<Value> {
        let began = Instant::now();
        let source = self.source(&NewRestore::new(backup), tenant, progress).await?;
        let rows = self.rehearsed(&source, progress).await?;
        let restored = began.elapsed();
        let objects = self.read_objects(&source, tenant, progress).await?;
        Ok(json!({
            "backup": backup, "taken_at": source.details.taken_at, "tables": rows, "objects": objects, "new_since": source.fits.new,
            "restored_ms": u64::try_from(restored.as_millis()).unwrap_or(u64::MAX),
            "took_ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }))
    }

    /// Restores all rows, looks at them, and undoes it. Wherever that proves as much, they are loaded into tables beside the real ones.
    async fn rehearsed(&self, source: &Source, progress: &Progress) -> Result<BTreeMap<String, Value>> {
        let scratch = TenantId::new();
        let mut restoring = Restoring::begin(self.db.inner(), scratch).await?;
        let slug = format!("drill-{}", scratch.as_uuid().simple()).parse()?;
        let mut made = NewTenant::new(slug, "A drill");
        (made.id, made.status) = (scratch, TenantStatus::Restoring);
        restoring.create(made, self.db.inner().clock.now()).await?;

        let fits = &source.fits.fits;
        let shapes = restoring.shapes(fits).await?;
        let tables: Vec<(&Fit, &Shape)> = fits.iter().zip(&shapes).collect();
        let (mut total, all) = (0, source.rows()?);
        for (n, &(fit, shape)) in tables.iter().enumerate() {
            progress.at(&format!("loading {}", fit.was.sql), total, Some(all), "rows").await?;
            let content = source.archive.segment(&fit.was.sql)?.inspect_ok(|bytes| progress.moved(bytes.len()));
            let rows = restoring.rehearse(n, (fit, shape), Box::pin(content)).await?;
            if rows != source.segment(fit)?.0 {
                return Err(Error::new(ErrorKind::Conflict, format!("{} takes other rows than the backup has", fit.table.sql)));
            }
            total += rows;
        }

        progress.at("verifying", 0, None, "").await?;
        let mut keys = Vec::new();
        for (fit, _) in &tables {
            keys.extend(fit.table.refers.iter().map(|key| Between::new(&fit.table, key, fits, |n, _| !shapes[n].is_apart())));
        }
        restoring.check_keys(&keys).await?;
        let mut report = BTreeMap::new();
        for (n, &(fit, shape)) in tables.iter().enumerate() {
            restoring.check_policies(n, (fit, shape)).await?;
            let (rows, hash) = source.segment(fit)?;
            if fit.is_exact() && restoring.digest(&fit.table, &shape.place(n, fit), true).await? != hash {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{} has other contents than the backup after a restore", fit.table.sql),
                ));
            }
            if restoring.reaches_others(&fit.table, shape.is_apart()).await? {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{} lets other tenants' rows be read or deleted: check its isolation", fit.table.sql),
                ));
            }
            report.insert(fit.table.sql.clone(), json!({ "rows": rows, "identical": fit.is_exact() }));
        }
        self.halted("merged").await;
        restoring.rollback().await?;
        Ok(report)
    }
}
