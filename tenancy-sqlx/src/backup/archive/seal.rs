//! How frames are sealed: by AES-256-GCM-SIV, or by a keyed BLAKE3 where they may be read. A frame holds at its own place alone.

use std::fmt;

use aes_gcm_siv::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use tenancy_core::{Error, ErrorKind, Result};
use uuid::Uuid;

use super::{MAX_FRAME, changed};

/// A tenant's key for its backups, and which one it is.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::backup) struct ArchiveKey {
    id: Uuid,
    bytes: [u8; 32],
}

impl ArchiveKey {
    pub(in crate::backup) const fn new(id: Uuid, bytes: [u8; 32]) -> Self {
        Self { id, bytes }
    }

    pub(in crate::backup) const fn id(&self) -> Uuid {
        self.id
    }

    pub(in crate::backup) const fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Another key, for one `purpose`, which is a text of ours, and one `salt`.
    pub(super) fn derived(&self, purpose: &str, salt: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(&self.bytes).update(salt);
        hasher.finalize().into()
    }
}

impl fmt::Debug for ArchiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What seals and opens the frames of one file. No two files have the same key, so a frame's number is nonce enough.
pub(super) struct Sealer {
    cipher: Option<Aes256GcmSiv>,
    mac: [u8; 32],
    /// What comes before all frames.
    before: Vec<u8>,
}

impl Sealer {
    pub(super) fn new(key: [u8; 32], encrypted: bool, before: Vec<u8>) -> Self {
        Self { cipher: encrypted.then(|| Aes256GcmSiv::new(&key.into())), mac: key, before }
    }

    fn nonce(number: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        nonce.into()
    }

    fn tag(&self, number: u64, plain: &[u8]) -> [u8; 32] {
        let mut mac = blake3::Hasher::new_keyed(&self.mac);
        mac.update(&(self.before.len() as u64).to_be_bytes()).update(&self.before).update(&number.to_be_bytes()).update(plain);
        mac.finalize().into()
    }

    /// The frame with this number: its length in four bytes, and what is sealed.
    pub(super) fn seal(&self, number: u64, what: u8, payload: &[u8]) -> Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(payload.len() + 33);
        plain.push(what);
        plain.extend_from_slice(payload);
        let body = match &self.cipher {
            Some(cipher) => cipher
                .encrypt(&Self::nonce(number), Payload { msg: &plain, aad: &self.before })
                .map_err(|_| Error::new(ErrorKind::Internal, "a frame can't be sealed"))?,
            None => {
                let tag = self.tag(number, &plain);
                plain.extend_from_slice(&tag);
                plain
            }
        };
        let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= MAX_FRAME);
        let length = length.ok_or_else(|| Error::new(ErrorKind::TooLarge, "a frame of an archive would be too large"))?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        Ok(frame)
    }

    /// What is in a frame, without its length: what it is, and the payload.
    pub(super) fn open(&self, number: u64, body: &[u8]) -> Result<(u8, Vec<u8>)> {
        let mut plain = match &self.cipher {
            Some(cipher) => cipher.decrypt(&Self::nonce(number), Payload { msg: body, aad: &self.before }).map_err(|_| changed())?,
            None => {
                let (plain, tag) = body.split_last_chunk::<32>().ok_or_else(changed)?;
                // Compares in constant time.
                if blake3::Hash::from(self.tag(number, plain)) != blake3::Hash::from(*tag) {
                    return Err(changed());
                }
                plain.to_vec()
            }
        };
        if plain.is_empty() {
            return Err(changed());
        }
        let what = plain.remove(0);
        Ok((what, plain))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_holds_at_its_own_place_in_its_own_file_alone() {
        let key = ArchiveKey::new(Uuid::now_v7(), [7; 32]);
        for encrypted in [true, false] {
            let sealer = |salt: &[u8], before: &[u8]| Sealer::new(key.derived("a test", salt), encrypted, before.to_vec());
            let frame = sealer(b"s", b"before").seal(3, b'D', b"secret words").expect("sealed");
            let body = &frame[4..];
            assert_eq!(frame[..4], u32::try_from(body.len()).expect("short").to_be_bytes());
            assert_eq!(sealer(b"s", b"before").open(3, body).expect("opened"), (b'D', b"secret words".to_vec()));
            assert_eq!(body.windows(6).any(|part| part == b"secret"), !encrypted);
            for wrong in [sealer(b"t", b"before").open(3, body), sealer(b"s", b"other").open(3, body), sealer(b"s", b"before").open(4, body)] {
                assert_eq!(wrong.expect_err("another place").field(), Some("archive"));
            }
            for at in 0..body.len() {
                let mut edited = body.to_vec();
                edited[at] ^= 1;
                assert!(sealer(b"s", b"before").open(3, &edited).is_err(), "byte {at}");
                assert!(sealer(b"s", b"before").open(3, &body[..at]).is_err(), "cut at {at}");
            }
        }
        assert!(!format!("{key:?}").contains("7, 7"));
    }
}
