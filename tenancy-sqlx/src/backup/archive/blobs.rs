//! The contents of tenants' objects, each stored once: `<root>/<tenant>/blobs/<key>/<two digits>/<name>`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use tenancy_core::objects::{delete_all, into_error};
use tenancy_core::{Result, TenantId};
use uuid::Uuid;

use super::chunks::{Opener, Sealer, sealed};
use super::key::{ArchiveKey, Keys};
use super::read::{fetch, ranged};
use super::{changed, refused, stored, truncated};
use crate::upload::Upload;

/// What is hashed in memory before anything is written.
const SMALL: usize = 8 * 1024 * 1024;
/// How old a content that nobody names must be before it is removed: a backup that is under way may name it later.
pub const YOUNG: TimeDelta = TimeDelta::days(1);

const MAGIC: &[u8; 8] = b"TNCYBLOB";
const FORMAT: u32 = 1;
const ENCRYPTED: u32 = 1;
/// The magic, the version, the flags, the salt.
const BEGINNING: usize = 48;
const END: usize = 32;

/// A content that is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BlobRef {
    /// A keyed hash of the content, in hex: two tenants' same contents have other names.
    pub name: String,
    /// How large the content is, in bytes.
    pub size: u64,
}

impl BlobRef {
    fn new(namer: &blake3::Hasher) -> Self {
        Self { name: namer.finalize().to_hex().to_string(), size: namer.count() }
    }

    fn hash(&self) -> Result<blake3::Hash> {
        blake3::Hash::from_hex(&self.name).map_err(|error| refused("names a content that can't be").with_source(error))
    }

    /// What its file ends with.
    fn end(&self, keys: &Keys) -> Result<blake3::Hash> {
        Ok(keys.end(&[self.hash()?.as_bytes().as_slice(), &self.size.to_le_bytes()].concat()))
    }
}

/// The contents of all tenants' objects in backups. A clone is another handle to them.
#[derive(Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    root: Path,
    encrypted: bool,
}

impl Blobs {
    /// In `store`, below `root`.
    pub fn new(store: Arc<dyn ObjectStore>, root: Path) -> Self {
        Self { store, root, encrypted: true }
    }

    /// What is stored from now on is authenticated, and can be read by whoever has it.
    #[must_use]
    pub fn without_encryption(mut self) -> Self {
        self.encrypted = false;
        self
    }

    /// Stores a content, if it is not there yet. Up to 8 MiB are hashed in memory first; what is larger is stored while it is hashed,
    /// and removed again if it was there. Less than 32 MiB are in memory at any time.
    ///
    /// # Errors
    /// The content's; as the store's.
    ///
    /// # Cancel safety
    /// A file that nobody names may be left: [`sweep`](Blobs::sweep) removes it.
    pub async fn put(&self, tenant: TenantId, key: &ArchiveKey, content: impl Stream<Item = Result<Bytes>> + Send) -> Result<BlobRef> {
        let mut content = std::pin::pin!(content);
        let (mut namer, mut small, mut length) = (key.namer(), Vec::new(), 0);
        while let Some(bytes) = content.try_next().await? {
            hash(&mut namer, &bytes).await;
            length += bytes.len();
            small.push(bytes);
            if length > SMALL {
                return self.put_large(tenant, key, namer, small, content).await;
            }
        }
        let blob = BlobRef::new(&namer);
        let at = self.at(tenant, key, &blob)?;
        if !self.is_at(&at, &blob).await? {
            let mut file = File::create(self, at, tenant, key).await?;
            for bytes in small {
                file.write(&bytes).await?;
            }
            file.close(&blob).await?;
        }
        Ok(blob)
    }

    async fn put_large(
        &self,
        tenant: TenantId,
        key: &ArchiveKey,
        mut namer: blake3::Hasher,
        begun: Vec<Bytes>,
        mut rest: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<BlobRef> {
        let aside = self.below(tenant).join("new").join(Uuid::now_v7().to_string());
        let mut file = File::create(self, aside.clone(), tenant, key).await?;
        for bytes in begun {
            file.write(&bytes).await?;
        }
        let written = async {
            while let Some(bytes) = rest.try_next().await? {
                hash(&mut namer, &bytes).await;
                file.write(&bytes).await?;
            }
            let blob = BlobRef::new(&namer);
            let at = self.at(tenant, key, &blob)?;
            Ok((self.is_at(&at, &blob).await?, at, blob))
        };
        match written.await {
            Ok((false, at, blob)) => {
                file.close(&blob).await?;
                self.store.rename(&aside, &at).await.map_err(into_error)?;
                Ok(blob)
            }
            Ok((true, _, blob)) => {
                file.upload.abort().await;
                Ok(blob)
            }
            Err(error) => {
                file.upload.abort().await;
                Err(error)
            }
        }
    }

    /// A content, in pieces. Each was authenticated before it is given, and the file's end, which names the content, before the first.
    ///
    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid) at `archive` where it is missing, truncated or changed, or another one's. As the store's.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// I39.
    pub async fn get(&self, tenant: TenantId, key: &ArchiveKey, blob: &BlobRef) -> Result<BoxStream<'static, Result<Bytes>>> {
        let at = self.at(tenant, key, blob)?;
        let bytes = sealed(blob.size);
        let whole = bytes.saturating_add((BEGINNING + END) as u64);
        let (from, to) = (BEGINNING as u64, bytes.saturating_add(BEGINNING as u64));
        let (beginning, end, chunks) = if blob.size <= SMALL as u64 {
            let mut file = self.store.get(&at).await.map_err(stored)?.bytes().await.map_err(stored)?;
            check_size(file.len() as u64, whole)?;
            let end = file.split_off(file.len() - END);
            (file.split_to(BEGINNING), end, stream::iter([Ok(file)]).boxed())
        } else {
            check_size(self.store.head(&at).await.map_err(stored)?.size, whole)?;
            let (beginning, end) = (fetch(&*self.store, &at, 0..from).await?, fetch(&*self.store, &at, to..whole).await?);
            (beginning, end, ranged(&self.store, &at, from..to))
        };
        let keys = key.blob(&beginning, tenant.as_uuid());
        let encrypted = flags(&beginning)? & ENCRYPTED != 0;
        // As hashes, which compare in constant time.
        if blob.end(&keys)? != blake3::Hash::from_slice(&end).map_err(|_| changed())? {
            return Err(changed());
        }
        let state = (Opener::new(&keys, encrypted, 0, bytes, chunks), key.namer(), blob.clone());
        Ok(stream::try_unfold(state, |(mut opener, mut namer, blob)| async move {
            match opener.next().await? {
                Some(chunk) => {
                    namer.update(&chunk);
                    Ok(Some((Bytes::from(chunk), (opener, namer, blob))))
                }
                None if BlobRef::new(&namer) == blob => Ok(None),
                None => Err(changed()),
            }
        })
        .boxed())
    }

    /// Whether it is there, and as large as it must be.
    ///
    /// # Errors
    /// As the store's.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn exists(&self, tenant: TenantId, key: &ArchiveKey, blob: &BlobRef) -> Result<bool> {
        self.is_at(&self.at(tenant, key, blob)?, blob).await
    }

    /// Whether this is the content that it names, without reading what is stored.
    ///
    /// # Errors
    /// The content's.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn is_content(&self, key: &ArchiveKey, blob: &BlobRef, content: impl Stream<Item = Result<Bytes>> + Send) -> Result<bool> {
        let mut content = std::pin::pin!(content);
        let mut namer = key.namer();
        while let Some(bytes) = content.try_next().await? {
            hash(&mut namer, &bytes).await;
            if namer.count() > blob.size {
                return Ok(false);
            }
        }
        Ok(BlobRef::new(&namer) == *blob)
    }

    /// Removes the tenant's contents that are not among `keep`, and are older than [`YOUNG`] at `now`. Returns how many.
    ///
    /// Not while a backup of the tenant is under way: it may go on to name what no backup before it does.
    ///
    /// # Errors
    /// As the store's.
    ///
    /// # Cancel safety
    /// Some may be left.
    pub async fn sweep(&self, tenant: TenantId, keep: &BTreeSet<String>, now: DateTime<Utc>) -> Result<u64> {
        let below = self.below(tenant);
        let mut listed = self.store.list(Some(&below));
        let (mut stale, mut removed) = (Vec::new(), 0);
        loop {
            let next = listed.try_next().await.map_err(into_error)?;
            let done = next.is_none();
            stale.extend(next.filter(|meta| is_stale(&meta.location, meta.last_modified, keep, now)).map(|meta| meta.location));
            // In batches: a list of all of them may be long.
            if stale.len() == 1_000 || done {
                removed += stale.len() as u64;
                delete_all(&*self.store, stream::iter(std::mem::take(&mut stale).into_iter().map(Ok))).await?;
            }
            if done {
                return Ok(removed);
            }
        }
    }

    fn below(&self, tenant: TenantId) -> Path {
        self.root.clone().join(tenant.to_string()).join("blobs")
    }

    fn at(&self, tenant: TenantId, key: &ArchiveKey, blob: &BlobRef) -> Result<Path> {
        let name = blob.hash()?.to_hex();
        Ok(self.below(tenant).join(key.id().to_string()).join(&name[..2]).join(name.as_str()))
    }

    async fn is_at(&self, at: &Path, blob: &BlobRef) -> Result<bool> {
        match self.store.head(at).await {
            Ok(meta) => Ok(Some(meta.size) == sealed(blob.size).checked_add((BEGINNING + END) as u64)),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(into_error(error)),
        }
    }
}

impl fmt::Debug for Blobs {
    /// Leaves out the store, whose own text may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blobs").field("root", &self.root.as_ref()).field("encrypted", &self.encrypted).finish_non_exhaustive()
    }
}

/// Hashes in steps that nobody has to wait for.
async fn hash(namer: &mut blake3::Hasher, bytes: &[u8]) {
    for (n, piece) in bytes.chunks(1024 * 1024).enumerate() {
        if n > 0 {
            tokio::task::yield_now().await;
        }
        namer.update(piece);
    }
}

fn is_stale(at: &Path, written: DateTime<Utc>, keep: &BTreeSet<String>, now: DateTime<Utc>) -> bool {
    now - written >= YOUNG && at.filename().is_none_or(|name| !keep.contains(name))
}

fn check_size(is: u64, expected: u64) -> Result<()> {
    match is.cmp(&expected) {
        std::cmp::Ordering::Less => Err(truncated()),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(changed()),
    }
}

fn flags(beginning: &[u8]) -> Result<u32> {
    let number = |at: usize| u32::from_le_bytes([beginning[at], beginning[at + 1], beginning[at + 2], beginning[at + 3]]);
    if &beginning[..8] != MAGIC {
        return Err(refused("has a content that is none"));
    }
    match number(8) {
        FORMAT => Ok(number(12)),
        newer if newer > FORMAT => Err(refused("has a newer format than this version of the kit reads")),
        _ => Err(refused("has a format that is not read any more")),
    }
}

/// A content that is being stored.
struct File {
    upload: Upload,
    keys: Keys,
    sealer: Sealer,
}

impl File {
    async fn create(blobs: &Blobs, at: Path, tenant: TenantId, key: &ArchiveKey) -> Result<Self> {
        let mut beginning = MAGIC.to_vec();
        beginning.extend(FORMAT.to_le_bytes());
        beginning.extend(if blobs.encrypted { ENCRYPTED } else { 0 }.to_le_bytes());
        beginning.extend(rand::random::<[u8; 32]>());
        let mut upload = Upload::new(Arc::clone(&blobs.store), at);
        upload.write(&beginning).await?;
        let keys = key.blob(&beginning, tenant.as_uuid());
        let sealer = Sealer::new(&keys, blobs.encrypted, 0);
        Ok(Self { upload, keys, sealer })
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sealer.write(bytes, &mut self.upload).await
    }

    async fn close(mut self, blob: &BlobRef) -> Result<()> {
        self.sealer.end(&mut self.upload).await?;
        self.upload.write(blob.end(&self.keys)?.as_bytes()).await?;
        self.upload.close().await.map(drop)
    }
}
