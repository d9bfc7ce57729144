//! Where the contents of attachments are: one store, with a folder per tenant.
//!
//! The row is the truth. A content is written under a fresh key before its row, and deleted after its row: so a row never lacks its
//! content, and a failure in between leaves at most an object that no row names. Those are logged, and can be removed by comparing
//! `attachments.object` with a listing.

use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tenancy_core::objects::{TenantObjects, TenantStore};
use tenancy_core::{Error, ErrorKind, Result};
use tenancy_sqlx::export::Exports;
use uuid::Uuid;

use crate::config::{Config, text};
use crate::credentials::private_folder;

/// Tenants' objects, in `store`.
pub(crate) fn open(store: Arc<dyn ObjectStore>) -> Result<TenantObjects> {
    let objects = TenantObjects::prefixed(store, Path::from("tenants"))?;
    Ok(objects.on_error(|tenant_id, error| {
        if !matches!(error, object_store::Error::NotFound { .. }) {
            tracing::error!(%tenant_id, "the object store failed: {error}");
        }
    }))
}

/// What was exported of tenants, in the operators' part of `store`.
pub(crate) fn exports(store: Arc<dyn ObjectStore>) -> Exports {
    Exports::new(store, Path::from("exports"))
}

/// The store that the settings name.
pub(crate) fn store(config: &Config) -> Result<Arc<dyn ObjectStore>> {
    match text(&config.objects) {
        None => local(&config.data_dir.join("objects")),
        Some("memory:" | "memory:///") => Ok(Arc::new(InMemory::new())),
        Some(text) => {
            // `Url` makes `file:x` and `file://x` absolute or a host's: not what was meant.
            let folder =
                Some(text).filter(|text| text.starts_with("file:///")).and_then(|text| url::Url::parse(text).ok()?.to_file_path().ok());
            local(&folder.ok_or_else(|| {
                Error::new(
                    ErrorKind::Misconfigured,
                    "TENANCY_OBJECTS must be file:///absolute/folder or memory: (no other store is built in)",
                )
            })?)
        }
    }
}

fn local(folder: &std::path::Path) -> Result<Arc<dyn ObjectStore>> {
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| {
        let what = format!("the folder {} can't hold attachments: mend that, or set TENANCY_OBJECTS", folder.display());
        Error::new(ErrorKind::Misconfigured, what).with_source(source)
    };
    private_folder(folder).map_err(|e| unusable(e.into()))?;
    Ok(Arc::new(LocalFileSystem::new_with_prefix(folder).map_err(|e| unusable(e.into()))?.with_fsync(true)))
}

/// The key of a content.
pub(crate) fn path(object: Uuid) -> Path {
    Path::from_iter(["attachments", &object.to_string()])
}

/// Deletes contents that no row names any more. What can't be deleted is left over: logged, and seen by nobody.
pub(crate) async fn discard(store: &TenantStore, objects: Vec<Uuid>) {
    for object in objects {
        match store.delete(&path(object)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(%object, "an attachment's content is left over: {error}"),
        }
    }
}

/// Writes and deletes an object, outside of every tenant's folder.
pub(crate) async fn probe(config: &Config) -> Result<()> {
    let failed = |source| Error::new(ErrorKind::Unavailable, "the object store can't be written").with_source(source);
    let store = store(config)?;
    let path = Path::from_iter(["doctor", &Uuid::now_v7().to_string()]);
    store.put(&path, "x".into()).await.map_err(failed)?;
    store.delete(&path).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_stores_that_are_built_in_are_taken() {
        let with = |objects: &str| Config { objects: Some(objects.to_owned()), ..Config::default() };
        for bad in ["s3://bucket", "file:relative", "file://host/x", "/plain", "gs://x", "https://x", "memory", "file:"] {
            assert!(store(&with(bad)).expect_err(bad).to_string().contains("TENANCY_OBJECTS"), "{bad}");
        }
        assert!(probe(&with("memory:")).await.is_ok());
        let folder = std::env::temp_dir().join(format!("objects {}", Uuid::now_v7()));
        let url = url::Url::from_file_path(&folder).expect("absolute");
        assert!(probe(&with(url.as_str())).await.is_ok());
        assert!(folder.is_dir());
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
