//! A tenant's objects in its backups: stored once by content, listed in each.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use tenancy_core::objects::{TenantStore, delete_all, into_error, parse_path};
use tenancy_core::{Error, ErrorKind, Result, TenantId};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Backups;
use super::archive::{ArchiveKey, BlobRef, Blobs};
use super::details::Counted;
use super::pace::Pace;
use super::renew::Renewal;
use super::restore::Source;
use super::session::Changed;
use super::take::{OBJECTS, Teller};
use crate::operations::Progress;
use crate::upload::Upload;

/// One object, as a line of the segment `objects`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) last_modified: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) e_tag: Option<String>,
    /// The key that its content is sealed with.
    pub(super) key: Uuid,
    pub(super) blob: BlobRef,
}

impl Listed {
    /// Whether the object is still the one that was listed.
    pub(super) fn is(&self, meta: &ObjectMeta) -> bool {
        self.size == meta.size && self.last_modified == meta.last_modified && self.e_tag == meta.e_tag
    }

    pub(super) fn location(&self) -> Result<Path> {
        parse_path(&self.path).map_err(|error| Error::invalid("archive", "names an object that can't be").with_source(error))
    }
}

/// How many objects are on their way at once: a store far away answers late, and not slowly.
const AT_ONCE: usize = 16;
/// How much of them may be in memory, in KiB.
const ROOM: u32 = 48 * 1024;

/// The memory that objects on their way share.
struct Room(Semaphore);

impl Room {
    const fn new() -> Self {
        Self(Semaphore::const_new(ROOM as usize))
    }

    /// Does this once there is room for an object of so many bytes: what is small is in memory whole, as it comes and as it goes.
    async fn within<T>(&self, bytes: u64, work: impl Future<Output = Result<T>>) -> Result<T> {
        let takes = u32::try_from(bytes / 512).unwrap_or(ROOM).clamp(1, ROOM / 2);
        let taken = self.0.acquire_many(takes).await;
        let _taken = taken.map_err(|error| Error::new(ErrorKind::Internal, "the room for objects was closed").with_source(error))?;
        work.await
    }
}

/// The objects of one tenant that a backup has seen.
#[derive(Debug, Default)]
pub(super) struct Seen(pub(super) BTreeMap<String, Listed>);

impl Seen {
    /// Stores what is not stored yet, and forgets what is gone: gives that.
    pub(super) async fn look(
        &mut self,
        store: &TenantStore,
        blobs: &Blobs,
        key: (TenantId, &ArchiveKey),
        pace: &Pace,
        teller: &mut Teller<'_>,
    ) -> Result<BTreeMap<String, Listed>> {
        let (mut before, room) = (std::mem::take(&mut self.0), Room::new());
        let (mut listed, mut going, mut count) = (store.list(None).fuse(), FuturesUnordered::new(), 0);
        teller.tell("storing objects", count, None, "objects").await?;
        loop {
            while going.len() < AT_ONCE
                && let Some(meta) = listed.try_next().await.map_err(into_error)?
            {
                match before.remove(meta.location.as_ref()).filter(|known| known.is(&meta)) {
                    Some(known) => drop(self.0.insert(known.path.clone(), known)),
                    None => going.push(room.within(meta.size, keep(store, blobs, key, pace, meta.location)).boxed()),
                }
            }
            let Some(done) = going.next().await.transpose()? else { break };
            self.0.extend(done.map(|listed| (listed.path.clone(), listed)));
            count += 1;
            teller.tell("storing objects", count, None, "objects").await?;
        }
        Ok(before) // what is gone, or has changed
    }
}

/// Stores the content of an object, unless it was deleted meanwhile.
async fn keep(
    store: &TenantStore,
    blobs: &Blobs,
    (tenant, key): (TenantId, &ArchiveKey),
    pace: &Pace,
    location: Path,
) -> Result<Option<Listed>> {
    let got = match store.get(&location).await {
        Ok(got) => got,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(into_error(error)),
    };
    // Of what is read now, which may have been written since it was listed.
    let ObjectMeta { size, last_modified, e_tag, .. } = got.meta.clone();
    let blob = blobs.put(tenant, key, pace.slowed(got.into_stream().map_err(into_error).boxed())).await?;
    Ok(Some(Listed { path: location.to_string(), size, last_modified, e_tag, key: key.id(), blob }))
}

impl Backups {
    pub(super) fn store_of(&self, tenant: TenantId) -> Result<Option<TenantStore>> {
        self.objects.as_ref().map(|objects| objects.dangerous_scope(tenant)).transpose()
    }

    /// Does something with each object that a tenant's backup lists, and its content's key, several at once. None may wait for the
    /// database, whose connections this needs itself.
    async fn each<'a>(
        &self,
        (source, tenant): (&Source, TenantId),
        (step, progress): (&str, &Progress),
        mut work: impl FnMut(Listed, ArchiveKey) -> BoxFuture<'a, Result<()>> + Send,
    ) -> Result<()> {
        let (room, mut keys) = (Room::new(), BTreeMap::new());
        let (mut teller, mut done, total) = (Teller::new(progress), 0, Some(source.details.objects.count));
        teller.tell(step, done, total, "objects").await?;
        let (mut lines, mut going) = (lines(source.archive.segment(OBJECTS)?).fuse(), FuturesUnordered::new());
        loop {
            while going.len() < AT_ONCE
                && let Some(listed) = lines.try_next().await?
            {
                let key = match keys.get(&listed.key) {
                    Some(key) => ArchiveKey::clone(key),
                    None => {
                        let key = self.keys.tenant_key(&self.db, tenant, listed.key).await?;
                        keys.entry(listed.key).or_insert(key).clone()
                    }
                };
                going.push(room.within(listed.size, work(listed, key)));
            }
            let Some(()) = going.next().await.transpose()? else { return Ok(()) };
            done += 1;
            teller.tell(step, done, total, "objects").await?;
        }
    }

    /// Puts back what is not there at all.
    pub(super) async fn put_missing(&self, source: &Source, tenant: TenantId, progress: &Progress) -> Result<()> {
        self.put_into(source, (tenant, tenant), None, progress).await
    }

    /// Puts what one tenant's backup has into another one's store, unless it is there.
    pub(super) async fn put_into(
        &self,
        source: &Source,
        (tenant, into): (TenantId, TenantId),
        renewal: Option<&Renewal>,
        progress: &Progress,
    ) -> Result<()> {
        let Some(store) = self.store_of(into)? else { return Ok(()) };
        let (store, there) = (&store, there(&store).await?);
        let put = |mut listed: Listed, key| {
            if let Some(renewal) = renewal {
                listed.path = renewal.path(&listed.path);
            }
            let known = there.contains_key(&listed.path);
            async move {
                // It may have come since: that is the tenant's, and stays.
                if !known && is_missing(store, &listed.location()?).await? {
                    put_back(store, &listed, &self.blobs(), tenant, &key).await?;
                    progress.moved(usize::try_from(listed.size).unwrap_or(usize::MAX));
                }
                Ok(())
            }
            .boxed()
        };
        self.each((source, tenant), ("putting objects back", progress), put).await
    }

    /// Makes the objects what the backup has: those with another content get theirs back, and those that it does not have go.
    pub(super) async fn match_objects(&self, source: &Source, tenant: TenantId, progress: &Progress) -> Result<()> {
        let Some(store) = self.store_of(tenant)? else { return Ok(()) };
        let (store, mut stale) = (&store, there(&store).await?);
        let make = |listed: Listed, key| {
            let known = stale.remove(&listed.path);
            async move {
                if known.as_ref().is_some_and(|meta| listed.is(meta)) {
                    return Ok(());
                }
                if let Some(meta) = known.filter(|meta| meta.size == listed.size) {
                    let content = store.get(&meta.location).await.map_err(into_error)?.into_stream().map_err(into_error);
                    if self.blobs().is_content(&key, &listed.blob, content).await? {
                        return Ok(());
                    }
                }
                put_back(store, &listed, &self.blobs(), tenant, &key).await
            }
            .boxed()
        };
        self.each((source, tenant), ("comparing objects", progress), make).await?;
        delete_all(store, stream::iter(stale.into_values().map(|meta| Ok(meta.location)))).await
    }

    /// Reads the contents of all objects.
    pub(super) async fn read_objects(&self, source: &Source, tenant: TenantId, progress: &Progress) -> Result<Option<Counted>> {
        if self.objects.is_none() {
            return Ok(None);
        }
        let (count, read) = (&AtomicU64::new(0), &AtomicU64::new(0));
        let look = |listed: Listed, key| {
            async move {
                let mut content = self.blobs().get(tenant, &key, &listed.blob).await?;
                while let Some(bytes) = content.try_next().await? {
                    read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            .boxed()
        };
        self.each((source, tenant), ("reading objects", progress), look).await?;
        Ok(Some(Counted { count: count.load(Ordering::Relaxed), bytes: read.load(Ordering::Relaxed) }))
    }

    /// How many objects a restore would remove, change and add. Those of the same size and another date count as changed.
    pub(super) async fn object_differences(&self, source: &Source, tenant: TenantId) -> Result<Option<Changed>> {
        let Some(store) = self.store_of(tenant)? else { return Ok(None) };
        let (mut there, mut changed) = (there(&store).await?, Changed::default());
        let mut lines = lines(source.archive.segment(OBJECTS)?);
        while let Some(listed) = lines.try_next().await? {
            match there.remove(&listed.path) {
                None => changed.added += 1,
                Some(meta) if !listed.is(&meta) => changed.changed += 1,
                Some(_) => {}
            }
        }
        changed.removed = i64::try_from(there.len()).unwrap_or(i64::MAX);
        Ok(Some(changed))
    }
}

/// The objects that are there now.
async fn there(store: &TenantStore) -> Result<BTreeMap<String, ObjectMeta>> {
    store.list(None).map_ok(|meta| (meta.location.to_string(), meta)).try_collect().await.map_err(into_error)
}

async fn is_missing(store: &TenantStore, location: &Path) -> Result<bool> {
    match store.head(location).await {
        Ok(_) => Ok(false),
        Err(object_store::Error::NotFound { .. }) => Ok(true),
        Err(error) => Err(into_error(error)),
    }
}

/// Writes one object as it was.
async fn put_back(store: &TenantStore, listed: &Listed, blobs: &Blobs, tenant: TenantId, key: &ArchiveKey) -> Result<()> {
    let location = listed.location()?;
    let mut content = pin!(blobs.get(tenant, key, &listed.blob).await?);
    let mut file = Upload::new(Arc::new(store.clone()), location);
    loop {
        match content.try_next().await {
            Ok(Some(bytes)) => file.write(&bytes).await?,
            Ok(None) => return file.close().await.map(drop),
            Err(error) => {
                file.abort().await;
                return Err(error);
            }
        }
    }
}

/// The lines of a segment.
pub(super) fn lines(segment: BoxStream<'static, Result<bytes::Bytes>>) -> BoxStream<'static, Result<Listed>> {
    stream::try_unfold((segment, bytes::BytesMut::new()), |(mut segment, mut rest)| async move {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.split_to(end + 1);
                let listed = serde_json::from_slice(&line[..end])
                    .map_err(|error| Error::invalid("archive", "has a list of objects that can't be read").with_source(error))?;
                return Ok(Some((listed, (segment, rest))));
            }
            match segment.try_next().await? {
                Some(bytes) => rest.extend_from_slice(&bytes),
                None if rest.is_empty() => return Ok(None),
                None => return Err(Error::invalid("archive", "has a list of objects that breaks off")),
            }
        }
    })
    .boxed()
}

/// What says that rows name objects which are not there.
pub(super) fn missing(paths: &[&String]) -> Error {
    let some: Vec<&str> = paths.iter().take(3).map(|path| path.as_str()).collect();
    Error::invalid(super::take::OBJECTS, format!("{} objects that rows name are not there: {}", paths.len(), some.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_on_their_way_as_fit_in_memory() {
        let begun = |bytes: u64, of: usize| {
            let (room, begun) = (Room::new(), AtomicU64::new(0));
            let mut going: FuturesUnordered<_> = (0..of)
                .map(|_| {
                    room.within(bytes, async {
                        begun.fetch_add(1, Ordering::Relaxed);
                        std::future::pending::<Result<()>>().await
                    })
                })
                .collect();
            assert!(going.next().now_or_never().is_none());
            begun.load(Ordering::Relaxed)
        };
        const MIB: u64 = 1024 * 1024;
        let at_once = [0, MIB, 8 * MIB, 12 * MIB, u64::MAX].map(|bytes| begun(bytes, AT_ONCE));
        assert_eq!(at_once, [16, 16, 3, 2, 2]);
    }
}
