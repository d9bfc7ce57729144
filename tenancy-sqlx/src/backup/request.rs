//! What can be asked for.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tenancy_core::{Error, ErrorKind, NewTenant, Result, Tenant, TenantId, TenantSlug, TenantStatus};
use uuid::Uuid;

use super::take::may_be_backed_up;
use super::{Backups, as_of};
use crate::error::from_sqlx;
use crate::operations::Operation;
use crate::tx::SystemTx;

/// What to restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NewRestore {
    /// From which backup of the tenant. With [`as_of`](Self::as_of) it need not be said: the newest one before that moment.
    #[serde(default)]
    pub backup: Option<Uuid>,
    /// As it was in this moment, by the [journal](SystemTx::keep_journal). Settings stay as they are, and objects that came since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<DateTime<Utc>>,
    /// Only these tables, as the backup names them: `public.documents`. Settings and objects stay as they are then.
    #[serde(default)]
    pub tables: Option<Vec<String>>,
    /// Only tell what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Leave out what the database has no table or column for any more, instead of refusing.
    #[serde(default)]
    pub may_lose: bool,
    /// Don't take a backup of how the tenant is now first.
    #[serde(default)]
    pub without_backup: bool,
    /// What the tenant has can be read until its rows are put in place; it is out of service for writing alone. One that was suspended is not
    /// served by this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reads: bool,
}

impl NewRestore {
    /// All of this backup, after another one of how the tenant is now.
    pub const fn new(backup: Uuid) -> Self {
        Self { backup: Some(backup), as_of: None, tables: None, dry_run: false, may_lose: false, without_backup: false, reads: false }
    }

    /// As it was in this moment, after a backup of how the tenant is now.
    pub const fn as_of(at: DateTime<Utc>) -> Self {
        Self { backup: None, as_of: Some(at), tables: None, dry_run: false, may_lose: false, without_backup: false, reads: false }
    }

    /// As it was in this moment, reached from the backup.
    #[must_use]
    pub const fn with_as_of(mut self, at: DateTime<Utc>) -> Self {
        self.as_of = Some(at);
        self
    }

    /// Only these tables. Settings and objects stay as they are.
    #[must_use]
    pub fn with_tables(mut self, tables: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tables = Some(tables.into_iter().map(Into::into).collect());
        self
    }

    /// Only tell what would change: nothing is written, and the tenant is served all the while.
    #[must_use]
    pub const fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Leave out what the database has no table or column for any more.
    #[must_use]
    pub const fn losing(mut self) -> Self {
        self.may_lose = true;
        self
    }

    /// Don't take a backup of how the tenant is now first.
    #[must_use]
    pub const fn without_backup(mut self) -> Self {
        self.without_backup = true;
        self
    }

    /// Have reads of the tenant go on until its rows are put in place: [`TenantDb::read`](crate::TenantDb::read), and what only reads its
    /// objects. What writes is [`Unavailable`](ErrorKind::Unavailable) all the same.
    #[must_use]
    pub const fn with_reads(mut self) -> Self {
        self.reads = true;
        self
    }
}

/// Which tenant to make of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NewClone {
    /// Of which backup.
    pub backup: Uuid,
    /// The new tenant's name in addresses.
    pub slug: TenantSlug,
    /// Its name for people; that of the other one unless said.
    #[serde(default)]
    pub name: Option<String>,
    /// Leave out what the database has no table or column for any more, instead of refusing.
    #[serde(default)]
    pub may_lose: bool,
    /// Give its rows ids of their own, wherever they are referred to.
    #[serde(default)]
    pub new_ids: bool,
}

impl NewClone {
    /// A tenant of this name, of this backup.
    pub const fn new(backup: Uuid, slug: TenantSlug) -> Self {
        Self { backup, slug, name: None, may_lose: false, new_ids: false }
    }

    /// Give its rows ids of their own: UUIDs and numbers in keys, and all that refers to them by a foreign key or as the host declared.
    #[must_use]
    pub const fn with_new_ids(mut self) -> Self {
        self.new_ids = true;
        self
    }
}

impl SystemTx {
    /// Queues a backup of a tenant that is active, suspended or archived.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) for a tenant in another state, and one with another operation
    /// under way.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn request_backup(&mut self, tenant: TenantId, request_id: Option<Uuid>) -> Result<Operation> {
        may_be_backed_up(self, tenant).await?;
        self.queue_operation(tenant, Backups::TAKE, json!({ "reason": "asked" }), request_id).await
    }

    /// Queues the restoration of a tenant that is active or suspended from one of its backups.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without such a tenant or backup of it; [`Invalid`](ErrorKind::Invalid) at `tables` for none,
    /// at `backup` for neither one nor a moment, at `as_of` for a moment to come, and at `reads` for a dry run; [`Conflict`](ErrorKind::Conflict) for a moment that its
    /// journal does not reach, a tenant in another state, and one with another operation under way.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn request_restore(&mut self, tenant: TenantId, restore: &NewRestore, request_id: Option<Uuid>) -> Result<Operation> {
        match self.lock_tenant(tenant).await?.status {
            TenantStatus::Active | TenantStatus::Suspended => {}
            TenantStatus::Erased => return Err(Error::not_found()),
            other => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("a tenant that is {other} can't be restored: suspend or resume it first"),
                ));
            }
        }
        if restore.tables.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("tables", "must name a table; leave it out to restore all"));
        }
        if restore.reads && restore.dry_run {
            return Err(Error::invalid("reads", "is not for a dry run: the tenant is served all the while"));
        }
        if let Some(at) = restore.as_of {
            as_of::reaches(self, tenant, at).await?;
        }
        let backup = match (restore.backup, restore.as_of) {
            (Some(backup), _) => self.backup(tenant, backup).await?,
            (None, Some(at)) => as_of::backup_for(self, tenant, at).await?,
            (None, None) => return Err(Error::invalid("backup", "must say which one, or as_of a moment")),
        };
        let restore = NewRestore { backup: Some(backup.id), ..restore.clone() };
        self.queue_operation(tenant, Backups::RESTORE, json!(restore), request_id).await
    }

    /// Queues the making of a new tenant out of a backup of `tenant`: its rows, objects, settings, branding, flags and quotas, but nobody's
    /// membership. It is active in the moment in which all is there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without such a tenant or backup of it; [`Invalid`](ErrorKind::Invalid) at `name`;
    /// [`Conflict`](ErrorKind::Conflict) for a slug that is taken, and a tenant with another operation under way.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn request_clone(&mut self, tenant: TenantId, clone: &NewClone, request_id: Option<Uuid>) -> Result<Operation> {
        may_be_backed_up(self, tenant).await?;
        self.backup(tenant, clone.backup).await?;
        if let Some(name) = &clone.name {
            Tenant::new(NewTenant::new(clone.slug.clone(), name), chrono::DateTime::UNIX_EPOCH)?;
        }
        let taken = sqlx::query_scalar("select exists (select from tenancy.tenants where slug = $1 and status <> 'erased')");
        if taken.bind(clone.slug.as_str()).fetch_one(&mut *self).await.map_err(from_sqlx)? {
            return Err(Error::new(ErrorKind::Conflict, "the slug is taken: choose another"));
        }
        self.queue_operation(tenant, Backups::CLONE, json!(clone), request_id).await
    }

    /// Queues a drill: the restoration of a backup, or of the newest one, into a tenant that is never seen and is gone at the end. Its result
    /// says what was proved.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without such a tenant or backup of it; [`Conflict`](ErrorKind::Conflict) for a tenant with another
    /// operation under way.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn request_drill(&mut self, tenant: TenantId, backup: Option<Uuid>, request_id: Option<Uuid>) -> Result<Operation> {
        may_be_backed_up(self, tenant).await?;
        let backup = match backup {
            Some(backup) => self.backup(tenant, backup).await?.id,
            None => self.backups(tenant, None, 1).await?.first().ok_or_else(Error::not_found)?.id,
        };
        self.queue_operation(tenant, Backups::DRILL, json!({ "backup": backup }), request_id).await
    }
}
