//! Writing an archive.

use std::fmt;
use std::io::Write as _;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use serde_json::Value;
use tenancy_core::{Error, ErrorKind, Result};

use super::chunks::{CHUNK, Sealer};
use super::header::Header;
use super::key::{ArchiveKey, Keys};
use super::manifest::{self, Finished, Kind, Manifest, Segment, Trailer};
use crate::upload::Upload;

/// Fast, and half of what most rows are: see the benchmarks.
const LEVEL: i32 = 1;

/// An archive that is being written. In memory are two parts of the upload and little more: less than 24 MiB, however large it becomes.
pub struct ArchiveWriter {
    upload: Upload,
    keys: Keys,
    encrypted: bool,
    beginning: Vec<u8>,
    segments: Vec<Segment>,
    open: Option<Open>,
    /// Set while something is written: what was stopped there is not whole.
    spoiled: bool,
}

/// The segment that is being written.
struct Open {
    name: String,
    kind: Kind,
    offset: u64,
    pressed: Pressed,
}

impl ArchiveWriter {
    /// Begins an archive at `at`. It is there once it is [finished](ArchiveWriter::finish).
    ///
    /// # Errors
    /// As the store's.
    ///
    /// # Cancel safety
    /// Safe: nothing was stored.
    pub async fn create(store: Arc<dyn ObjectStore>, at: Path, header: Header, key: &ArchiveKey) -> Result<Self> {
        if header.key != key.id() {
            return Err(Error::new(ErrorKind::Internal, "the archive's header names another key"));
        }
        let beginning = header.bytes()?;
        let mut upload = Upload::new(store, at);
        upload.write(&beginning).await?;
        let keys = key.archive(&beginning);
        Ok(Self { upload, keys, encrypted: header.encrypted, beginning, segments: Vec::new(), open: None, spoiled: false })
    }

    /// Begins a segment, after the one before was [ended](ArchiveWriter::end).
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) where that was not, and for a name that another one has.
    pub fn begin(&mut self, kind: Kind, name: &str) -> Result<()> {
        if self.open.is_some() || self.segments.iter().any(|segment| segment.name == name) {
            return Err(Error::new(ErrorKind::Internal, "a segment is begun twice"));
        }
        let number = u32::try_from(self.segments.len()).unwrap_or(manifest::NUMBER);
        if number == manifest::NUMBER {
            return Err(Error::new(ErrorKind::TooLarge, "has more segments than an archive can have"));
        }
        let pressed = Pressed::new(Sealer::new(&self.keys, self.encrypted, number))?;
        self.open = Some(Open { name: name.to_owned(), kind, offset: self.upload.bytes(), pressed });
        Ok(())
    }

    /// Adds to the segment.
    ///
    /// # Errors
    /// As the store's; [`Internal`](ErrorKind::Internal) without a segment.
    ///
    /// # Cancel safety
    /// A dropped future spoils the archive: it can't be finished.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.spoil()?;
        let open = self.open.as_mut().ok_or_else(none_open)?;
        open.pressed.write(bytes, &mut self.upload).await?;
        self.spoiled = false;
        Ok(())
    }

    /// Ends the segment, which has so many `rows`.
    ///
    /// # Errors
    /// As [`write`](ArchiveWriter::write).
    ///
    /// # Cancel safety
    /// A dropped future spoils the archive: it can't be finished.
    pub async fn end(&mut self, rows: u64) -> Result<Segment> {
        self.spoil()?;
        let Open { name, kind, offset, pressed } = self.open.take().ok_or_else(none_open)?;
        let (bytes, hash) = pressed.end(&mut self.upload).await?;
        let stored = self.upload.bytes() - offset;
        let segment = Segment { name, kind, rows, bytes, offset, stored, hash: hash.to_hex().to_string() };
        self.segments.push(segment.clone());
        self.spoiled = false;
        Ok(segment)
    }

    /// Writes the manifest, with these details, and puts the archive in place.
    ///
    /// # Errors
    /// As the store's; [`TooLarge`](ErrorKind::TooLarge) for a manifest of more than 16 MiB; [`Internal`](ErrorKind::Internal) where a segment
    /// was not ended or a write was stopped. Nothing is there then.
    ///
    /// # Cancel safety
    /// The archive may be there or not.
    pub async fn finish(mut self, details: Value) -> Result<Finished> {
        match self.finished(details).await {
            Ok(hash) => Ok(Finished { bytes: self.upload.close().await?, hash }),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    async fn finished(&mut self, details: Value) -> Result<String> {
        self.spoil()?;
        if self.open.is_some() {
            return Err(Error::new(ErrorKind::Internal, "a segment of the archive was not ended"));
        }
        let manifest = Manifest { segments: std::mem::take(&mut self.segments), details };
        let json = serde_json::to_vec(&manifest).map_err(|error| Error::new(ErrorKind::Internal, "can't be written").with_source(error))?;
        if json.len() > manifest::MOST {
            return Err(Error::new(ErrorKind::TooLarge, "has a larger manifest than an archive can have"));
        }
        let offset = self.upload.bytes();
        let mut pressed = Pressed::new(Sealer::new(&self.keys, self.encrypted, manifest::NUMBER))?;
        pressed.write(&json, &mut self.upload).await?;
        pressed.end(&mut self.upload).await?;
        let trailer = Trailer { offset, stored: self.upload.bytes() - offset }.bytes(&self.keys);
        self.upload.write(&trailer).await?;
        Ok(hash(&self.beginning, &json, &trailer))
    }

    /// Gives the archive up, and removes what is in the store of it. What a dropped one leaves there, the store's own rules for uploads that
    /// nobody completed must remove.
    ///
    /// # Cancel safety
    /// Something may be left.
    pub async fn abort(self) {
        self.upload.abort().await;
    }

    fn spoil(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.spoiled, true) {
            Err(Error::new(ErrorKind::Internal, "the archive's writing was stopped"))
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for ArchiveWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveWriter").field("bytes", &self.upload.bytes()).field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

fn none_open() -> Error {
    Error::new(ErrorKind::Internal, "no segment of the archive is begun")
}

/// Which archive it is: the manifest has the hashes of all between.
pub(super) fn hash(beginning: &[u8], manifest: &[u8], trailer: &[u8]) -> String {
    blake3::Hasher::new().update(beginning).update(manifest).update(trailer).finalize().to_hex().to_string()
}

/// Bytes on their way through the compressor. Each piece takes well below a millisecond: nothing else has to wait for it.
struct Pressed {
    sealer: Sealer,
    press: zstd::stream::write::Encoder<'static, Vec<u8>>,
    piece: Vec<u8>,
    hash: blake3::Hasher,
}

impl Pressed {
    fn new(sealer: Sealer) -> Result<Self> {
        let press = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(unpressed)?;
        Ok(Self { sealer, press, piece: Vec::with_capacity(CHUNK), hash: blake3::Hasher::new() })
    }

    async fn write(&mut self, mut bytes: &[u8], to: &mut Upload) -> Result<()> {
        while self.piece.len() + bytes.len() >= CHUNK {
            let (now, later) = bytes.split_at(CHUNK - self.piece.len());
            self.piece.extend_from_slice(now);
            bytes = later;
            self.press(to).await?;
        }
        self.piece.extend_from_slice(bytes);
        Ok(())
    }

    async fn press(&mut self, to: &mut Upload) -> Result<()> {
        self.hash.update(&self.piece);
        self.press.write_all(&self.piece).map_err(unpressed)?;
        self.piece.clear();
        self.sealer.write(self.press.get_ref(), to).await?;
        self.press.get_mut().clear();
        tokio::task::yield_now().await;
        Ok(())
    }

    /// The size and hash of what was written.
    async fn end(mut self, to: &mut Upload) -> Result<(u64, blake3::Hash)> {
        self.press(to).await?;
        let rest = self.press.finish().map_err(unpressed)?;
        self.sealer.write(&rest, to).await?;
        self.sealer.end(to).await?;
        Ok((self.hash.count(), self.hash.finalize()))
    }
}

fn unpressed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, "can't be compressed").with_source(error)
}
