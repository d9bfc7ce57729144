//! Reads an archive: what it says of itself first, then segments, each as a stream.

use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_core::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tenancy_core::objects::into_error;
use tenancy_core::{Error, Result, TenantId};
use uuid::Uuid;
use zstd::stream::write::Decoder;

use super::seal::{ArchiveKey, Sealer};
use super::write::sealer;
use super::{END, Header, MAGIC, MAX_FRAME, MAX_HEADER, Manifest, PREFIX, Segment, TRAILER, VERSION, changed, refused};

/// Which archive it must be.
#[derive(Debug, Clone)]
pub(in crate::backup) struct Expect {
    pub(in crate::backup) tenant: TenantId,
    pub(in crate::backup) backup: Uuid,
    pub(in crate::backup) bytes: u64,
}

/// An archive that is the one that was expected, with its manifest. Segments are looked at as they are read.
pub(in crate::backup) struct ArchiveReader {
    store: Arc<dyn ObjectStore>,
    at: Path,
    sealer: Arc<Sealer>,
    manifest: Manifest,
}

impl fmt::Debug for ArchiveReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveReader").field("at", &self.at.as_ref()).finish_non_exhaustive()
    }
}

fn gone(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => refused("is not in the object store any more").with_source(error),
        error => into_error(error),
    }
}

impl ArchiveReader {
    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid) at `archive`, with the reason.
    pub(in crate::backup) async fn open(store: Arc<dyn ObjectStore>, at: Path, expect: Expect, key: &ArchiveKey) -> Result<Self> {
        let size = store.head(&at).await.map_err(gone)?.size;
        if size < (PREFIX + TRAILER) as u64 {
            return Err(refused("is too short to be one"));
        }
        let first = store.get_range(&at, 0..size.min((PREFIX + MAX_HEADER) as u64)).await.map_err(gone)?;
        let (prefix, header) = header(&first)?;
        if header.tenant != expect.tenant.as_uuid() {
            return Err(refused("is another tenant's"));
        }
        if header.backup != expect.backup {
            return Err(refused("is another backup"));
        }
        if size != expect.bytes {
            return Err(refused("has another length than it was written with"));
        }
        if header.key != key.id() {
            return Err(refused("is sealed with another key"));
        }
        let trailer = store.get_range(&at, size - TRAILER as u64..size).await.map_err(gone)?;
        let (from, number) = trailing(&trailer)?;
        let until = size - TRAILER as u64;
        if from < prefix.len() as u64 || from + 4 > until || until - from > (MAX_FRAME + 4) as u64 {
            return Err(changed());
        }
        let frame = store.get_range(&at, from..until).await.map_err(gone)?;
        let sealer = sealer(&header, key, prefix);
        let (length, body) = frame.split_first_chunk::<4>().ok_or_else(changed)?;
        if u32::from_be_bytes(*length) as usize != body.len() {
            return Err(changed());
        }
        let (b'M', manifest) = sealer.open(number, body)? else { return Err(changed()) };
        let manifest = serde_json::from_slice(&manifest).map_err(|error| changed().with_source(error))?;
        Ok(Self { store, at, sealer: Arc::new(sealer), manifest })
    }

    pub(in crate::backup) fn segments(&self) -> &[Segment] {
        &self.manifest.segments
    }

    pub(in crate::backup) fn details(&self) -> &serde_json::Value {
        &self.manifest.details
    }

    /// What is in a segment. What comes was authentic; that it was all is known only at the end.
    pub(in crate::backup) fn segment(&self, name: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        let segment = self.manifest.segments.iter().find(|segment| segment.name == name).cloned();
        let segment = segment.ok_or_else(|| Error::invalid("archive", format!("has no segment {name}")))?;
        let unpacked = Decoder::new(Vec::new()).map_err(|error| changed().with_source(error))?;
        let (store, at, sealer) = (Arc::clone(&self.store), self.at.clone(), Arc::clone(&self.sealer));
        let frames = Frames::new(store, at, sealer, (segment.at, segment.until), segment.frame);
        let reading = Reading { frames, segment, unpacked: Some(unpacked), hash: blake3::Hasher::new(), bytes: 0 };
        Ok(stream::try_unfold(reading, |mut reading| async move { Ok(reading.next().await?.map(|bytes| (bytes, reading))) }).boxed())
    }
}

/// The header, and all that comes before the frames.
fn header(first: &[u8]) -> Result<(Vec<u8>, Header)> {
    if !first.starts_with(MAGIC) {
        return Err(refused("is none: it begins with something else"));
    }
    let version = u16::from_be_bytes([first[8], first[9]]);
    if version != VERSION {
        let than = if version > VERSION { "newer: read it with the kit that wrote it, or a later one" } else { "older, and not read any more" };
        return Err(Error::invalid("archive", format!("has version {version} of the format, which is {than}")));
    }
    let length = u32::from_be_bytes([first[10], first[11], first[12], first[13]]) as usize;
    let text = first.get(PREFIX..PREFIX + length).filter(|_| length <= MAX_HEADER).ok_or_else(changed)?;
    let header = serde_json::from_slice(text).map_err(|error| changed().with_source(error))?;
    Ok((first[..PREFIX + length].to_vec(), header))
}

/// Where the manifest is, and the number of its frame.
fn trailing(trailer: &[u8]) -> Result<(u64, u64)> {
    let number = |at: usize| trailer.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    match (number(0), number(8)) {
        (Some(at), Some(number)) if trailer[16..] == *END => Ok((at, number)),
        _ => Err(refused("does not end as one: it was truncated")),
    }
}

/// The frames of a part of a file, one after the other.
pub(super) struct Frames {
    store: Arc<dyn ObjectStore>,
    at: Path,
    sealer: Arc<Sealer>,
    range: std::ops::Range<u64>,
    number: u64,
    read: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    buffer: BytesMut,
}

impl Frames {
    pub(super) fn new(store: Arc<dyn ObjectStore>, at: Path, sealer: Arc<Sealer>, (from, until): (u64, u64), number: u64) -> Self {
        Self { store, at, sealer, range: from..until, number, read: None, buffer: BytesMut::new() }
    }

    /// At least so many bytes, unless there are fewer.
    async fn fill(&mut self, want: usize) -> Result<()> {
        if self.read.is_none() && !self.range.is_empty() {
            let options = object_store::GetOptions { range: Some(self.range.clone().into()), ..Default::default() };
            self.read = Some(self.store.get_opts(&self.at, options).await.map_err(gone)?.into_stream());
        }
        let Some(read) = &mut self.read else { return Ok(()) };
        while self.buffer.len() < want {
            match read.try_next().await.map_err(gone)? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => break,
            }
        }
        Ok(())
    }

    /// The next frame; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        self.fill(4).await?;
        let Some(length) = self.buffer.first_chunk::<4>() else {
            return if self.buffer.is_empty() { Ok(None) } else { Err(refused("breaks off")) };
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(changed());
        }
        self.fill(4 + length).await?;
        if self.buffer.len() < 4 + length {
            return Err(refused("breaks off"));
        }
        let frame = self.buffer.split_to(4 + length);
        let opened = self.sealer.open(self.number, &frame[4..])?;
        self.number += 1;
        Ok(Some(opened))
    }
}

/// A segment that is being read.
struct Reading {
    frames: Frames,
    segment: Segment,
    unpacked: Option<Decoder<'static, Vec<u8>>>,
    hash: blake3::Hasher,
    bytes: u64,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(unpacked) = &mut self.unpacked else { return Ok(None) };
            let opened = self.frames.next().await?;
            let last = opened.is_none();
            match opened {
                Some((b'D', packed)) => {
                    std::io::Write::write_all(unpacked, &packed).map_err(|error| changed().with_source(error))?;
                }
                Some(_) => return Err(changed()),
                None => std::io::Write::flush(unpacked).map_err(|error| changed().with_source(error))?,
            }
            let bytes = Bytes::from(std::mem::take(unpacked.get_mut()));
            self.hash.update(&bytes);
            self.bytes += bytes.len() as u64;
            if last {
                self.unpacked = None;
                if self.bytes != self.segment.bytes || self.hash.finalize().to_hex().as_str() != self.segment.hash {
                    return Err(changed());
                }
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }
}
