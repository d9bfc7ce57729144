//! Which backups there are.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, TenantId};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// One backup of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[non_exhaustive]
pub struct Backup {
    /// Which one: the operation that took it.
    pub id: Uuid,
    /// Of which tenant.
    pub tenant_id: Uuid,
    /// When the snapshot was taken: it has what was committed before.
    pub taken_at: DateTime<Utc>,
    /// `asked`, `scheduled` or `before restore`.
    pub reason: String,
    /// The tenant's key that it is sealed with.
    pub key_id: Uuid,
    /// How many rows it has.
    pub rows: i64,
    /// How large the archive is, in bytes.
    pub bytes: i64,
    /// How many of the tenant's objects it has.
    pub objects: i64,
    /// How large those are, in bytes. What earlier backups have is not stored again.
    pub object_bytes: i64,
    /// Tells the archive from any other, as `docs/backup-format.md` says: BLAKE3, in hex.
    pub hash: String,
    /// The version of the kit that took it.
    pub kit: String,
    /// Who asked for it.
    pub created_by: String,
    /// Why it must be kept.
    pub hold: Option<String>,
    #[serde(skip)]
    #[sqlx(rename = "attempt")]
    pub(super) attempt: i64,
}

const COLUMNS: &str = "id, tenant_id, taken_at, reason, key_id, rows, bytes, objects, object_bytes, hash, kit, created_by, hold, attempt";

impl SystemTx {
    /// The tenant's backups, the newest first: at most `limit` that were taken before `before`.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn backups(&mut self, tenant: TenantId, before: Option<DateTime<Utc>>, limit: i64) -> Result<Vec<Backup>> {
        let sql = format!(
            "select {COLUMNS} from tenancy.backups where tenant_id = $1 and deleted_at is null and ($2::timestamptz is null or taken_at < $2)
              order by taken_at desc limit $3"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.as_uuid()).bind(before).bind(limit);
        query.fetch_all(self).await.map_err(from_sqlx)
    }

    /// One backup of this tenant.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound): also for one of another tenant, and one that was deleted.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn backup(&mut self, tenant: TenantId, id: Uuid) -> Result<Backup> {
        let sql = format!("select {COLUMNS} from tenancy.backups where tenant_id = $1 and id = $2 and deleted_at is null");
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.as_uuid()).bind(id).fetch_one(self).await.map_err(from_sqlx)
    }

    /// Keeps a backup from being deleted, for a reason; or lets it go again.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for a reason of other than 3 to 500 characters.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn hold_backup(&mut self, tenant: TenantId, id: Uuid, reason: Option<&str>) -> Result<Backup> {
        if reason.is_some_and(|reason| !(3..=500).contains(&reason.trim().chars().count()) || reason.chars().any(char::is_control)) {
            return Err(Error::invalid("hold", "must have 3 to 500 characters, and no control characters"));
        }
        let sql =
            format!("update tenancy.backups set hold = $3 where tenant_id = $1 and id = $2 and deleted_at is null returning {COLUMNS}");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.as_uuid()).bind(id).bind(reason.map(str::trim));
        let held: Backup = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        self.tell_of_backup(tenant, id, "backup.hold", serde_json::json!({ "hold": held.hold })).await?;
        Ok(held)
    }

    /// Lets a backup go: from the commit on it can't be restored, and a [sweep](super::Backups::queue_sweep) removes it.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) for one that is held.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn delete_backup(&mut self, tenant: TenantId, id: Uuid) -> Result<()> {
        if let Some(hold) = self.backup(tenant, id).await?.hold {
            return Err(Error::new(ErrorKind::Conflict, format!("the backup is held ({hold}): let it go first")));
        }
        let query = sqlx::query(
            "update tenancy.backups set deleted_at = clock_timestamp() where tenant_id = $1 and id = $2 and hold is null and deleted_at is null",
        );
        if query.bind(tenant.as_uuid()).bind(id).execute(&mut *self).await.map_err(from_sqlx)?.rows_affected() == 0 {
            return Err(Error::new(ErrorKind::Conflict, "the backup is held, or deleted, since this moment")); // by somebody else
        }
        self.tell_of_backup(tenant, id, "backup.delete", serde_json::Value::Null).await
    }

    pub(super) async fn insert_backup(&mut self, backup: &Backup) -> Result<()> {
        let sql = format!("insert into tenancy.backups ({COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(backup.id)
            .bind(backup.tenant_id)
            .bind(backup.taken_at)
            .bind(&backup.reason)
            .bind(backup.key_id)
            .bind(backup.rows)
            .bind(backup.bytes)
            .bind(backup.objects)
            .bind(backup.object_bytes)
            .bind(&backup.hash)
            .bind(&backup.kit)
            .bind(&backup.created_by)
            .bind(&backup.hold)
            .bind(backup.attempt)
            .execute(&mut *self)
            .await
            .map_err(from_sqlx)?;
        let detail =
            serde_json::json!({ "taken_at": backup.taken_at, "rows": backup.rows, "objects": backup.objects, "bytes": backup.bytes });
        self.tell_of_backup(TenantId::from_uuid(backup.tenant_id)?, backup.id, "backup.take", detail).await
    }

    pub(super) async fn tell_of_backup(&mut self, tenant: TenantId, id: Uuid, action: &str, detail: serde_json::Value) -> Result<()> {
        let event = AuditEvent::new(self.actor().clone(), action, id.to_string()).with_tenant(tenant).with_detail(detail);
        self.audit(&event).await
    }
}
