//! The outbox as operators see it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::postgres::PgRow;
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, TenantId};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// Whether a message is still tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MessageState {
    /// To be delivered, or under way.
    Waiting,
    /// Given up.
    Dead,
}

/// A message that was not delivered, without what it says.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Undelivered {
    /// Its number.
    pub id: i64,
    /// Whose it is; `None` is the platform's own.
    pub tenant_id: Option<TenantId>,
    /// Which kind.
    pub topic: String,
    /// When it was posted.
    pub created_at: DateTime<Utc>,
    /// When it is tried next.
    pub due_at: DateTime<Utc>,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last try failed.
    pub last_error: Option<String>,
    /// When it was given up.
    pub dead_at: Option<DateTime<Utc>>,
}

impl SystemTx {
    /// Up to `limit` messages in `state` with numbers below `before`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn undelivered(&mut self, state: MessageState, before: Option<i64>, limit: u32) -> Result<Vec<Undelivered>> {
        let rows = sqlx::query(
            "select id, tenant_id, topic, created_at, due_at, attempts, last_error, dead_at from tenancy.outbox
              where sent_at is null and (dead_at is not null) = $1 and id < $2 order by id desc limit $3",
        )
        .bind(state == MessageState::Dead)
        .bind(before.unwrap_or(i64::MAX))
        .bind(i64::from(limit))
        .fetch_all(self)
        .await
        .map_err(from_sqlx)?;
        rows.iter().map(undelivered).collect::<Result<_, _>>().map_err(from_sqlx)
    }

    /// Has a message that was given up tried again from the start, with its audit event.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) if it was not given up, or had a secret, which is gone.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn redeliver(&mut self, id: i64) -> Result<Undelivered> {
        let row = sqlx::query("select tenant_id, dead_at is not null, secret_gone from tenancy.outbox where id = $1 for update")
            .bind(id)
            .fetch_optional(&mut *self)
            .await
            .map_err(from_sqlx)?
            .ok_or_else(Error::not_found)?;
        let (tenant, dead, secret_gone): (Option<Uuid>, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if !dead {
            return Err(Error::new(ErrorKind::Conflict, "the message was not given up"));
        }
        if secret_gone {
            return Err(Error::new(ErrorKind::Conflict, "the message had a secret, which is gone: do again what posted it"));
        }
        let row = sqlx::query(
            "update tenancy.outbox set dead_at = null, attempts = 0, due_at = clock_timestamp() where id = $1
             returning id, tenant_id, topic, created_at, due_at, attempts, last_error, dead_at",
        )
        .bind(id)
        .fetch_one(&mut *self)
        .await
        .map_err(from_sqlx)?;
        let mut event = AuditEvent::new(self.actor().clone(), "outbox.redeliver", id.to_string());
        if let Some(tenant) = tenant.map(TenantId::from_uuid).transpose()? {
            event = event.with_tenant(tenant);
        }
        self.audit(&event).await?;
        undelivered(&row).map_err(from_sqlx)
    }
}

fn undelivered(row: &PgRow) -> Result<Undelivered, sqlx::Error> {
    let tenant = row.try_get::<Option<Uuid>, _>("tenant_id")?.map(TenantId::from_uuid).transpose();
    Ok(Undelivered {
        id: row.try_get("id")?,
        tenant_id: tenant.map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
        topic: row.try_get("topic")?,
        created_at: row.try_get("created_at")?,
        due_at: row.try_get("due_at")?,
        attempts: row.try_get::<i32, _>("attempts")?.unsigned_abs(),
        last_error: row.try_get("last_error")?,
        dead_at: row.try_get("dead_at")?,
    })
}
