//! The archive of one backup of one tenant: what it looks like byte for byte is in `docs/backup-format.md`.
//!
//! An archive is a header, segments and a manifest that names them. Everything is compressed and sealed in chunks under a key of this
//! archive alone, which comes from the tenant's [`ArchiveKey`] and the header. What was edited, cut, reordered, renamed, put together from
//! two archives, or belongs to another tenant or backup is refused, and says why, before any of it is given.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use std::sync::Arc;
//!
//! use futures_util::TryStreamExt;
//! use object_store::{ObjectStore, memory::InMemory, path::Path};
//! use tenancy_core::TenantId;
//! use tenancy_sqlx::backup::archive::{ArchiveKey, ArchiveReader, ArchiveWriter, Expect, Header, Kind};
//! use uuid::Uuid;
//!
//! let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
//! let (at, tenant, backup) = (Path::from("archive"), TenantId::new(), Uuid::now_v7());
//! let key = ArchiveKey::new(Uuid::now_v7(), [7; 32]); // use BackupKeys
//!
//! let header = Header::new(tenant, backup, &key, true, std::time::SystemTime::now().into());
//! let mut archive = ArchiveWriter::create(store.clone(), at.clone(), header, &key).await?;
//! archive.begin(Kind::Rows, "public.notes")?;
//! archive.write(b"some rows").await?;
//! archive.end(1).await?;
//! let done = archive.finish(serde_json::json!({ "server": "15" })).await?;
//!
//! let expect = Expect { tenant, backup, bytes: done.bytes, hash: done.hash };
//! let archive = ArchiveReader::open(store, at, expect, &key).await?;
//! let rows: Vec<_> = archive.segment("public.notes")?.try_collect().await?;
//! assert_eq!(rows.concat(), b"some rows");
//! # Ok::<(), tenancy_core::Error>(()) }).unwrap();
//! ```

use tenancy_core::Error;

mod blobs;
mod chunks;
mod header;
mod key;
mod manifest;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use blobs::{BlobRef, Blobs, YOUNG};
pub use header::{Expect, FORMAT, Header};
pub use key::ArchiveKey;
pub use manifest::{Finished, Kind, Segment};
pub use read::ArchiveReader;
pub use write::ArchiveWriter;

/// Why an archive is refused.
fn refused(why: &'static str) -> Error {
    Error::invalid("archive", why)
}

/// What can only be if somebody changed it, or storage did.
fn changed() -> Error {
    refused("was changed after it was written")
}

/// What ends too early.
fn truncated() -> Error {
    refused("is truncated")
}

/// What the store says, where a missing file is a reason as any other.
fn stored(error: object_store::Error) -> Error {
    match error {
        error @ object_store::Error::NotFound { .. } => refused("is missing in the store").with_source(error),
        error => tenancy_core::objects::into_error(error),
    }
}
