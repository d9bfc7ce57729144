//! Walks the chains, and names the first place where one breaks.

use std::fmt;

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};
use tenancy_core::{Result, TenantId};
use uuid::Uuid;

use super::{CONTENT, Hash, Head, chain_name, link};
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// How many places are in memory at a time.
const PAGE: i64 = 500;

/// What was done to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FindingKind {
    /// An event or its seal is not what was sealed.
    Edited,
    /// An event or its seal is gone.
    Deleted,
    /// An event is there that was not when its time was sealed.
    Inserted,
    /// What was sealed stands in another place.
    Reordered,
    /// The chain ends before the place that an anchor names.
    Truncated,
    /// The chain is whole, and not the one that was anchored.
    Rewritten,
}

/// The first broken place of one chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was done.
    pub kind: FindingKind,
    /// Whose chain; none is the platform's.
    pub tenant_id: Option<Uuid>,
    /// The place, if it has one.
    pub n: Option<i64>,
    /// The event there, if one is named.
    pub event_id: Option<Uuid>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FindingKind::Edited => "edited",
            FindingKind::Deleted => "deleted",
            FindingKind::Inserted => "inserted behind the seals",
            FindingKind::Reordered => "reordered",
            FindingKind::Truncated => "truncated",
            FindingKind::Rewritten => "rewritten",
        };
        write!(f, "{}: {kind}", chain_name(self.tenant_id))?;
        if let Some(n) = self.n {
            write!(f, " at {n}")?;
        }
        self.event_id.map_or(Ok(()), |id| write!(f, " (event {id})"))
    }
}

/// What [`verify`] saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The ends of the chains that hold.
    pub heads: Vec<Head>,
    /// How many events hold.
    pub events: u64,
    /// How many wait for the sealer: of them nothing can be said.
    pub unsealed: i64,
    /// At most one per chain, and one per event that was inserted.
    pub findings: Vec<Finding>,
}

/// Verifies the chain of `tenant`, or all of them with the platform's, against `anchors`: heads that were kept elsewhere.
///
/// Without anchors a log whose end was cut off, or that was sealed anew from its beginning, can't be told from a whole one.
///
/// # Errors
/// As any statement.
///
/// # Cancel safety
/// A dropped future ends the transaction: it can't be committed.
pub async fn verify(tx: &mut SystemTx, tenant: Option<TenantId>, anchors: &[Head]) -> Result<Verified> {
    let mut seen = Verified::default();
    let only = tenant.map(TenantId::as_uuid);
    let mut chains: Vec<Option<Uuid>> = match only {
        Some(_) => vec![only],
        None => sqlx::query_scalar("select tenant_id from tenancy.audit_seals group by 1").fetch_all(&mut *tx).await.map_err(from_sqlx)?,
    };
    // A chain of which nothing is left is still anchored.
    chains.extend(anchors.iter().map(|anchor| anchor.tenant_id).filter(|chain| only.is_none() || *chain == only));
    chains.sort_unstable();
    chains.dedup();
    for chain in chains {
        let mut anchors: Vec<Head> = anchors.iter().filter(|anchor| anchor.tenant_id == chain).copied().collect();
        anchors.sort_unstable_by_key(|anchor| anchor.n);
        match walk(tx, chain, &anchors, &mut seen.events).await? {
            Ok(head) => seen.heads.push(head),
            Err(finding) => seen.findings.push(finding),
        }
    }
    let behind = sqlx::query(
        "select e.tenant_id, e.id from tenancy.audit_events e, tenancy.audit_sealed upto
          where (e.xid, e.at, e.id) <= (upto.xid, upto.at, upto.id) and ($1::uuid is null or e.tenant_id = $1)
            and not exists (select from tenancy.audit_seals s where s.event_id = e.id)
          order by e.xid, e.at, e.id limit 100",
    );
    for row in behind.bind(only).fetch_all(&mut *tx).await.map_err(from_sqlx)? {
        let finding = || {
            Ok(Finding { kind: FindingKind::Inserted, tenant_id: row.try_get("tenant_id")?, n: None, event_id: Some(row.try_get("id")?) })
        };
        seen.findings.push(finding().map_err(from_sqlx)?);
    }
    let waiting = sqlx::query_scalar(
        "select count(*) from tenancy.audit_events e, tenancy.audit_sealed upto
          where (e.xid, e.at, e.id) > (upto.xid, upto.at, upto.id) and ($1::uuid is null or e.tenant_id = $1)",
    );
    seen.unsealed = waiting.bind(only).fetch_one(tx).await.map_err(from_sqlx)?;
    Ok(seen)
}

/// The places of a chain after `$2`, with what is left of their events.
async fn page(tx: &mut SystemTx, chain: Option<Uuid>, after: i64) -> Result<Vec<PgRow>> {
    let whose = if chain.is_some() { "s.tenant_id = $1" } else { "$1::uuid is null and s.tenant_id is null" };
    let query = format!(
        "select s.n, s.event_id, s.prev, s.hash, e.id as found, {CONTENT}
           from tenancy.audit_seals s left join tenancy.audit_events e on e.id = s.event_id
          where {whose} and s.n > $2 order by s.n limit {PAGE}"
    );
    sqlx::query(AssertSqlSafe(query)).bind(chain).bind(after).fetch_all(tx).await.map_err(from_sqlx)
}

/// One place of a chain.
struct Place {
    n: i64,
    event_id: Uuid,
    prev: Hash,
    hash: Hash,
    is_there: bool,
}

fn place(row: &PgRow) -> Result<Place> {
    let read = || {
        Ok(Place {
            n: row.try_get("n")?,
            event_id: row.try_get("event_id")?,
            prev: Hash::of(row, "prev")?,
            hash: Hash::of(row, "hash")?,
            is_there: row.try_get::<Option<Uuid>, _>("found")?.is_some(),
        })
    };
    read().map_err(from_sqlx)
}

async fn walk(tx: &mut SystemTx, chain: Option<Uuid>, anchors: &[Head], events: &mut u64) -> Result<std::result::Result<Head, Finding>> {
    let mut end = Head { tenant_id: chain, n: 0, hash: Hash::START };
    let mut anchors = anchors.iter().peekable();
    let broken = |kind, n, event_id| Ok(Err(Finding { kind, tenant_id: chain, n: Some(n), event_id }));
    loop {
        let rows = page(tx, chain, end.n).await?;
        for row in &rows {
            let here = place(row)?;
            let n = end.n + 1;
            if here.n != n {
                return broken(FindingKind::Deleted, n, None);
            }
            if !here.is_there {
                return broken(FindingKind::Deleted, n, Some(here.event_id));
            }
            let hash = link(end.hash, n, row).map_err(from_sqlx)?;
            if hash != here.hash || end.hash != here.prev {
                let kind = match (hash == here.hash, end.hash == here.prev) {
                    (true, _) => FindingKind::Edited,
                    (false, true) if another_fits(tx, chain, &end, here.hash).await? => FindingKind::Reordered,
                    (false, true) => FindingKind::Edited,
                    (false, false) if follows_elsewhere(tx, end.hash).await? => FindingKind::Reordered,
                    (false, false) => FindingKind::Deleted,
                };
                return broken(kind, n, Some(here.event_id));
            }
            end = Head { tenant_id: chain, n, hash };
            *events += 1;
            while let Some(anchor) = anchors.next_if(|anchor| anchor.n <= n) {
                if anchor.n == n && anchor.hash != hash {
                    return broken(FindingKind::Rewritten, n, Some(here.event_id));
                }
            }
        }
        if rows.is_empty() {
            return match anchors.next() {
                Some(anchor) if anchor.n > end.n => broken(FindingKind::Truncated, end.n + 1, None),
                _ => Ok(Ok(end)),
            };
        }
    }
}

/// Whether some other event of the chain is the one that was sealed after `end`.
async fn another_fits(tx: &mut SystemTx, chain: Option<Uuid>, end: &Head, hash: Hash) -> Result<bool> {
    let mut after = 0;
    loop {
        let rows = page(tx, chain, after).await?;
        for row in &rows {
            after = place(row)?.n;
            if link(end.hash, end.n + 1, row).map_err(from_sqlx)? == hash {
                return Ok(true);
            }
        }
        if rows.is_empty() {
            return Ok(false);
        }
    }
}

/// Whether the seal that came after `hash` is still somewhere.
async fn follows_elsewhere(tx: &mut SystemTx, hash: Hash) -> Result<bool> {
    let query = sqlx::query_scalar("select exists (select from tenancy.audit_seals where prev = $1)").bind(hash.as_bytes().as_slice());
    query.fetch_one(tx).await.map_err(from_sqlx)
}
