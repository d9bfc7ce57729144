//! A tenant's objects in its backups: stored once by content, listed in each.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use tenancy_core::objects::{TenantStore, into_error, parse_path};
use tenancy_core::{Error, Result, TenantId};
use uuid::Uuid;

use super::archive::{ArchiveKey, BlobRef, Blobs};
use super::pace::Pace;
use super::take::Teller;
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

/// The objects of one tenant that a backup has seen.
#[derive(Debug, Default)]
pub(super) struct Seen(pub(super) BTreeMap<String, Listed>);

impl Seen {
    /// Stores what is not stored yet, and forgets what is gone: gives that.
    pub(super) async fn look(
        &mut self,
        store: &TenantStore,
        blobs: &Blobs,
        (tenant, key): (TenantId, &ArchiveKey),
        pace: &mut Pace,
        teller: &mut Teller<'_>,
    ) -> Result<BTreeMap<String, Listed>> {
        let mut before = std::mem::take(&mut self.0);
        let mut listed = store.list(None);
        let mut count = 0;
        while let Some(meta) = listed.try_next().await.map_err(into_error)? {
            teller.tell("storing objects", count, None, "objects").await?;
            count += 1;
            let path = meta.location.to_string();
            if let Some(known) = before.remove(&path).filter(|known| known.is(&meta)) {
                self.0.insert(path, known);
                continue;
            }
            let got = match store.get(&meta.location).await {
                Ok(got) => got,
                Err(object_store::Error::NotFound { .. }) => continue, // deleted meanwhile
                Err(error) => return Err(into_error(error)),
            };
            // Of what is read now, which may have been written since it was listed.
            let meta = got.meta.clone();
            let content = pace.slowed(got.into_stream().map_err(into_error).boxed());
            let blob = blobs.put(tenant, key, content).await?;
            let (size, last_modified, e_tag) = (meta.size, meta.last_modified, meta.e_tag.clone());
            self.0.insert(path.clone(), Listed { path, size, last_modified, e_tag, key: key.id(), blob });
        }
        Ok(before) // what is gone, or has changed
    }
}

/// Writes one object as it was.
pub(super) async fn put_back(store: &TenantStore, listed: &Listed, blobs: &Blobs, tenant: TenantId, key: &ArchiveKey) -> Result<()> {
    let location = listed.location()?;
    let mut content = std::pin::pin!(blobs.get(tenant, key, &listed.blob).await?);
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
