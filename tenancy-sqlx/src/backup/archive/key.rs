//! Keys: a tenant's, and what comes from it for one archive or one content.

use std::fmt;

use uuid::Uuid;

use super::manifest::Trailer;

/// A tenant's key for backups, with its id. Archives and contents each get keys of their own from it.
#[derive(Clone)]
pub struct ArchiveKey {
    id: Uuid,
    key: [u8; 32],
}

impl ArchiveKey {
    /// The key of these bytes, which must be random and no other tenant's.
    pub const fn new(id: Uuid, key: [u8; 32]) -> Self {
        Self { id, key }
    }

    /// Its id.
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// The keys of the archive that begins with these bytes.
    pub(super) fn archive(&self, beginning: &[u8]) -> Keys {
        Keys::new(self.derive("tenancy 1 backup archive", &[beginning]))
    }

    /// The keys of a content of this tenant's whose file begins with these bytes.
    pub(super) fn blob(&self, beginning: &[u8], tenant: Uuid) -> Keys {
        Keys::new(self.derive("tenancy 1 backup blob", &[beginning, tenant.as_bytes()]))
    }

    /// What hashes contents to their names.
    pub(super) fn namer(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&blake3::derive_key("tenancy 1 backup blob name", &self.key))
    }

    fn derive(&self, context: &str, of: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&blake3::derive_key(context, &self.key));
        for part in of {
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

impl fmt::Debug for ArchiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys of one file.
#[derive(Clone)]
pub(super) struct Keys {
    /// Encrypts chunks.
    pub(super) seal: [u8; 32],
    /// Authenticates chunks that are not encrypted.
    pub(super) sign: [u8; 32],
    end: [u8; 32],
}

impl Keys {
    fn new(file: [u8; 32]) -> Self {
        let key = |context| blake3::derive_key(context, &file);
        Self { seal: key("tenancy 1 backup seal"), sign: key("tenancy 1 backup sign"), end: key("tenancy 1 backup end") }
    }

    /// What says that a file ends here, and of what it is the end. Hashes compare in constant time.
    pub(super) fn end(&self, of: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.end, of)
    }

    /// The same of an archive that is so large.
    pub(super) fn end_of(&self, trailer: &Trailer, bytes: u64) -> blake3::Hash {
        let numbers = [trailer.offset, trailer.stored, bytes].map(u64::to_le_bytes);
        self.end(numbers.as_flattened())
    }
}
