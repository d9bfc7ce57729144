//! Contents of objects, each stored once for all backups of a tenant: named by a keyed hash of what is in it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, TimeDelta, Utc};
use futures_core::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use tenancy_core::objects::into_error;
use tenancy_core::{Error, Result, TenantId};
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use super::read::Frames;
use super::seal::{ArchiveKey, Sealer};
use super::write::buffered;
use super::{changed, refused};

/// How much of a content is sealed at once.
const CHUNK: usize = 1024 * 1024;
/// Up to how many bytes of a content are in memory before its name is known; larger ones are stored under another name first.
const SMALL: usize = 8 * 1024 * 1024;
/// Encrypted or not, and the salt of the content's own key.
const PREFIX: usize = 1 + 16;
/// For how long what no backup names is kept: one that names it may be under way.
pub(in crate::backup) const YOUNG: TimeDelta = TimeDelta::days(2);

/// Which content.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::backup) struct BlobRef {
    pub(in crate::backup) name: String,
    pub(in crate::backup) size: u64,
}

/// The contents of all tenants' backups.
#[derive(Clone)]
pub(in crate::backup) struct Blobs {
    store: Arc<dyn ObjectStore>,
    root: Path,
    encrypted: bool,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blobs").field("root", &self.root.as_ref()).finish_non_exhaustive()
    }
}

/// Seals the frames of one content.
struct Sealing {
    sealer: Sealer,
    hash: blake3::Hasher,
    size: u64,
    frames: u64,
    rest: BytesMut,
}

impl Sealing {
    /// What it begins with comes along.
    fn new(key: &ArchiveKey, encrypted: bool) -> (Self, Vec<u8>) {
        let prefix = [&[u8::from(encrypted)][..], &rand::random::<[u8; 16]>()].concat();
        let hash = blake3::Hasher::new_keyed(&key.derived(NAME, &[]));
        let sealer = sealer(key, encrypted, prefix.clone());
        (Self { sealer, hash, size: 0, frames: 0, rest: BytesMut::new() }, prefix)
    }

    /// The frames that are full.
    fn add(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.rest.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while self.rest.len() > CHUNK {
            let chunk = self.rest.split_to(CHUNK);
            frames.extend(self.frame(b'D', &chunk)?);
        }
        Ok(frames)
    }

    fn frame(&mut self, what: u8, payload: &[u8]) -> Result<Vec<u8>> {
        let frame = self.sealer.seal(self.frames, what, payload)?;
        self.frames += 1;
        Ok(frame)
    }

    /// The last frame, and which content it was.
    fn end(mut self) -> Result<(Vec<u8>, BlobRef)> {
        let rest = self.rest.split();
        let last = self.frame(b'L', &rest)?;
        Ok((last, BlobRef { name: self.hash.finalize().to_hex().to_string(), size: self.size }))
    }
}

const NAME: &str = "tenancy 2026 backup content name";

fn sealer(key: &ArchiveKey, encrypted: bool, prefix: Vec<u8>) -> Sealer {
    Sealer::new(key.derived("tenancy 2026 backup content", &prefix), encrypted, prefix)
}

impl Blobs {
    pub(in crate::backup) fn new(store: Arc<dyn ObjectStore>, root: Path, encrypted: bool) -> Self {
        Self { store, root, encrypted }
    }

    fn folder(&self, tenant: TenantId) -> Path {
        self.root.clone().join(tenant.to_string()).join("contents")
    }

    fn at(&self, tenant: TenantId, name: &str) -> Path {
        self.folder(tenant).join(name)
    }

    /// Stores a content, unless it is stored.
    pub(in crate::backup) async fn put(
        &self,
        tenant: TenantId,
        key: &ArchiveKey,
        mut content: BoxStream<'_, Result<Bytes>>,
    ) -> Result<BlobRef> {
        let (mut sealing, mut sealed) = Sealing::new(key, self.encrypted);
        while let Some(bytes) = content.try_next().await? {
            sealed.extend(sealing.add(&bytes)?);
            if sealed.len() > SMALL {
                return self.put_large(tenant, sealing, sealed, content).await;
            }
        }
        let (last, blob) = sealing.end()?;
        if !self.exists(tenant, &blob).await? {
            sealed.extend(last);
            self.store.put(&self.at(tenant, &blob.name), sealed.into()).await.map_err(into_error)?;
        }
        Ok(blob)
    }

    async fn put_large(
        &self,
        tenant: TenantId,
        mut sealing: Sealing,
        sealed: Vec<u8>,
        mut content: BoxStream<'_, Result<Bytes>>,
    ) -> Result<BlobRef> {
        let meanwhile = self.folder(tenant).join(format!("unnamed-{}", Uuid::now_v7()));
        let mut out = buffered(Arc::clone(&self.store), meanwhile.clone());
        out.put(sealed.into()).await.map_err(into_error)?;
        while let Some(bytes) = content.try_next().await? {
            out.put(sealing.add(&bytes)?.into()).await.map_err(into_error)?;
        }
        let (last, blob) = sealing.end()?;
        out.put(last.into()).await.map_err(into_error)?;
        let unsent = |error| Error::new(tenancy_core::ErrorKind::Unavailable, "the object store did not take an object").with_source(error);
        out.shutdown().await.map_err(|error: std::io::Error| unsent(error))?;
        if self.exists(tenant, &blob).await? {
            crate::backup::remove(&*self.store, &meanwhile).await?;
        } else {
            self.store.rename(&meanwhile, &self.at(tenant, &blob.name)).await.map_err(into_error)?;
        }
        Ok(blob)
    }

    async fn exists(&self, tenant: TenantId, blob: &BlobRef) -> Result<bool> {
        match self.store.head(&self.at(tenant, &blob.name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(into_error(error)),
        }
    }

    /// A stored content. What comes is authentic; that it was all is known only at the end.
    pub(in crate::backup) async fn get(&self, tenant: TenantId, key: &ArchiveKey, blob: &BlobRef) -> Result<BoxStream<'static, Result<Bytes>>> {
        let at = self.at(tenant, &blob.name);
        let gone = |error| match error {
            object_store::Error::NotFound { .. } => refused("lacks the content of an object").with_source(error),
            error => into_error(error),
        };
        let size = self.store.head(&at).await.map_err(gone)?.size;
        if size < PREFIX as u64 {
            return Err(changed());
        }
        let prefix = self.store.get_range(&at, 0..PREFIX as u64).await.map_err(gone)?;
        let sealer = Arc::new(sealer(key, prefix[0] != 0, prefix.to_vec()));
        let frames = Frames::new(Arc::clone(&self.store), at, sealer, (PREFIX as u64, size), 0);
        let hash = blake3::Hasher::new_keyed(&key.derived(NAME, &[]));
        let reading = Reading { frames, blob: blob.clone(), hash, over: false };
        Ok(stream::try_unfold(reading, |mut reading| async move { Ok(reading.next().await?.map(|bytes| (bytes, reading))) }).boxed())
    }

    /// Whether this is the content, to the last bit.
    pub(in crate::backup) async fn is_content(key: &ArchiveKey, blob: &BlobRef, mut content: BoxStream<'_, Result<Bytes>>) -> Result<bool> {
        let mut hash = blake3::Hasher::new_keyed(&key.derived(NAME, &[]));
        while let Some(bytes) = content.try_next().await? {
            hash.update(&bytes);
        }
        Ok(hash.finalize().to_hex().as_str() == blob.name)
    }

    /// Removes what is not kept, and not young.
    pub(in crate::backup) async fn sweep(&self, tenant: TenantId, keep: &BTreeSet<String>, now: DateTime<Utc>) -> Result<()> {
        let stale: Vec<Path> = self
            .store
            .list(Some(&self.folder(tenant)))
            .try_filter_map(|meta| async move { Ok((meta.last_modified < now - YOUNG).then_some(meta.location)) })
            .try_collect()
            .await
            .map_err(into_error)?;
        for at in stale.iter().filter(|at| at.filename().is_none_or(|name| !keep.contains(name))) {
            crate::backup::remove(&*self.store, at).await?;
        }
        Ok(())
    }
}

/// A content that is being read.
struct Reading {
    frames: Frames,
    blob: BlobRef,
    hash: blake3::Hasher,
    over: bool,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self.frames.next().await? {
            Some((what @ (b'D' | b'L'), bytes)) if !self.over => {
                self.hash.update(&bytes);
                if what == b'L' {
                    self.over = true;
                    if self.hash.finalize().to_hex().as_str() != self.blob.name {
                        return Err(refused("names a content that is another one"));
                    }
                }
                Ok(Some(bytes.into()))
            }
            None if self.over => Ok(None),
            None => Err(refused("has an object that breaks off")),
            Some(_) => Err(changed()),
        }
    }
}
