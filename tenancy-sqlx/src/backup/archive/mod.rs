//! The archive of a backup: one object, written and read as a stream, of which nothing is used that is not authentic.
//!
//! `docs/backup-format.md` describes it to the byte.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tenancy_core::{Error, TenantId};
use uuid::Uuid;

mod blobs;
mod read;
mod seal;
mod write;

pub(super) use blobs::{BlobRef, Blobs, YOUNG};
pub(super) use read::{ArchiveReader, Expect};
pub(super) use seal::ArchiveKey;
pub(super) use write::ArchiveWriter;

/// How an archive begins, and how it ends.
const MAGIC: &[u8; 8] = b"TENANCYB";
const END: &[u8; 8] = b"TENANCYE";
/// The one version of the format that there is.
const VERSION: u16 = 1;
/// Magic, version, length of the header.
const PREFIX: usize = 8 + 2 + 4;
/// The offset of the manifest's frame, its number, magic.
const TRAILER: usize = 8 + 8 + 8;
/// The longest header, in bytes.
const MAX_HEADER: usize = 4096;
/// How much of a segment's compressed bytes is sealed at once.
const CHUNK: usize = 64 * 1024;
/// The longest frame, in bytes: the manifest is one.
const MAX_FRAME: usize = 64 * 1024 * 1024;
/// How much is sent to the store at once, and how many of that at a time.
const PART: usize = 8 * 1024 * 1024;

/// What an archive says first: all that follows is authenticated together with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) tenant: Uuid,
    pub(super) backup: Uuid,
    /// The tenant's key.
    pub(super) key: Uuid,
    pub(super) encrypted: bool,
    /// Makes the archive's own key: 16 random bytes, in hex.
    pub(super) salt: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) kit: String,
}

impl Header {
    pub(super) fn new(tenant: TenantId, backup: Uuid, key: &ArchiveKey, encrypted: bool, created_at: DateTime<Utc>) -> Self {
        let salt = seal::hex(&rand::random::<[u8; 16]>());
        let (tenant, kit) = (tenant.as_uuid(), env!("CARGO_PKG_VERSION").to_owned());
        Self { tenant, backup, key: key.id(), encrypted, salt, created_at, kit }
    }
}

/// What a segment is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Rows of a table, as binary COPY.
    Rows,
    /// A list of objects, a line of JSON each.
    Objects,
}

/// One segment, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) rows: u64,
    /// Before compression.
    pub(super) bytes: u64,
    /// BLAKE3 of those, in hex.
    pub(super) hash: String,
    /// Where its first frame is, and where the last one ends.
    at: u64,
    until: u64,
    /// The number of its first frame.
    frame: u64,
}

/// What is sealed last.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    segments: Vec<Segment>,
    details: serde_json::Value,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) bytes: u64,
    pub(super) hash: String,
}

/// Why an archive is not used.
fn refused(why: &'static str) -> Error {
    Error::invalid("archive", why)
}

fn changed() -> Error {
    refused("was changed, or is not sealed with this tenant's key")
}
