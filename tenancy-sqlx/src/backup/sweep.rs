//! Removes what is kept no more: archives of backups that were deleted, what attempts left behind, and contents that no backup names.

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _};
use tenancy_core::erase::{Erasable, Stored};
use tenancy_core::objects::into_error;
use tenancy_core::{Actor, Result, TenantId};
use uuid::Uuid;

use super::archive::YOUNG;
use super::objects;
use super::take::OBJECTS;
use super::{Backups, remove};
use crate::dangerous::begin_admin;
use crate::error::from_sqlx;

impl Backups {
    /// Removes the backups of one tenant that were deleted, if there is one that has some; gives which.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable); [`Invalid`](tenancy_core::ErrorKind::Invalid) if one that is kept can't be
    /// read, so that nobody knows which contents it names: its archive is removed from nothing.
    ///
    /// # Cancel safety
    /// Safe: a later call goes on.
    pub async fn sweep_next(&self) -> Result<Option<TenantId>> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let query = sqlx::query_scalar("select tenant_id from tenancy.backups where deleted_at is not null order by deleted_at limit 1");
        let found: Option<Uuid> = query.fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        tx.rollback().await?;
        let Some(tenant) = found.map(TenantId::from_uuid).transpose()? else { return Ok(None) };
        self.sweep(tenant).await?;
        Ok(Some(tenant))
    }

    /// Removes what the tenant's kept backups have no use for. What is younger than two days stays, since a backup may be under way.
    ///
    /// # Errors
    /// Those of [`sweep_next`](Backups::sweep_next).
    ///
    /// # Cancel safety
    /// Safe: a later call goes on.
    pub async fn sweep(&self, tenant: TenantId) -> Result<()> {
        let now = self.db.inner().clock.now();
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let kept = tx.backups(tenant, None, i64::MAX).await?;
        let query = sqlx::query_scalar("select id from tenancy.backups where tenant_id = $1 and deleted_at is not null");
        let deleted: Vec<Uuid> = query.bind(tenant.as_uuid()).fetch_all(&mut tx).await.map_err(from_sqlx)?;
        tx.rollback().await?;

        let keep: BTreeSet<Path> = kept.iter().map(|backup| self.at(tenant, backup.id, backup.attempt)).collect();
        let gone: Vec<Path> = deleted.iter().map(|id| self.of(tenant, *id)).collect();
        for meta in self.listed_below(&self.archives(tenant)).await? {
            let is_gone = gone.iter().any(|folder| meta.location.prefix_matches(folder));
            if is_gone || (!keep.contains(&meta.location) && meta.last_modified < now - YOUNG) {
                remove(&*self.store, &meta.location).await?;
            }
        }
        let mut named = BTreeSet::new();
        for backup in &kept {
            let mut lines = objects::lines(self.open(backup).await?.0.segment(OBJECTS)?);
            while let Some(listed) = lines.try_next().await? {
                named.insert(listed.blob.name);
            }
        }
        self.blobs().sweep(tenant, &named, now).await?;
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let query = sqlx::query("delete from tenancy.backups where tenant_id = $1 and id = any($2) and deleted_at is not null");
        query.bind(tenant.as_uuid()).bind(deleted).execute(&mut tx).await.map_err(from_sqlx)?;
        tx.commit().await
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
        for meta in self.listed_below(&self.root.clone().join(tenant.to_string())).await? {
            remove(&*self.store, &meta.location).await?;
        }
        Ok(())
    }
}
