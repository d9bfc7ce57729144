//! Writes an archive as its contents come.

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use tenancy_core::objects::into_error;
use tenancy_core::{Error, ErrorKind, Result};
use tokio::io::AsyncWriteExt as _;
use zstd::stream::write::Encoder;

use super::seal::{ArchiveKey, Sealer};
use super::{CHUNK, END, Finished, Header, Kind, MAGIC, MAX_HEADER, Manifest, PART, Segment, VERSION};
use crate::backup::take::unwritable;

/// One archive that is being written. It is there once it is [finished](ArchiveWriter::finish).
pub(in crate::backup) struct ArchiveWriter {
    out: BufWriter,
    sealer: Sealer,
    hash: blake3::Hasher,
    written: u64,
    frames: u64,
    open: Option<Open>,
    segments: Vec<Segment>,
}

/// The segment that is being written.
struct Open {
    segment: Segment,
    hash: blake3::Hasher,
    packed: Encoder<'static, Vec<u8>>,
}

impl fmt::Debug for ArchiveWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveWriter").field("written", &self.written).finish_non_exhaustive()
    }
}

/// What comes before the frames.
pub(super) fn prefix(header: &[u8]) -> Vec<u8> {
    let mut prefix = MAGIC.to_vec();
    prefix.extend_from_slice(&VERSION.to_be_bytes());
    prefix.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_be_bytes());
    prefix.extend_from_slice(header);
    prefix
}

pub(super) fn sealer(header: &Header, key: &ArchiveKey, prefix: Vec<u8>) -> Sealer {
    Sealer::new(key.derived("tenancy 2026 backup archive", header.salt.as_bytes()), header.encrypted, prefix)
}

/// A writer that has no more than a few parts in memory.
pub(super) fn buffered(store: Arc<dyn ObjectStore>, at: Path) -> BufWriter {
    BufWriter::with_capacity(store, at, PART).with_max_concurrency(2)
}

fn unsent(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the object store did not take a backup").with_source(error)
}

impl ArchiveWriter {
    pub(in crate::backup) async fn create(store: Arc<dyn ObjectStore>, at: Path, header: Header, key: &ArchiveKey) -> Result<Self> {
        let text = serde_json::to_vec(&header).map_err(unwritable)?;
        if text.len() > MAX_HEADER {
            return Err(Error::new(ErrorKind::TooLarge, "the header of an archive would be too large"));
        }
        let prefix = prefix(&text);
        let mut archive = Self {
            out: buffered(store, at),
            sealer: sealer(&header, key, prefix.clone()),
            hash: blake3::Hasher::new(),
            written: 0,
            frames: 0,
            open: None,
            segments: Vec::new(),
        };
        archive.send(prefix).await?;
        Ok(archive)
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.hash.update(&bytes);
        self.written += bytes.len() as u64;
        self.out.put(bytes.into()).await.map_err(into_error)
    }

    async fn frame(&mut self, what: u8, payload: &[u8]) -> Result<()> {
        let frame = self.sealer.seal(self.frames, what, payload)?;
        self.frames += 1;
        self.send(frame).await
    }

    /// Begins a segment; names are each other's like only once.
    pub(in crate::backup) fn begin(&mut self, kind: Kind, name: &str) -> Result<()> {
        if self.open.is_some() || self.segments.iter().any(|segment| segment.name == name) {
            return Err(Error::new(ErrorKind::Internal, "a segment of an archive is begun twice"));
        }
        let (at, frame) = (self.written, self.frames);
        let segment = Segment { name: name.to_owned(), kind, rows: 0, bytes: 0, hash: String::new(), at, until: at, frame };
        let packed = Encoder::new(Vec::with_capacity(CHUNK * 2), 1).map_err(unsent)?;
        self.open = Some(Open { segment, hash: blake3::Hasher::new(), packed });
        Ok(())
    }

    pub(in crate::backup) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(CHUNK) {
            let open = self.open.as_mut().ok_or_else(unbegun)?;
            open.hash.update(piece);
            open.segment.bytes += piece.len() as u64;
            std::io::Write::write_all(&mut open.packed, piece).map_err(unsent)?;
            if open.packed.get_ref().len() >= CHUNK {
                let full = std::mem::replace(open.packed.get_mut(), Vec::with_capacity(CHUNK * 2));
                self.frame(b'D', &full).await?;
            }
        }
        Ok(())
    }

    /// Ends the segment, which has so many rows.
    pub(in crate::backup) async fn end(&mut self, rows: u64) -> Result<()> {
        let Open { mut segment, hash, packed } = self.open.take().ok_or_else(unbegun)?;
        let rest = packed.finish().map_err(unsent)?;
        self.frame(b'D', &rest).await?;
        (segment.rows, segment.hash, segment.until) = (rows, hash.finalize().to_hex().to_string(), self.written);
        self.segments.push(segment);
        Ok(())
    }

    /// Seals what was written, and gives the archive its name.
    pub(in crate::backup) async fn finish(mut self, details: serde_json::Value) -> Result<Finished> {
        let (at, number) = (self.written, self.frames);
        let manifest = Manifest { segments: std::mem::take(&mut self.segments), details };
        let text = serde_json::to_vec(&manifest).map_err(unwritable)?;
        self.frame(b'M', &text).await?;
        self.send([at.to_be_bytes(), number.to_be_bytes(), *END].concat()).await?;
        self.out.shutdown().await.map_err(unsent)?;
        Ok(Finished { bytes: self.written, hash: self.hash.finalize().to_hex().to_string() })
    }

    /// Gives up: what was sent is dropped by the store, now or in time.
    pub(in crate::backup) async fn abort(mut self) {
        if let Err(error) = self.out.abort().await {
            tracing::debug!(?error, "an upload was not aborted");
        }
    }
}

fn unbegun() -> Error {
    Error::new(ErrorKind::Internal, "no segment of an archive is begun")
}
