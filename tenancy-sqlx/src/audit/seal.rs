//! The one sealer: it follows the log and gives each event its place in a chain.

use std::collections::BTreeMap;

use sqlx::Row as _;
use tenancy_core::{Actor, Result};
use uuid::Uuid;

use super::{CONTENT, Hash, Head, head, heads, link};
use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// How many events one transaction seals.
const BATCH: i64 = 500;

/// Seals what was committed; any number of nodes may have one, and they take turns.
#[derive(Debug, Clone)]
pub struct Sealer {
    db: TenantDb,
}

/// What one [`Sealer::seal`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sealed {
    /// How many events it sealed.
    pub events: u64,
    /// The new ends of the chains that it made longer.
    pub heads: Vec<Head>,
}

impl Sealer {
    /// A sealer for `db`, which must have administrative credentials.
    pub fn new(db: &TenantDb) -> Self {
        Self { db: db.clone() }
    }

    /// Seals all events of transactions that are older than any that still runs. What is newer waits for the next time.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) without administrative credentials,
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable). Events that were sealed until then stay so.
    ///
    /// # Cancel safety
    /// Safe at every point: a transaction that did not commit sealed nothing, and the next one goes on from there.
    pub async fn seal(&self) -> Result<Sealed> {
        let mut all = Sealed::default();
        let mut moved = BTreeMap::new();
        loop {
            let batch = self.batch().await?;
            all.events += batch.events;
            moved.extend(batch.heads.into_iter().map(|head| (head.tenant_id, head)));
            if batch.events < BATCH.cast_unsigned() {
                all.heads = moved.into_values().collect();
                return Ok(all);
            }
        }
    }

    /// The ends of all chains, the platform's first.
    ///
    /// # Errors
    /// As [`seal`](Sealer::seal).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn heads(&self) -> Result<Vec<Head>> {
        heads(&mut begin_admin(self.db.inner(), Actor::System).await?).await
    }

    async fn batch(&self) -> Result<Sealed> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        // The lock comes first and in a statement of its own: the next one's snapshot then has all that the last sealer did. Nothing
        // below the snapshot's xmin can still appear, so the place that was reached never passes a row over.
        sqlx::query("select from tenancy.audit_sealed for update").execute(&mut tx).await.map_err(from_sqlx)?;
        let query = format!(
            "select e.id, e.tenant_id, extract(epoch from clock_timestamp() - e.at)::float8 as waited, {CONTENT} from tenancy.audit_events e, tenancy.audit_sealed upto
              where (e.xid, e.at, e.id) > (upto.xid, upto.at, upto.id) and e.xid < pg_snapshot_xmin(pg_current_snapshot())
              order by e.xid, e.at, e.id limit {BATCH}"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(&mut tx).await.map_err(from_sqlx)?;
        let Some(last) = rows.last() else { return Ok(Sealed::default()) };

        let mut ends: BTreeMap<Option<Uuid>, Head> = BTreeMap::new();
        let (mut tenants, mut places, mut events, mut prevs, mut hashes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let tenant_id: Option<Uuid> = row.try_get("tenant_id").map_err(from_sqlx)?;
            let end = match ends.get(&tenant_id) {
                Some(end) => *end,
                None => end_of(&mut tx, tenant_id).await?,
            };
            let n = end.n + 1;
            let hash = link(end.hash, n, row).map_err(from_sqlx)?;
            tenants.push(tenant_id);
            places.push(n);
            events.push(row.try_get::<Uuid, _>("id").map_err(from_sqlx)?);
            prevs.push(end.hash.as_bytes().to_vec());
            hashes.push(hash.as_bytes().to_vec());
            ends.insert(tenant_id, Head { tenant_id, n, hash });
        }
        sqlx::query(
            "insert into tenancy.audit_seals (tenant_id, n, event_id, prev, hash)
             select * from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bytea[], $5::bytea[])",
        )
        .bind(tenants)
        .bind(places)
        .bind(events)
        .bind(prevs)
        .bind(hashes)
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
        sqlx::query(
            "update tenancy.audit_sealed set (xid, at, id) = (select e.xid, e.at, e.id from tenancy.audit_events e where e.id = $1)",
        )
        .bind(last.try_get::<Uuid, _>("id").map_err(from_sqlx)?)
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
        let waited = rows.iter().map(|row| row.try_get("waited")).collect::<sqlx::Result<Vec<f64>>>().map_err(from_sqlx)?;
        tx.commit().await?;
        measure(&waited);
        Ok(Sealed { events: rows.len() as u64, heads: ends.into_values().collect() })
    }
}

/// With the feature `metrics`: `audit.sealed`, how many events were sealed, and `audit.sealed_after`, how many seconds after they happened.
fn measure(waited: &[f64]) {
    #[cfg(feature = "metrics")]
    {
        metrics::counter!("audit.sealed").increment(waited.len() as u64);
        let after = metrics::histogram!("audit.sealed_after");
        waited.iter().for_each(|seconds| after.record(*seconds));
    }
    #[cfg(not(feature = "metrics"))]
    let _ = waited;
}

/// Where a chain ends.
async fn end_of(tx: &mut SystemTx, tenant_id: Option<Uuid>) -> Result<Head> {
    // Two branches: an index serves `=` and `is null`, and not `is not distinct from`.
    let row = sqlx::query(
        "(select tenant_id, n, hash from tenancy.audit_seals where tenant_id = $1 order by n desc limit 1) union all
         (select tenant_id, n, hash from tenancy.audit_seals where $1 is null and tenant_id is null order by n desc limit 1)",
    )
    .bind(tenant_id)
    .fetch_optional(tx)
    .await
    .map_err(from_sqlx)?;
    row.as_ref().map_or(Ok(Head { tenant_id, n: 0, hash: Hash::START }), head)
}
