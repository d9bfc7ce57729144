//! A file that is written to an object store as it comes, of which two parts are in memory: one that is gathered, and one on its way.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload};
use tenancy_core::objects::into_error;
use tenancy_core::{Error, ErrorKind, Result};
use tokio::task::JoinSet;

/// All parts but the last have this size, as some stores want it.
const PART: usize = 8 * 1024 * 1024;
/// Small writes are gathered up to this: a part is many pieces, since one that grows would be copied again and again.
const PIECE: usize = 64 * 1024;

/// A file that is being written. It is there once it is [closed](Upload::close).
pub(crate) struct Upload {
    store: Arc<dyn ObjectStore>,
    at: Path,
    upload: Option<Box<dyn MultipartUpload>>,
    /// The part that is on its way.
    sending: JoinSet<object_store::Result<()>>,
    part: Vec<Bytes>,
    /// How much of the part there is, without the rest.
    held: usize,
    rest: Vec<u8>,
    bytes: u64,
}

impl Upload {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, at: Path) -> Self {
        Self { store, at, upload: None, sending: JoinSet::new(), part: Vec::new(), held: 0, rest: Vec::new(), bytes: 0 }
    }

    /// How much was written.
    #[cfg(feature = "backup")]
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes + self.rest.len() as u64
    }

    /// A dropped future spoils the file: it must not be closed.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        if self.rest.len() >= PIECE { self.push(Bytes::new()).await } else { Ok(()) }
    }

    /// The same, of what need not be copied.
    pub(crate) async fn push(&mut self, bytes: Bytes) -> Result<()> {
        for mut piece in [std::mem::take(&mut self.rest).into(), bytes] {
            self.bytes += piece.len() as u64;
            while self.held + piece.len() > PART {
                let now = piece.split_to(PART - self.held);
                self.held += now.len();
                self.part.push(now);
                self.send().await?;
            }
            if !piece.is_empty() {
                self.held += piece.len();
                self.part.push(piece);
            }
        }
        Ok(())
    }

    fn part(&mut self) -> PutPayload {
        self.held = 0;
        std::mem::take(&mut self.part).into_iter().collect()
    }

    async fn send(&mut self) -> Result<()> {
        let part = self.part();
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.store.put_multipart(&self.at).await.map_err(into_error)?),
        };
        let part = upload.put_part(part);
        self.sent().await?;
        self.sending.spawn(part);
        Ok(())
    }

    /// Waits for the part that is on its way.
    async fn sent(&mut self) -> Result<()> {
        while let Some(sent) = self.sending.join_next().await {
            sent.map_err(|error| Error::new(ErrorKind::Internal, "a part of an upload was not sent").with_source(error))?
                .map_err(into_error)?;
        }
        Ok(())
    }

    /// Puts it in place, and returns its size.
    pub(crate) async fn close(mut self) -> Result<u64> {
        self.push(Bytes::new()).await?;
        if self.upload.is_some() && self.held > 0 {
            self.send().await?;
        }
        self.sent().await?;
        match &mut self.upload {
            Some(upload) => upload.complete().await.map(drop),
            None => {
                let whole = self.part();
                self.store.put(&self.at, whole).await.map(drop)
            }
        }
        .map_err(into_error)?;
        Ok(self.bytes)
    }

    /// Gives it up. What can't be removed is left to the store's own rules for uploads that nobody completed.
    #[cfg(feature = "backup")]
    pub(crate) async fn abort(mut self) {
        self.sending.shutdown().await;
        if let Some(upload) = &mut self.upload
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(%error, "an upload that was given up could not be removed");
        }
    }
}
