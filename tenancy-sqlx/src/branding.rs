//! A tenant's own admins change its branding, and nothing else of its catalog row.

use serde_json::{Map, Value, json};
use sqlx::Row;
use sqlx::types::Json;
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, Tenant, TenantContext};

use crate::error::{from_sqlx, from_tenant_row};
use crate::tx::TenantTx;

impl TenantTx {
    /// Changes the tenant's branding by `change`, with its audit event, if the tenant's row is of one of the versions `expected`. Others who
    /// change the row wait until the commit; after it, [`PgCatalog::refresh`](crate::PgCatalog::refresh) makes this node see it at once.
    /// The new version of the row comes back, and the former branding.
    ///
    /// Who may do so is the caller's to decide.
    ///
    /// # Errors
    /// Those of `change`; [`VersionMismatch`](ErrorKind::VersionMismatch); [`Invalid`](ErrorKind::Invalid) if it has become too large;
    /// [`Conflict`](ErrorKind::Conflict) for a tenant that is being erased.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn change_branding(
        &mut self,
        by: &TenantContext,
        expected: Option<&[i64]>,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<()> + Send,
    ) -> Result<(u64, Map<String, Value>)> {
        if by.tenant_id() != self.tenant_id() {
            return Err(Error::not_found());
        }
        let row = sqlx::query("select * from tenancy.lock_own_branding()").fetch_one(&mut *self).await.map_err(from_sqlx)?;
        let (branding, version) = (row.try_get("branding").map_err(from_sqlx)?, row.try_get("version").map_err(from_sqlx)?);
        let (Some(Json(before)), Some(version)): (Option<Json<Map<String, Value>>>, Option<i64>) = (branding, version) else {
            return Err(Error::not_found());
        };
        if expected.is_some_and(|versions| !versions.contains(&version)) {
            return Err(Error::new(ErrorKind::VersionMismatch, "the tenant has changed since it was read: read it again"));
        }
        let mut after = before.clone();
        change(&mut after)?;
        if after == before {
            return Ok((version.unsigned_abs(), before));
        }
        Tenant::check_branding(&after)?;
        let write = sqlx::query_scalar("select tenancy.set_own_branding($1)").bind(Json(&after)).fetch_one(&mut *self);
        let version: Option<i64> = write.await.map_err(from_tenant_row)?;
        let version = version.ok_or_else(Error::not_found)?.unsigned_abs();
        let detail = json!({ "version": version, "before": before, "after": after });
        let target = self.tenant_id().to_string();
        self.audit(AuditEvent::new(by.principal().actor(), "tenant.branding", target).with_detail(detail)).await?;
        Ok((version, before))
    }
}
