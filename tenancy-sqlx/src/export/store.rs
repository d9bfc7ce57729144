//! Where exports are: `<root>/<tenant>/<operation>/<attempt>/<file>`, in the operators' part of an object store.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{GetResult, ObjectStore, ObjectStoreExt as _};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tenancy_core::erase::{Erasable, Stored};
use tenancy_core::objects::{delete_all, into_error, parse_path};
use tenancy_core::{Error, Result, TenantId};

use super::Export;
use crate::operations::Operation;
use crate::upload::Upload;

/// The exports of all tenants. A clone is another handle to them.
///
/// It erases a tenant's exports with the tenant, where an erasure [is given it](crate::erase::Erase::with_objects).
#[derive(Clone)]
pub struct Exports {
    store: Arc<dyn ObjectStore>,
    root: Path,
}

impl Exports {
    /// In `store`, below `root`, which must not be below the root of the tenants' objects.
    pub fn new(store: Arc<dyn ObjectStore>, root: Path) -> Self {
        Self { store, root }
    }

    /// A file of an export that is done.
    ///
    /// # Errors
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound); [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn file(&self, of: &Operation, file: &str) -> Result<GetResult> {
        let attempt = of.result.as_ref().and_then(|result| result["attempt"].as_i64());
        let (true, Some(attempt)) = (of.kind == Export::KIND && of.state == "done", attempt) else { return Err(Error::not_found()) };
        let file = parse_path(file).map_err(|error| Error::not_found().with_source(error))?;
        let at: Path = self.folder(of, attempt).parts().chain(file.parts()).collect();
        self.store.get(&at).await.map_err(into_error)
    }

    /// The folder of one attempt: another node's that was given up writes elsewhere.
    pub(super) fn folder(&self, of: &Operation, attempt: i64) -> Path {
        self.of(of).join(attempt.to_string())
    }

    fn of(&self, operation: &Operation) -> Path {
        self.root.clone().join(operation.tenant_id.to_string()).join(operation.id.to_string())
    }

    pub(super) fn create(&self, at: Path) -> File {
        File { upload: Upload::new(Arc::clone(&self.store), at), hash: Sha256::new() }
    }

    /// Removes what earlier attempts left.
    pub(super) async fn tidy(&self, operation: &Operation) -> Result<()> {
        let keep = self.folder(operation, operation.attempts);
        self.remove(&self.of(operation), Some(&keep)).await
    }

    async fn remove(&self, below: &Path, keep: Option<&Path>) -> Result<()> {
        let stale = |at: &Path| keep.is_none_or(|keep| !at.prefix_matches(keep));
        let listed = self.store.list(Some(below)).map_ok(|meta| meta.location);
        let stale: Vec<Path> = listed.try_filter(|at| std::future::ready(stale(at))).try_collect().await.map_err(into_error)?;
        delete_all(&*self.store, stream::iter(stale.into_iter().map(Ok))).await
    }
}

#[async_trait]
impl Erasable for Exports {
    async fn measure(&self, tenant: TenantId) -> Result<Stored> {
        let below = self.root.clone().join(tenant.to_string());
        let add = |sum: Stored, meta: object_store::ObjectMeta| async move {
            Ok(Stored::new(sum.objects + 1, sum.bytes.saturating_add(meta.size)))
        };
        self.store.list(Some(&below)).try_fold(Stored::default(), add).await.map_err(into_error)
    }

    async fn erase(&self, tenant: TenantId) -> Result<()> {
        self.remove(&self.root.clone().join(tenant.to_string()), None).await
    }
}

impl fmt::Debug for Exports {
    /// Leaves out the store, whose own text may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exports").field("root", &self.root.as_ref()).finish_non_exhaustive()
    }
}

/// What was written.
#[derive(Debug, Serialize)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A file that is being written, and its hash. It is there once it is [closed](File::close).
pub(super) struct File {
    upload: Upload,
    hash: Sha256,
}

impl File {
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.upload.write(bytes).await
    }

    pub(super) async fn close(self) -> Result<Written> {
        let bytes = self.upload.close().await?;
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Written { bytes, sha256 })
    }
}
