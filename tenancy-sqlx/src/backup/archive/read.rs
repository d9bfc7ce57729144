//! Reading an archive.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt as _};
use serde_json::Value;
use tenancy_core::{Error, ErrorKind, Result};
use zstd::stream::raw::{DParameter, Decoder, Operation as _};

use super::chunks::Opener;
use super::header::{self, Expect, Header};
use super::key::{ArchiveKey, Keys};
use super::manifest::{self, Manifest, Segment, TRAILER, Trailer};
use super::{changed, refused, stored, truncated, write};

/// The most that one step decompresses: what was little to store can be much.
const PIECE: usize = 128 * 1024;
/// How far back compressed bytes may refer, as a power of two. What is written needs 19.
const WINDOW: u32 = 21;

/// An archive whose header, manifest and trailer are known to be right.
pub struct ArchiveReader {
    store: Arc<dyn ObjectStore>,
    at: Path,
    keys: Keys,
    header: Header,
    manifest: Manifest,
}

impl ArchiveReader {
    /// Opens the archive at `at`, if it is the one that is expected.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) at `archive` says why it is refused: missing, no archive, of another format, tenant, backup or key,
    /// truncated, changed. As the store's.
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// I39.
    pub async fn open(store: Arc<dyn ObjectStore>, at: Path, expect: Expect, key: &ArchiveKey) -> Result<Self> {
        let bytes = store.head(&at).await.map_err(stored)?.size;
        let start = fetch(&*store, &at, 0..bytes.min(header::MOST as u64)).await?;
        let (header, length) = Header::read(&start)?;
        expect.check(&header, key)?;
        if bytes != expect.bytes {
            return Err(if bytes < expect.bytes { truncated() } else { changed() });
        }
        let beginning = &start[..length];
        let keys = key.archive(beginning);
        let end = fetch(&*store, &at, bytes.saturating_sub(TRAILER as u64).max(length as u64)..bytes).await?;
        let trailer = Trailer::read(&end, bytes, &keys)?;
        let from = trailer.offset..trailer.offset + trailer.stored;
        let mut pressed =
            Unpressed::new(Opener::new(&keys, header.encrypted, manifest::NUMBER, trailer.stored, ranged(&store, &at, from)))?;
        let mut json = Vec::new();
        while let Some(more) = pressed.next().await? {
            json.extend_from_slice(&more);
            if json.len() > manifest::MOST {
                return Err(changed());
            }
        }
        if !expect.hash.is_empty() && write::hash(beginning, &json, &end) != expect.hash {
            return Err(refused("is not the one that was recorded"));
        }
        let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| changed().with_source(error))?;
        manifest.check(length as u64, trailer.offset)?;
        Ok(Self { store, at, keys, header, manifest })
    }

    /// What it says of itself.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Its segments, in the order in which they were written.
    pub fn segments(&self) -> &[Segment] {
        &self.manifest.segments
    }

    /// The details that it was [finished](super::ArchiveWriter::finish) with.
    pub const fn details(&self) -> &Value {
        &self.manifest.details
    }

    /// What a segment holds, in pieces. Each was authenticated before it is given; that all of it came, and as it was, is known once the
    /// stream ends without an error.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for one that there is not. The stream's are as [`open`](ArchiveReader::open)'s.
    pub fn segment(&self, name: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        let position = self.manifest.segments.iter().position(|segment| segment.name == name).ok_or_else(Error::not_found)?;
        let segment = &self.manifest.segments[position];
        let number = u32::try_from(position).map_err(|_| changed())?;
        let from = ranged(&self.store, &self.at, segment.offset..segment.offset + segment.stored);
        let unpressed = Unpressed::new(Opener::new(&self.keys, self.header.encrypted, number, segment.stored, from))?;
        let expected = (segment.bytes, segment.hash.clone());
        Ok(stream::try_unfold((unpressed, expected), |(mut unpressed, expected)| async move {
            match unpressed.next().await? {
                Some(piece) => Ok(Some((Bytes::from(piece), (unpressed, expected)))),
                None if unpressed.came() == expected => Ok(None),
                None => Err(changed()),
            }
        })
        .boxed())
    }

    /// Reads all of it, and keeps nothing.
    ///
    /// # Errors
    /// As [`open`](ArchiveReader::open).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn verify(&self) -> Result<()> {
        for segment in &self.manifest.segments {
            let mut pieces = self.segment(&segment.name)?;
            while pieces.try_next().await?.is_some() {}
        }
        Ok(())
    }
}

impl fmt::Debug for ArchiveReader {
    /// Leaves out the store, whose own text may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveReader").field("header", &self.header).field("segments", &self.manifest.segments).finish_non_exhaustive()
    }
}

/// These bytes of a file, in memory.
pub(super) async fn fetch(store: &dyn ObjectStore, at: &Path, range: std::ops::Range<u64>) -> Result<Bytes> {
    if range.is_empty() { Ok(Bytes::new()) } else { store.get_range(at, range).await.map_err(stored) }
}

/// These bytes of a file, as they come. Nothing is asked for before it is polled.
pub(super) fn ranged(
    store: &Arc<dyn ObjectStore>,
    at: &Path,
    range: std::ops::Range<u64>,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    let (store, at) = (Arc::clone(store), at.clone());
    let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    stream::once(async move { store.get_opts(&at, options).await.map(object_store::GetResult::into_stream) }).try_flatten().boxed()
}

/// Chunks on their way through the decompressor.
struct Unpressed {
    opener: Opener,
    press: Decoder<'static>,
    chunk: Vec<u8>,
    read: usize,
    /// Whether there may be more to give without more to read.
    more: bool,
    whole: bool,
    hash: blake3::Hasher,
}

impl Unpressed {
    fn new(opener: Opener) -> Result<Self> {
        let mut press = Decoder::new().map_err(damaged)?;
        press.set_parameter(DParameter::WindowLogMax(WINDOW)).map_err(damaged)?;
        Ok(Self { opener, press, chunk: Vec::new(), read: 0, more: false, whole: false, hash: blake3::Hasher::new() })
    }

    /// The next piece, of no more than [`PIECE`] bytes.
    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut piece = vec![0; PIECE];
        let mut written = 0;
        loop {
            if self.read == self.chunk.len() && !self.more && !self.whole {
                match self.opener.next().await? {
                    Some(chunk) => (self.chunk, self.read) = (chunk, 0),
                    None => return Err(changed()), // ended within a frame
                }
            }
            if self.whole {
                // Nothing may follow.
                if self.read < self.chunk.len() || self.opener.next().await?.is_some() {
                    return Err(changed());
                }
                break;
            }
            let done = self.press.run_on_buffers(&self.chunk[self.read..], &mut piece[written..]).map_err(damaged)?;
            self.read += done.bytes_read;
            written += done.bytes_written;
            self.whole = done.remaining == 0;
            self.more = written == PIECE;
            if written == PIECE {
                break;
            }
        }
        piece.truncate(written);
        self.hash.update(&piece);
        Ok((written > 0).then_some(piece))
    }

    /// How much came, and its hash.
    fn came(&self) -> (u64, String) {
        (self.hash.count(), self.hash.finalize().to_hex().to_string())
    }
}

fn damaged(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, "can't be decompressed").with_source(error)
}
