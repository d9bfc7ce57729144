//! Many objects at once; and all of a tenant, for its erasure, when no context can be had any more.

use async_trait::async_trait;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, Result as StoreResult};

use super::{TenantObjects, into_error};
use crate::erase::{Erasable, Stored};
use crate::{Result, TenantId};

/// Deletes objects, as many at once as the store can. One that is gone already is as good.
///
/// # Errors
/// As [`into_error`] has them, of the list or of a deletion: others may be deleted then.
///
/// # Cancel safety
/// Some may be left.
pub async fn delete_all(store: &dyn ObjectStore, locations: impl Stream<Item = StoreResult<Path>> + Send + 'static) -> Result<()> {
    let mut deleted = store.delete_stream(locations.boxed());
    while let Some(done) = deleted.next().await {
        match done {
            Ok(_) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(into_error(error)),
        }
    }
    Ok(())
}

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
        delete_all(&store, store.list(None).map_ok(|meta| meta.location)).await?;
        self.close(tenant);
        Ok(())
    }
}
