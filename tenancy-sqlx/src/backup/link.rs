//! Links to archives: whoever has one may download it, for a short time.

use std::time::Duration;

use chrono::{DateTime, Utc};
use object_store::{GetResult, ObjectStoreExt as _};
use serde::Serialize;
use tenancy_core::objects::into_error;
use tenancy_core::{Actor, AuditEvent, Error, Result, TenantId};
use uuid::Uuid;

use super::{Backup, Backups};
use crate::dangerous::begin_admin;
use crate::error::from_sqlx;
use crate::token::Token;
use crate::tx::SystemTx;

/// A link to an archive.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct BackupLink {
    /// What opens it: it can be had only here.
    #[serde(skip)]
    pub token: Token,
    /// Until when.
    pub expires_at: DateTime<Utc>,
}

/// What links' tokens begin with.
const PREFIX: &str = "tnb_";

impl Backups {
    /// For how long a link to an archive opens it.
    pub const LINK_TTL: Duration = Duration::from_secs(900);

    /// Makes a link to the archive of a backup, good for [a quarter of an hour](Backups::LINK_TTL). An archive is sealed: it can be kept
    /// elsewhere, and is of use to nobody without the tenant's key.
    ///
    /// # Errors
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound) without such a backup of the tenant.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn link(&self, tx: &mut SystemTx, tenant: TenantId, backup: Uuid) -> Result<BackupLink> {
        tx.backup(tenant, backup).await?;
        let now = self.db.inner().clock.now();
        let (token, expires_at) = (Token::new(PREFIX)?, now + Self::LINK_TTL);
        let by = tx.actor().clone();
        let outdated = sqlx::query("delete from tenancy.backup_links where expires_at < $1").bind(now);
        outdated.execute(&mut *tx).await.map_err(from_sqlx)?;
        let query = sqlx::query(
            "insert into tenancy.backup_links (token_hash, tenant_id, backup_id, expires_at, created_by) values ($1, $2, $3, $4, $5)",
        );
        let query = query.bind(&token.sha256()[..]).bind(tenant.as_uuid()).bind(backup).bind(expires_at).bind(by.to_string());
        query.execute(&mut *tx).await.map_err(from_sqlx)?;
        tx.tell_of_backup(tenant, backup, "backup.link", serde_json::json!({ "expires_at": expires_at })).await?;
        Ok(BackupLink { token, expires_at })
    }

    /// What a link opens: the backup, and its archive.
    ///
    /// # Errors
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound) for a token that opens nothing, or nothing any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn open_link(&self, token: &str) -> Result<(Backup, GetResult)> {
        let token = Token::parse(PREFIX, token).ok_or_else(Error::not_found)?;
        let mut tx = begin_admin(self.db.inner(), Actor::Visitor).await?;
        let query =
            sqlx::query_as("select tenant_id, backup_id, created_by from tenancy.backup_links where token_hash = $1 and expires_at > $2");
        let (tenant, id, created_by): (Uuid, Uuid, String) =
            query.bind(&token.sha256()[..]).bind(self.db.inner().clock.now()).fetch_one(&mut tx).await.map_err(from_sqlx)?;
        let tenant = TenantId::from_uuid(tenant)?;
        let backup = tx.backup(tenant, id).await?;
        let archive = self.store.get(&self.at(tenant, id, backup.attempt)).await.map_err(into_error)?;
        let event = AuditEvent::new(tx.actor().clone(), "backup.download", id.to_string()).with_tenant(tenant);
        tx.audit(&event.with_detail(serde_json::json!({ "link_of": created_by }))).await?;
        tx.commit().await?;
        Ok((backup, archive))
    }
}
