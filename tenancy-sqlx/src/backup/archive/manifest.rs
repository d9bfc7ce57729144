//! What an archive ends with: the manifest, and where that is.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy_core::Result;

use super::key::Keys;
use super::{changed, truncated};

/// The number of the manifest's chunks, which no segment has.
pub(super) const NUMBER: u32 = u32::MAX;
/// The most that a manifest can be, in bytes of JSON.
pub(super) const MOST: usize = 16 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"TNCYBEND";
/// How large a trailer is.
pub(super) const TRAILER: usize = 56;

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// A table's rows.
    Rows,
    /// The list of the tenant's objects.
    Objects,
}

/// One part of an archive, such as a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Segment {
    /// What it is called; no other one of the archive is.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// How many rows, or objects.
    pub rows: u64,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Where it is in the archive, compressed and sealed.
    pub offset: u64,
    /// How large it is there, in bytes.
    pub stored: u64,
    /// BLAKE3 of its bytes, in hex.
    pub hash: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) segments: Vec<Segment>,
    pub(super) details: Value,
}

impl Manifest {
    /// Whether the segments are all that there is from the header on to the manifest.
    pub(super) fn check(&self, header: u64, manifest: u64) -> Result<()> {
        let mut at = header;
        for segment in &self.segments {
            if segment.offset != at {
                return Err(changed());
            }
            at = at.checked_add(segment.stored).ok_or_else(changed)?;
        }
        if at == manifest { Ok(()) } else { Err(changed()) }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finished {
    /// How large the archive is.
    pub bytes: u64,
    /// BLAKE3 of its header, its manifest's JSON and its trailer, in hex. The manifest has the hashes of all segments: where this one is
    /// known, no other archive is taken for it.
    pub hash: String,
}

/// Where the manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) offset: u64,
    pub(super) stored: u64,
}

impl Trailer {
    /// The last bytes of an archive.
    pub(super) fn bytes(&self, keys: &Keys) -> Vec<u8> {
        let mut bytes = [self.offset.to_le_bytes(), self.stored.to_le_bytes()].concat();
        bytes.extend(keys.end_of(self, self.offset + self.stored + TRAILER as u64).as_bytes());
        bytes.extend(MAGIC);
        bytes
    }

    /// Reads them, of an archive of so many bytes.
    pub(super) fn read(trailer: &[u8], bytes: u64, keys: &Keys) -> Result<Self> {
        let trailer: &[u8; TRAILER] = trailer.try_into().map_err(|_| truncated())?;
        if &trailer[48..] != MAGIC {
            return Err(truncated());
        }
        let number = |at: usize| trailer[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let this = Self { offset: number(0), stored: number(8) };
        let end: [u8; 32] = trailer[16..48].try_into().map_err(|_| truncated())?;
        if keys.end_of(&this, bytes) != blake3::Hash::from_bytes(end) {
            return Err(changed());
        }
        let whole = this.offset.checked_add(this.stored).and_then(|end| end.checked_add(TRAILER as u64));
        if whole == Some(bytes) { Ok(this) } else { Err(changed()) }
    }
}
