//! What an archive begins with.

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};
use tenancy_core::{Error, ErrorKind, Result, TenantId};
use uuid::Uuid;

use super::key::ArchiveKey;
use super::{changed, refused, truncated};

/// The version of the format that is written, and the only one that is read.
pub const FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"TNCYBKUP";
/// The magic, the version, the length of the header.
const FIXED: usize = 16;
/// The most that an archive begins with: it is read at once.
pub(super) const MOST: usize = 4096;

/// What an archive is, in the clear. The key of everything after it comes from these bytes too: none of it opens under another header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Header {
    /// Of which tenant it is.
    pub tenant: Uuid,
    /// Which backup.
    pub backup: Uuid,
    /// The tenant's key that it is sealed with.
    pub key: Uuid,
    /// Whether it is encrypted; it is authenticated in any case.
    pub encrypted: bool,
    /// The version of the kit that wrote it.
    pub kit: String,
    /// When it was begun.
    pub created_at: DateTime<Utc>,
    /// 32 random bytes in hex: no two archives have the same key.
    salt: String,
}

impl Header {
    /// Of an archive that is begun now.
    pub fn new(tenant: TenantId, backup: Uuid, key: &ArchiveKey, encrypted: bool, now: DateTime<Utc>) -> Self {
        let salt = blake3::Hash::from_bytes(rand::random()).to_hex().to_string();
        let (kit, created_at) = (env!("CARGO_PKG_VERSION").to_owned(), now.trunc_subsecs(6));
        Self { tenant: tenant.as_uuid(), backup, key: key.id(), encrypted, kit, created_at, salt }
    }

    /// What the archive begins with.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self).map_err(|error| Error::new(ErrorKind::Internal, "can't be written").with_source(error))?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(json);
        if bytes.len() > MOST { Err(Error::new(ErrorKind::Internal, "the header of an archive is too large")) } else { Ok(bytes) }
    }

    /// Reads it from what an archive begins with, and says how long it is.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize)> {
        let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
            return Err(if MAGIC.starts_with(&bytes[..bytes.len().min(8)]) && !bytes.is_empty() {
                truncated()
            } else {
                refused("is not an archive")
            });
        };
        if &fixed[..8] != MAGIC {
            return Err(refused("is not an archive"));
        }
        let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        match number(8) {
            FORMAT => {}
            newer if newer > FORMAT => return Err(refused("has a newer format than this version of the kit reads")),
            _ => return Err(refused("has a format that is not read any more")),
        }
        let length = number(12) as usize;
        if length > MOST - FIXED {
            return Err(changed());
        }
        let json = rest.get(..length).ok_or_else(truncated)?;
        let header = serde_json::from_slice(json).map_err(|error| changed().with_source(error))?;
        Ok((header, FIXED + length))
    }
}

/// Which archive it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// Of which tenant.
    pub tenant: TenantId,
    /// Which backup.
    pub backup: Uuid,
    /// How large.
    pub bytes: u64,
    /// Its [hash](super::Finished::hash), as it was when it was written. Empty: any archive of the backup.
    pub hash: String,
}

impl Expect {
    /// Whether it is that one, as far as the header says.
    pub(super) fn check(&self, header: &Header, key: &ArchiveKey) -> Result<()> {
        if header.tenant != self.tenant.as_uuid() {
            return Err(refused("belongs to another tenant"));
        }
        if header.backup != self.backup {
            return Err(refused("is another backup's"));
        }
        if header.key != key.id() {
            return Err(refused("is sealed with another key"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_other_formats_say_so() {
        let key = ArchiveKey::new(Uuid::now_v7(), [1; 32]);
        let header = Header::new(TenantId::new(), Uuid::now_v7(), &key, true, DateTime::UNIX_EPOCH);
        let bytes = header.bytes().expect("bytes");
        assert_eq!(Header::read(&[&bytes[..], b"more"].concat()).expect("read"), (header, bytes.len()));
        let why = |bytes: &[u8]| Header::read(bytes).expect_err("refused").message().to_owned();
        assert_eq!(why(b""), "is not an archive");
        assert_eq!(why(b"PK\x03\x04 and whatever follows it"), "is not an archive");
        for end in [4, 8, 15, 16, bytes.len() - 1] {
            assert_eq!(why(&bytes[..end]), "is truncated", "{end}");
        }
        let with = |at: usize, byte: u8| bytes.iter().enumerate().map(|(n, old)| if n == at { byte } else { *old }).collect::<Vec<_>>();
        assert_eq!(why(&with(8, 2)), "has a newer format than this version of the kit reads");
        assert_eq!(why(&with(8, 0)), "has a format that is not read any more");
        assert_eq!(why(&with(15, 9)), "was changed after it was written");
        assert_eq!(why(&with(20, 0)), "was changed after it was written");
    }
}
