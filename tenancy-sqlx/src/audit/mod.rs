//! The audit log: sealed behind its writers into one chain of hashes per tenant, verified, and read.
//!
//! A chain that every writer extended would cost a hot tenant most of its writes, so events are only appended, and a [`Sealer`] takes
//! them up a moment later: all rows of transactions that are older than any that still runs, in one order, each exactly once.
//! [`verify`] walks the chains and names the first place where one breaks. The format is in `docs/audit.md`.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tenancy_core::{Result, TenantId};
use uuid::Uuid;

use crate::error::from_sqlx;

mod read;
mod seal;
mod verify;

pub use read::{AuditQuery, Recorded};
pub use seal::{Sealed, Sealer};
pub use verify::{Finding, FindingKind, Verified, verify};

/// SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What comes before the first event of a chain.
    pub const START: Self = Self([0; 32]);

    fn of(row: &PgRow, column: &str) -> std::result::Result<Self, sqlx::Error> {
        let bytes: &[u8] = row.try_get(column)?;
        bytes.try_into().map(Self).map_err(|e| sqlx::Error::Decode(Box::new(e)))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Hash {
    type Err = tenancy_core::Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || tenancy_core::Error::invalid("hash", "must be 64 digits of hex");
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The end of a chain: kept outside of the database, it is an anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Whose chain; none is the platform's.
    pub tenant_id: Option<Uuid>,
    /// How many events it has.
    pub n: i64,
    /// The hash of the last.
    pub hash: Hash,
}

impl Head {
    /// The chain's name: the tenant's id, or `platform`.
    pub fn chain(&self) -> String {
        chain_name(self.tenant_id)
    }
}

fn chain_name(tenant_id: Option<Uuid>) -> String {
    tenant_id.map_or_else(|| "platform".to_owned(), |id| id.to_string())
}

/// What is hashed of an event, as bytes: PostgreSQL's own wire form of each value, so that every value of every type has one.
const CONTENT: &str = "uuid_send(e.id) as f_id, uuid_send(e.tenant_id) as f_tenant_id, timestamptz_send(e.at) as f_at, xid8send(e.xid) as f_xid, \
     convert_to(e.login::text, 'UTF8') as f_login, convert_to(e.actor_kind, 'UTF8') as f_actor_kind, convert_to(e.actor_id, 'UTF8') as f_actor_id, \
     convert_to(e.action, 'UTF8') as f_action, convert_to(e.target, 'UTF8') as f_target, convert_to(e.outcome, 'UTF8') as f_outcome, \
     convert_to(e.detail::text, 'UTF8') as f_detail, uuid_send(e.request_id) as f_request_id, e.salt as f_salt";

/// The columns of [`CONTENT`], in the order of the encoding; the second says whether only a salted digest is hashed.
const FIELDS: [(&str, bool); 12] = [
    ("f_id", false),
    ("f_tenant_id", false),
    ("f_at", false),
    ("f_xid", false),
    ("f_login", false),
    ("f_actor_kind", false),
    ("f_actor_id", true),
    ("f_action", false),
    ("f_target", false),
    ("f_outcome", false),
    ("f_detail", true),
    ("f_request_id", false),
];

/// The hash of the event in `row` at place `n`, after `prev`.
fn link(prev: Hash, n: i64, row: &PgRow) -> std::result::Result<Hash, sqlx::Error> {
    let salt: Option<&[u8]> = row.try_get("f_salt")?;
    let mut hash = Sha256::new();
    hash.update(prev.0);
    hash.update(n.to_be_bytes());
    for (field, salted) in FIELDS {
        let value: Option<&[u8]> = row.try_get(field)?;
        if salted {
            let mut digest = Sha256::new();
            put(&mut digest, salt);
            put(&mut digest, value);
            put(&mut hash, Some(&digest.finalize()));
        } else {
            put(&mut hash, value);
        }
    }
    Ok(Hash(hash.finalize().into()))
}

/// A null is the byte 0; a value is the byte 1, its length as eight bytes, and itself: so no two lists of values are encoded alike.
fn put(hash: &mut Sha256, value: Option<&[u8]>) {
    match value {
        None => hash.update([0]),
        Some(value) => {
            hash.update([1]);
            hash.update((value.len() as u64).to_be_bytes());
            hash.update(value);
        }
    }
}

/// The ends of all chains, the platform's first.
async fn heads<S: Send + fmt::Debug>(tx: &mut crate::Tx<S>) -> Result<Vec<Head>> {
    let rows = sqlx::query(
        "select s.tenant_id, s.n, s.hash
           from (select tenant_id, max(n) as n from tenancy.audit_seals group by tenant_id) last
           join tenancy.audit_seals s on s.n = last.n and s.tenant_id is not distinct from last.tenant_id
          order by s.tenant_id nulls first",
    )
    .fetch_all(tx)
    .await
    .map_err(from_sqlx)?;
    rows.iter().map(head).collect()
}

fn head(row: &PgRow) -> Result<Head> {
    let read = || Ok(Head { tenant_id: row.try_get("tenant_id")?, n: row.try_get("n")?, hash: Hash::of(row, "hash")? });
    read().map_err(from_sqlx)
}

impl crate::SystemTx {
    /// [`verify`], in this transaction.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn verify_audit(&mut self, tenant: Option<TenantId>, anchors: &[Head]) -> Result<Verified> {
        verify(self, tenant, anchors).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_lists_of_values_are_encoded_alike() {
        let of = |values: &[Option<&[u8]>]| {
            let mut hash = Sha256::new();
            values.iter().for_each(|value| put(&mut hash, *value));
            hash.finalize()
        };
        assert_ne!(of(&[Some(b"ab"), Some(b"")]), of(&[Some(b"a"), Some(b"b")]));
        assert_ne!(of(&[None]), of(&[Some(b"")]));
        assert_ne!(of(&[None, Some(b"")]), of(&[Some(b""), None]));
    }

    #[test]
    fn a_hash_reads_what_it_writes() {
        let hash = Hash(Sha256::digest(b"x").into());
        assert_eq!(hash.to_string().parse::<Hash>().expect("hex"), hash);
        for bad in ["", "0", &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<Hash>().is_err(), "{bad}");
        }
    }
}
