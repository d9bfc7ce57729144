//! Makes another tenant of a backup: in one transaction, so that it is there whole, or not at all.

use serde_json::{Value, json};
use tenancy_core::{AuditEvent, Error, ErrorKind, NewTenant, Result, TenantId};

use super::renew::Renewal;
use super::session::Restoring;
use super::{Backups, NewClone, NewRestore};
use crate::error::from_sqlx;
use crate::operations::{Operation, Progress, is_tried_again};

impl Backups {
    pub(super) async fn clone_tenant(&self, operation: &Operation, progress: &Progress) -> Result<Value> {
        let tenant = TenantId::from_uuid(operation.tenant_id)?;
        let asked: NewClone = serde_json::from_value(operation.input.clone())
            .map_err(|error| Error::new(ErrorKind::Internal, "the operation can't be read").with_source(error))?;
        let new = self.new_id(progress).await?;
        let made = self.cloned(&asked, (tenant, new), operation, progress).await;
        if made.as_ref().is_err_and(|error| !is_tried_again(error)) {
            self.discard_clone(progress).await?;
        }
        made
    }

    /// There is no such tenant, and will not be one: nor are there objects of it.
    pub(super) async fn discard_clone(&self, progress: &Progress) -> Result<()> {
        let mut tx = progress.begin().await?; // another node's is not to be touched
        let named = progress.finished_in(&mut tx, "named").await?.and_then(|id| serde_json::from_value(id).ok());
        tx.rollback().await?;
        match (&self.objects, named) {
            (Some(objects), Some(new)) => tenancy_core::erase::Erasable::erase(objects, TenantId::from_uuid(new)?).await,
            _ => Ok(()),
        }
    }

    /// The new tenant's id, the same in each attempt.
    async fn new_id(&self, progress: &Progress) -> Result<TenantId> {
        if let Some(known) = progress.finished("named").await?.and_then(|id| serde_json::from_value(id).ok()) {
            return TenantId::from_uuid(known);
        }
        let id = TenantId::new();
        let mut tx = progress.begin().await?;
        progress.finish(&mut tx, "named", &json!(id)).await?;
        tx.commit().await?;
        Ok(id)
    }

    async fn cloned(
        &self,
        asked: &NewClone,
        (tenant, new): (TenantId, TenantId),
        operation: &Operation,
        progress: &Progress,
    ) -> Result<Value> {
        let whole = NewRestore { may_lose: asked.may_lose, ..NewRestore::new(asked.backup) };
        let source = self.source(&whole, tenant, progress).await?;
        let mut renewal = if asked.new_ids { Some(Renewal::begin(&source.fits.fits, progress).await?) } else { None };
        // Named by numbers that are not known yet, objects come with the rows.
        let late = renewal.as_ref().is_some_and(Renewal::counts_objects);
        if !late {
            // No tenant of this id is there yet: nobody sees what is put.
            self.put_into(&source, (tenant, new), renewal.as_ref(), progress).await?;
        }
        self.halted("objects before").await;

        let mut restoring = Restoring::begin(self.db.inner(), new).await?;
        let was = &source.details.tenant;
        let name = asked.name.clone().unwrap_or_else(|| was.name.clone());
        let mut made = NewTenant::new(asked.slug.clone(), name).active();
        (made.id, made.plan) = (new, was.plan.clone());
        restoring.create(made, self.db.inner().clock.now()).await?;
        self.stage(&mut restoring, &source, progress).await?;
        let fits = &source.fits.fits;
        let mut renewed = None;
        if let Some(renewal) = &mut renewal {
            progress.at("renewing ids", 0, None, "").await?;
            renewed = Some(renewal.renew(&mut restoring, fits, was).await?);
        }
        if late {
            if let Some(objects) = &self.objects {
                tenancy_core::erase::Erasable::erase(objects, new).await?; // an attempt before this one had other numbers
            }
            self.put_into(&source, (tenant, new), renewal.as_ref(), progress).await?;
        }
        restoring.as_app().await?;
        let changed = restoring.merge(fits).await?;
        progress.at("verifying", 0, None, "").await?;
        restoring.check_references(&source.tables, fits, &changed).await?;
        self.verify(&mut restoring, &source, &changed, renewal.as_ref()).await?;
        let mut tx = self.written(restoring, fits).await?;
        self.put_settings(&mut tx, was, new).await?;
        let copy = sqlx::query("select tenancy.clone_quotas($1, $2)").bind(tenant.as_uuid()).bind(new.as_uuid());
        copy.execute(&mut tx).await.map_err(from_sqlx)?;
        let rows: i64 = changed.iter().map(|changed| changed.added).sum();
        let mut result = json!({
            "tenant_id": new, "slug": asked.slug, "backup": asked.backup, "taken_at": source.details.taken_at, "rows": rows,
            "objects": source.details.objects, "left_out": source.fits.lost,
        });
        if let Some(renewed) = &renewed {
            result["new_ids"] = renewed.ids.into();
            result["left"] = json!(renewed.left);
        }
        for about in [tenant, new] {
            let event = AuditEvent::new(tx.actor().clone(), "backup.clone", asked.backup.to_string()).with_tenant(about);
            tx.audit(&event.with_detail(json!({ "operation": operation.id, "tenant": tenant, "clone": new, "new_ids": asked.new_ids })))
                .await?;
        }
        progress.take_hold(&mut tx).await?;
        progress.tell(&mut tx, "done", rows.cast_unsigned(), Some(rows.cast_unsigned()), "rows").await?;
        progress.done(&mut tx, &result).await?;
        self.halted("before commit").await;
        tx.commit().await?;
        self.refresh().await;
        Ok(result)
    }
}
