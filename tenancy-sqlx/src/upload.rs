//! A file that is written to an object store as it comes, of which one part is in memory.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _};
use tenancy_core::Result;
use tenancy_core::objects::into_error;

/// How much of a file is kept in memory: all parts but the last have this size, as some stores want it.
const PART: usize = 8 * 1024 * 1024;

/// A file that is being written. It is there once it is [closed](Upload::close).
pub(crate) struct Upload {
    store: Arc<dyn ObjectStore>,
    at: Path,
    upload: Option<Box<dyn MultipartUpload>>,
    part: Vec<u8>,
    bytes: u64,
}

impl Upload {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, at: Path) -> Self {
        Self { store, at, upload: None, part: Vec::new(), bytes: 0 }
    }

    /// How much was written.
    #[cfg(feature = "backup")]
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A dropped future spoils the file: it must not be closed.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        while self.part.len() + bytes.len() > PART {
            let (now, later) = bytes.split_at(PART - self.part.len());
            self.part.extend_from_slice(now);
            bytes = later;
            self.send().await?;
        }
        self.part.extend_from_slice(bytes);
        Ok(())
    }

    async fn send(&mut self) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.store.put_multipart(&self.at).await.map_err(into_error)?),
        };
        upload.put_part(part.into()).await.map_err(into_error)
    }

    /// Puts it in place, and returns its size.
    pub(crate) async fn close(mut self) -> Result<u64> {
        if self.upload.is_some() && !self.part.is_empty() {
            self.send().await?;
        }
        match &mut self.upload {
            Some(upload) => upload.complete().await.map(drop),
            None => self.store.put(&self.at, std::mem::take(&mut self.part).into()).await.map(drop),
        }
        .map_err(into_error)?;
        Ok(self.bytes)
    }

    /// Gives it up. What can't be removed is left to the store's own rules for uploads that nobody completed.
    #[cfg(feature = "backup")]
    pub(crate) async fn abort(mut self) {
        if let Some(upload) = &mut self.upload
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(%error, "an upload that was given up could not be removed");
        }
    }
}
