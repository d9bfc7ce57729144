//! Reading the log, a page at a time.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tenancy_core::{Outcome, Result, TenantId};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::tx::{SystemTx, TenantTx, Tx};

/// Which events of a tenant are wanted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuditQuery {
    /// Only this action.
    pub action: Option<String>,
    /// Only what was done to this.
    pub target: Option<String>,
    /// Only what ended so.
    pub outcome: Option<Outcome>,
    /// Only from then on.
    pub since: Option<DateTime<Utc>>,
    /// Only before then.
    pub until: Option<DateTime<Utc>>,
    /// Only what comes after this event: the last of the page before. An event that is not the tenant's has nothing after it.
    pub after: Option<Uuid>,
    /// At most this many.
    pub limit: usize,
}

impl Default for AuditQuery {
    fn default() -> Self {
        Self { action: None, target: None, outcome: None, since: None, until: None, after: None, limit: 50 }
    }
}

/// An event as it was recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Recorded {
    /// The event.
    pub id: Uuid,
    /// When it was written.
    pub at: DateTime<Utc>,
    /// What kind of actor did it.
    pub actor_kind: String,
    /// Which one, if the kind has several.
    pub actor_id: Option<String>,
    /// What was done.
    pub action: String,
    /// What it was done to.
    pub target: String,
    /// How it ended.
    pub outcome: String,
    /// What else was kept.
    pub detail: Option<Value>,
    /// The request it belongs to.
    pub request_id: Option<Uuid>,
}

impl TenantTx {
    /// This tenant's events, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn audit_log(&mut self, query: &AuditQuery) -> Result<Vec<Recorded>> {
        let tenant = self.tenant_id();
        read(self, tenant, query).await
    }
}

impl SystemTx {
    /// The events of `tenant`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn audit_log(&mut self, tenant: TenantId, query: &AuditQuery) -> Result<Vec<Recorded>> {
        read(self, tenant, query).await
    }
}

async fn read<S: Send + fmt::Debug>(tx: &mut Tx<S>, tenant: TenantId, query: &AuditQuery) -> Result<Vec<Recorded>> {
    let rows = sqlx::query(
        "select e.id, e.at, e.actor_kind, e.actor_id, e.action, e.target, e.outcome, e.detail, e.request_id from tenancy.audit_events e
          where e.tenant_id = $1 and ($2::text is null or e.action = $2) and ($3::text is null or e.outcome = $3)
            and ($4::timestamptz is null or e.at >= $4) and ($5::timestamptz is null or e.at < $5)
            and ($6::uuid is null or e.at <= (select l.at from tenancy.audit_events l where l.id = $6 and l.tenant_id = $1)
                 and (e.id > $6 or e.at < (select l.at from tenancy.audit_events l where l.id = $6 and l.tenant_id = $1)))
            and ($8::text is null or e.target = $8)
          order by e.at desc, e.id limit $7",
    )
    .bind(tenant.as_uuid())
    .bind(&query.action)
    .bind(query.outcome.map(Outcome::as_str))
    .bind(query.since)
    .bind(query.until)
    .bind(query.after)
    .bind(i64::try_from(query.limit).unwrap_or(i64::MAX))
    .bind(&query.target)
    .fetch_all(tx)
    .await
    .map_err(from_sqlx)?;
    rows.iter().map(recorded).collect::<std::result::Result<_, _>>().map_err(from_sqlx)
}

fn recorded(row: &PgRow) -> std::result::Result<Recorded, sqlx::Error> {
    Ok(Recorded {
        id: row.try_get("id")?,
        at: row.try_get("at")?,
        actor_kind: row.try_get("actor_kind")?,
        actor_id: row.try_get("actor_id")?,
        action: row.try_get("action")?,
        target: row.try_get("target")?,
        outcome: row.try_get("outcome")?,
        detail: row.try_get("detail")?,
        request_id: row.try_get("request_id")?,
    })
}
