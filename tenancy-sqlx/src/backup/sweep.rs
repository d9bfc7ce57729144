//! Removes what is kept no more: archives of backups that were deleted, what attempts left behind, and contents that no backup names.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures_util::{TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _};
use serde_json::Value;
use tenancy_core::backup::Schedule;
use tenancy_core::erase::{Erasable, Stored};
use tenancy_core::objects::{delete_all, into_error};
use tenancy_core::{Actor, ErrorKind, Result, TenantId};
use uuid::Uuid;

use super::Backups;
use super::archive::YOUNG;
use super::objects;
use super::take::OBJECTS;
use crate::dangerous::begin_admin;
use crate::error::from_sqlx;

impl Backups {
    /// Queues the removal of what was deleted, or is left of a backup that came to nothing a day ago, for one tenant with which nothing else
    /// is done; gives whose. One that failed is tried again after an hour.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: a later call goes on.
    pub async fn queue_sweep(&self) -> Result<Option<TenantId>> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        // A restore takes a backup first. What is left is swept once it is too old to be of a backup that is being taken.
        let query = sqlx::query_scalar(
            "select left_over.tenant_id from (
                select b.tenant_id, b.deleted_at as since from tenancy.backups b where b.deleted_at is not null
                union all
                select o.tenant_id, o.updated_at from tenancy.operations o join tenancy.tenants t on t.id = o.tenant_id and t.status <> 'erased'
                 where o.kind in ('backup', 'restore') and (o.state in ('failed', 'cancelled') and o.attempts > 0 or o.state = 'done' and o.attempts > 1)
                   and o.updated_at <= $1
                   and not exists (select from tenancy.operations s where s.tenant_id = o.tenant_id and s.kind = 'sweep' and s.state = 'done'
                                     and s.updated_at > o.updated_at + ($2 - $1))
              ) left_over
              where not exists (select from tenancy.operations o where o.tenant_id = left_over.tenant_id
                                  and (o.state in ('queued', 'running') or o.kind = 'sweep' and o.state = 'failed' and o.updated_at > $3))
              order by since limit 1",
        );
        let now = self.db.inner().clock.now();
        let query = query.bind(now - YOUNG).bind(now).bind(now - Schedule::RETRY);
        let found: Option<Uuid> = query.fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        let Some(tenant) = found.map(TenantId::from_uuid).transpose()? else { return Ok(None) };
        match tx.queue_operation(tenant, Self::SWEEP, serde_json::json!({}), None).await {
            Ok(_) => tx.commit().await.map(|()| Some(tenant)),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(None), // something else is done with it now
            Err(error) => Err(error),
        }
    }

    /// Removes what the tenant's kept backups have no use for: where one of them can't be read, so that nobody knows what it names, nothing.
    pub(super) async fn sweep(&self, tenant: TenantId) -> Result<Value> {
        let now = self.db.inner().clock.now();
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let kept = tx.backups(tenant, None, i64::MAX).await?;
        let query = sqlx::query_scalar("select id from tenancy.backups where tenant_id = $1 and deleted_at is not null");
        let deleted: Vec<Uuid> = query.bind(tenant.as_uuid()).fetch_all(&mut tx).await.map_err(from_sqlx)?;
        tx.rollback().await?;

        let keep: BTreeSet<Path> = kept.iter().map(|backup| self.at(tenant, backup.id, backup.attempt)).collect();
        let gone: Vec<Path> = deleted.iter().map(|id| self.of(tenant, *id)).collect();
        let mut named = BTreeSet::new();
        for backup in &kept {
            let mut lines = objects::lines(self.open(backup).await?.0.segment(OBJECTS)?);
            while let Some(listed) = lines.try_next().await? {
                named.insert(listed.blob.name);
            }
        }
        let is_stale = move |meta: &ObjectMeta| {
            let is_gone = gone.iter().any(|folder| meta.location.prefix_matches(folder));
            is_gone || (!keep.contains(&meta.location) && meta.last_modified < now - YOUNG)
        };
        let archives = self.listed_below(&self.archives(tenant)).await?.into_iter().filter(is_stale);
        delete_all(&*self.store, stream::iter(archives.map(|meta| Ok(meta.location)))).await?;
        let contents = self.blobs().sweep(tenant, &named, now).await?;
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let query = sqlx::query("delete from tenancy.backups where tenant_id = $1 and id = any($2) and deleted_at is not null");
        query.bind(tenant.as_uuid()).bind(&deleted).execute(&mut tx).await.map_err(from_sqlx)?;
        tx.commit().await?;
        Ok(serde_json::json!({ "backups": deleted, "contents": contents }))
    }

    async fn listed_below(&self, folder: &Path) -> Result<Vec<ObjectMeta>> {
        self.store.list(Some(folder)).try_collect().await.map_err(into_error)
    }
}

#[async_trait]
impl Erasable for Backups {
    async fn measure(&self, tenant: TenantId) -> Result<Stored> {
        let all = self.listed_below(&self.root.clone().join(tenant.to_string())).await?;
        Ok(all.iter().fold(Stored::default(), |sum, meta| Stored::new(sum.objects + 1, sum.bytes.saturating_add(meta.size))))
    }

    async fn erase(&self, tenant: TenantId) -> Result<()> {
        let below = self.root.clone().join(tenant.to_string());
        delete_all(&*self.store, self.store.list(Some(&below)).map_ok(|meta| meta.location)).await
    }
}
