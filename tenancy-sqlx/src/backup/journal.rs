//! Which tenants keep a journal of their rows' changes, and for how long.
//!
//! The triggers of `tenancy.journal_table` write it, for tenants that keep one; [`as_of`](super::as_of) reads it. It begins when all who
//! may have written without it are done: the next backup waits for them, and is the first that a moment can be reached from.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::types::Json;
use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result, TenantId};
use uuid::Uuid;

use super::Backups;
use super::take::may_be_backed_up;
use crate::dangerous::begin_admin;
use crate::error::from_sqlx;
use crate::operations::Progress;
use crate::settle::open_transactions;
use crate::tx::SystemTx;

/// What tenants' gauges measure is journaled with their rows.
pub(super) const GAUGES: &str = "tenancy.quota_gauges";
/// How long a backup waits for transactions that may have written without the journal.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many transactions are removed from the journal by one statement.
const PRUNED_AT_ONCE: i64 = 10_000;

/// Where in a tenant's journal a backup is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Point {
    pub(super) era: Uuid,
    /// What the backup sees, as `pg_snapshot` writes it.
    pub(super) snapshot: String,
    /// Which tables were journaled.
    pub(super) tables: Marks,
}

/// The tables that are journaled, by their quoted names.
pub(super) type Marks = BTreeMap<String, Mark>;

/// How a table is journaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Of its columns.
    pub(super) form: Uuid,
    /// Its triggers: one that was away in between is another one.
    pub(super) marks: Vec<String>,
}

impl Mark {
    /// Whether all that changed since the other one is journaled.
    pub(super) fn covers(&self, earlier: &Self) -> bool {
        earlier.marks.iter().all(|mark| self.marks.contains(mark))
    }
}

/// Where in the journal the snapshot is that the transaction reads; `None` where the tenant keeps none, or it has not begun.
pub(super) async fn point(tx: &mut SystemTx, tenant: Uuid) -> Result<Option<Point>> {
    let query = sqlx::query_scalar("select tenancy.journal_point($1)").bind(tenant);
    let point: Option<Json<Point>> = query.fetch_one(tx).await.map_err(from_sqlx)?;
    Ok(point.map(|Json(point)| point))
}

pub(super) async fn marks(tx: &mut SystemTx) -> Result<Marks> {
    let Json(marks) = sqlx::query_scalar("select tenancy.journal_marks()").fetch_one(tx).await.map_err(from_sqlx)?;
    Ok(marks)
}

impl SystemTx {
    /// Has a journal kept of the tenant's row changes, for so many days, so that it can be restored [as of](super::NewRestore::as_of()) any
    /// moment of them. It begins with the next backup. Said again, it only changes the days.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) at `window_days` for other than 1 to 366;
    /// [`Conflict`](ErrorKind::Conflict), naming them, while there are tables of tenants that are not journaled.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn keep_journal(&mut self, tenant: TenantId, days: u16) -> Result<()> {
        if !(1..=366).contains(&days) {
            return Err(Error::invalid("window_days", "must be from 1 to 366"));
        }
        may_be_backed_up(self, tenant).await?;
        let marks = marks(self).await?;
        let taken: Vec<String> = sqlx::query_scalar(
            "select format('%I.%I', n.nspname, c.relname) from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
              where p.polname = 'tenancy_fence' and c.relkind in ('r', 'p') and not c.relispartition and n.nspname !~ '^(pg_|tenancy$|tenancy_)'
                and not exists (select from tenancy.backup_rules r where r.rel = c.oid)
              union select 'tenancy.quota_gauges' order by 1",
        )
        .fetch_all(&mut *self)
        .await
        .map_err(from_sqlx)?;
        let without: Vec<&str> = taken.iter().map(String::as_str).filter(|table| !marks.contains_key(*table)).collect();
        if !without.is_empty() {
            let why = format!("no journal is kept of {}: call tenancy.journal_tables() in a migration first", without.join(", "));
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let query = sqlx::query(
            "insert into tenancy.journaled (tenant_id, keep) values ($1, make_interval(days => $2)) on conflict (tenant_id) do update set keep = excluded.keep",
        );
        query.bind(tenant.as_uuid()).bind(i32::from(days)).execute(&mut *self).await.map_err(from_sqlx)?;
        self.tell_of_journal(tenant, "backup.journal", json!({ "window_days": days })).await
    }

    /// Keeps no journal of the tenant any more. What there was of one is removed later, and is of no use from now on.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), also where it kept none.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn end_journal(&mut self, tenant: TenantId) -> Result<()> {
        self.lock_tenant(tenant).await?;
        let query = sqlx::query("delete from tenancy.journaled where tenant_id = $1").bind(tenant.as_uuid());
        if query.execute(&mut *self).await.map_err(from_sqlx)?.rows_affected() == 0 {
            return Err(Error::not_found());
        }
        self.tell_of_journal(tenant, "backup.journal_end", serde_json::Value::Null).await
    }

    async fn tell_of_journal(&mut self, tenant: TenantId, action: &str, detail: serde_json::Value) -> Result<()> {
        let event = AuditEvent::new(self.actor().clone(), action, tenant.to_string()).with_tenant(tenant).with_detail(detail);
        self.audit(&event).await
    }

    /// From when on the tenant's journal is whole.
    pub(super) async fn journal_since(&mut self, tenant: TenantId) -> Result<Option<DateTime<Utc>>> {
        let query = sqlx::query_scalar("select since from tenancy.journaled where tenant_id = $1").bind(tenant.as_uuid());
        Ok(query.fetch_optional(self).await.map_err(from_sqlx)?.flatten())
    }
}

impl Backups {
    /// Removes from all journals what is older than their windows; gives how many transactions.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: a later call goes on.
    pub async fn prune_journals(&self) -> Result<u64> {
        let mut total = 0;
        loop {
            let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
            let query = sqlx::query_scalar("select tenancy.journal_prune($1)").bind(PRUNED_AT_ONCE);
            let gone: i64 = query.fetch_one(&mut tx).await.map_err(from_sqlx)?;
            tx.commit().await?;
            total += gone.unsigned_abs();
            if gone < PRUNED_AT_ONCE {
                return Ok(total);
            }
        }
    }

    /// Lets the tenant's journal begin, once nobody is at work who began without it. Where that lasts, the backup that is taken now is not
    /// one that a moment can be reached from.
    pub(super) async fn begin_journal(&self, tenant: TenantId, progress: &Progress) -> Result<()> {
        let waiting = "select exists (select from tenancy.journaled where tenant_id = $1 and since is null)";
        let query = sqlx::query_scalar(waiting).bind(tenant.as_uuid());
        if !query.fetch_one(&mut progress.read().await?).await.map_err(from_sqlx)? {
            return Ok(());
        }
        // Who begins from now on sees the tenant's row.
        let mut open = open_transactions(&mut progress.read().await?).await?;
        let began = Instant::now();
        while !open.is_empty() {
            if began.elapsed() > PATIENCE {
                tracing::warn!(%tenant, open = open.len(), "the journal has not begun: transactions are open that may write without it");
                return Ok(());
            }
            progress.at("waiting for older transactions", 0, None, "transactions").await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = open_transactions(&mut progress.read().await?).await?;
            open.retain(|id| now.contains(id));
        }
        let mut tx = progress.begin().await?;
        let begin = sqlx::query("update tenancy.journaled set since = clock_timestamp() where tenant_id = $1 and since is null");
        begin.bind(tenant.as_uuid()).execute(&mut tx).await.map_err(from_sqlx)?;
        tx.commit().await
    }
}
