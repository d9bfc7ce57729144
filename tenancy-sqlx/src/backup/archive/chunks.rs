//! Bytes in sealed chunks: STREAM with AES-256-GCM-SIV, or the same chunks in the clear with a MAC.

use aead_stream::{NewStream as _, StreamBE32, StreamPrimitive as _};
use aes_gcm_siv::Aes256GcmSiv;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tenancy_core::{Error, ErrorKind, Result};

use super::key::Keys;
use super::{changed, stored, truncated};
use crate::upload::Upload;

/// How much is sealed at once. All chunks but the last have this size.
pub(super) const CHUNK: usize = 64 * 1024;
/// What sealing adds to a chunk.
pub(super) const TAG: usize = 16;

/// One sequence of chunks of a file. A chunk opens only under its file's key, in its sequence, at its position, and if the last, as that.
struct Sequence {
    how: How,
    position: u32,
}

enum How {
    Encrypt(Box<StreamBE32<Aes256GcmSiv>>),
    Sign { key: [u8; 32], number: [u8; 4] },
}

impl Sequence {
    fn new(keys: &Keys, encrypted: bool, number: u32) -> Self {
        let number = number.to_be_bytes();
        let how = if encrypted {
            let nonce = [0, 0, 0, number[0], number[1], number[2], number[3]];
            How::Encrypt(Box::new(StreamBE32::new(&keys.seal.into(), &nonce.into())))
        } else {
            How::Sign { key: keys.sign, number }
        };
        Self { how, position: 0 }
    }

    fn advance(&mut self) -> Result<u32> {
        let position = self.position;
        self.position = position.checked_add(1).ok_or_else(|| Error::new(ErrorKind::TooLarge, "is larger than an archive can be"))?;
        Ok(position)
    }

    fn seal(&mut self, last: bool, chunk: &mut Vec<u8>) -> Result<()> {
        let position = self.advance()?;
        match &self.how {
            How::Encrypt(stream) => {
                let unsealed = |_| Error::new(ErrorKind::Internal, "a chunk could not be sealed");
                stream.encrypt_in_place(position, last, &[], chunk).map_err(unsealed)?;
            }
            How::Sign { key, number } => chunk.extend_from_slice(&mac(key, *number, position, last, chunk)),
        }
        Ok(())
    }

    fn open(&mut self, last: bool, chunk: &mut Vec<u8>) -> Result<()> {
        let position = self.advance()?;
        match &self.how {
            How::Encrypt(stream) => stream.decrypt_in_place(position, last, &[], chunk).map_err(|_| changed()),
            How::Sign { key, number } => {
                let length = chunk.len().checked_sub(TAG).ok_or_else(truncated)?;
                let expected = mac(key, *number, position, last, &chunk[..length]);
                let differs = expected.iter().zip(&chunk[length..]).fold(0, |differs, (one, two)| differs | (one ^ two));
                chunk.truncate(length);
                if differs == 0 { Ok(()) } else { Err(changed()) }
            }
        }
    }
}

fn mac(key: &[u8; 32], number: [u8; 4], position: u32, last: bool, chunk: &[u8]) -> [u8; TAG] {
    let mut mac = blake3::Hasher::new_keyed(key);
    mac.update(&number).update(&position.to_be_bytes()).update(&[u8::from(last)]).update(chunk);
    let mut tag = [0; TAG];
    mac.finalize_xof().fill(&mut tag);
    tag
}

/// How large so many bytes are as chunks.
pub(super) const fn sealed(bytes: u64) -> u64 {
    let chunks = bytes.div_ceil(CHUNK as u64);
    bytes.saturating_add(TAG as u64 * if chunks == 0 { 1 } else { chunks })
}

/// Cuts bytes into chunks, and seals them. One chunk is kept back, as it may be the last.
pub(super) struct Sealer {
    chunks: Sequence,
    chunk: Vec<u8>,
}

impl Sealer {
    pub(super) fn new(keys: &Keys, encrypted: bool, number: u32) -> Self {
        Self { chunks: Sequence::new(keys, encrypted, number), chunk: Vec::with_capacity(CHUNK + TAG) }
    }

    pub(super) async fn write(&mut self, mut bytes: &[u8], to: &mut Upload) -> Result<()> {
        while self.chunk.len() + bytes.len() > CHUNK {
            let (now, later) = bytes.split_at(CHUNK - self.chunk.len());
            self.chunk.extend_from_slice(now);
            bytes = later;
            self.chunks.seal(false, &mut self.chunk)?;
            to.push(std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK + TAG)).into()).await?;
            tokio::task::yield_now().await;
        }
        self.chunk.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) async fn end(mut self, to: &mut Upload) -> Result<()> {
        self.chunks.seal(true, &mut self.chunk)?;
        to.push(self.chunk.into()).await
    }
}

/// Puts chunks together as they come, and opens them.
pub(super) struct Opener {
    chunks: Sequence,
    from: BoxStream<'static, object_store::Result<Bytes>>,
    /// What came and is not opened yet.
    rest: Bytes,
    /// What is not opened yet, of all.
    left: u64,
}

impl Opener {
    /// Of so many `bytes` that come `from` somewhere.
    pub(super) fn new(
        keys: &Keys,
        encrypted: bool,
        number: u32,
        bytes: u64,
        from: BoxStream<'static, object_store::Result<Bytes>>,
    ) -> Self {
        Self { chunks: Sequence::new(keys, encrypted, number), from, rest: Bytes::new(), left: bytes }
    }

    /// What the next chunk holds, if there is one.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        if self.left == 0 {
            return Ok(None);
        }
        let wanted = self.left.min((CHUNK + TAG) as u64) as usize;
        if wanted < TAG || (wanted == TAG && self.chunks.position > 0) {
            return Err(changed()); // only what is empty has an empty chunk
        }
        let mut chunk = Vec::with_capacity(wanted);
        while chunk.len() < wanted {
            if self.rest.is_empty() {
                self.rest = self.from.next().await.ok_or_else(truncated)?.map_err(stored)?;
            }
            let now = self.rest.split_to(self.rest.len().min(wanted - chunk.len()));
            chunk.extend_from_slice(&now);
        }
        self.left -= wanted as u64;
        self.chunks.open(self.left == 0, &mut chunk)?;
        tokio::task::yield_now().await;
        Ok(Some(chunk))
    }
}
