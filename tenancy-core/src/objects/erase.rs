//! All objects of a tenant at once: for its erasure, when no context can be had any more.

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use object_store::{Error as StoreError, ObjectStore};

use super::{TenantObjects, into_error};
use crate::erase::{Erasable, Stored};
use crate::{Result, TenantId};

#[async_trait]
impl Erasable for TenantObjects {
    async fn measure(&self, tenant: TenantId) -> Result<Stored> {
        let store = self.of(tenant)?;
        let add = |sum: Stored, meta: object_store::ObjectMeta| async move {
            Ok(Stored { objects: sum.objects + 1, bytes: sum.bytes.saturating_add(meta.size) })
        };
        store.list(None).try_fold(Stored::default(), add).await.map_err(into_error)
    }

    async fn erase(&self, tenant: TenantId) -> Result<()> {
        let store = self.of(tenant)?;
        let listed = store.list(None).map_ok(|meta| meta.location).boxed();
        let mut deleted = store.delete_stream(listed);
        while let Some(done) = deleted.next().await {
            match done {
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(into_error(error)),
            }
        }
        self.close(tenant);
        Ok(())
    }
}
