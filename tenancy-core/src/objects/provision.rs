//! Whether a tenant's objects can be kept: asked while it is provisioned, when no context can be had yet.

use async_trait::async_trait;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::{TenantObjects, into_error};
use crate::provision::Probe;
use crate::{Error, ErrorKind, Result, TenantId};

const CONTENT: &[u8] = b"provisioning";

#[async_trait]
impl Probe for TenantObjects {
    async fn probe(&self, tenant: TenantId) -> Result<()> {
        // One name, so that a run that is stopped here leaves nothing that the next one does not take away.
        let (store, path) = (self.of(tenant)?, Path::from("provisioning-probe"));
        store.put(&path, CONTENT.into()).await.map_err(into_error)?;
        let read = async { store.get(&path).await?.bytes().await }.await.map_err(into_error)?;
        if read.as_ref() != CONTENT {
            return Err(Error::new(ErrorKind::Unavailable, "the object store does not give back what was written"));
        }
        store.delete(&path).await.map_err(into_error)
    }
}
