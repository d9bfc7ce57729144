//! Erases one tenant for good, and proves it.
//!
//! An erasure is an [operation](crate::operations): any node does it, and goes on where another one stopped. The plan comes from the
//! catalog, and a database with a table that it can't handle is refused, by name, before anything is deleted.
//! `docs/lifecycle.md` tells the steps.
//!
//! ```no_run
//! # use tenancy_core::{Result, TenantId};
//! # async fn erase(db: tenancy_sqlx::TenantDb, tenant: TenantId) -> Result<()> {
//! use tenancy_sqlx::erase::{CertificateKey, Erase};
//! use tenancy_sqlx::operations::Operations;
//!
//! let mut tx = db.dangerous().begin_system("erase a tenant").await?;
//! let queued = tx.request_erasure(tenant, "contract ended", None).await?;
//! tx.commit().await?;
//!
//! let key = CertificateKey::new([0; 32]); // 32 random bytes
//! Operations::new(&db).with(Erase::KIND, Erase::new(&db, key)).run_next().await?;
//! let mut tx = db.dangerous().begin_system("read a certificate").await?;
//! println!("{:?}", tx.operation(queued.id).await?.result);
//! # Ok(()) }
//! ```

use std::fmt;
use std::sync::Arc;

use serde_json::json;
use tenancy_core::erase::Erasable;
use tenancy_core::{Error, ErrorKind, Result, TenantId, TenantStatus};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::operations::Operation;
use crate::tx::SystemTx;

mod certificate;
mod plan;
mod run;
mod scan;

pub use certificate::CertificateKey;
#[cfg(feature = "export")]
pub(crate) use plan::tenant_tables;

/// Does erasures: the handler of [`Erase::KIND`].
#[derive(Clone)]
pub struct Erase {
    db: TenantDb,
    key: CertificateKey,
    objects: Option<Arc<dyn Erasable>>,
    settle: bool,
    halt_after: Option<&'static str>,
}

impl Erase {
    /// The kind of operation that it does.
    pub const KIND: &str = "erase";
    /// The most rows that one transaction deletes, but for tables that refer to themselves or to each other.
    pub const MAX_BATCH: u32 = 5_000;

    /// Erases rows, and signs certificates with `key`.
    pub fn new(db: &TenantDb, key: CertificateKey) -> Self {
        Self { db: db.clone(), key, objects: None, settle: true, halt_after: None }
    }

    /// Erases the tenant's objects as well.
    #[must_use]
    pub fn with_objects(mut self, objects: impl Erasable) -> Self {
        self.objects = Some(Arc::new(objects));
        self
    }

    /// Does not wait for transactions that are older than the erasure: what the tests' negative control needs, and nobody else.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn danger_without_waiting(mut self) -> Self {
        self.settle = false;
        self
    }

    /// Stands still for ever once a step is finished, so that a test can kill it there.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn halting_after(mut self, step: &'static str) -> Self {
        self.halt_after = Some(step);
        self
    }
}

impl fmt::Debug for Erase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Erase").field("objects", &self.objects.is_some()).finish_non_exhaustive()
    }
}

impl SystemTx {
    /// Queues the erasure of a tenant that is archived, or was never provisioned. From the commit on, the tenant can't come back.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) without a reason; [`Conflict`](ErrorKind::Conflict) for a tenant
    /// in another state, one with another operation under way or a backup that is held, and a database with a table that can't be handled, which is named.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn request_erasure(&mut self, tenant: TenantId, reason: &str, request_id: Option<Uuid>) -> Result<Operation> {
        if reason.trim().is_empty() || reason.chars().count() > 500 || reason.chars().any(char::is_control) {
            return Err(Error::invalid("reason", "must have 1 to 500 characters, and no control characters"));
        }
        may_be_erased(self, tenant).await?;
        let held =
            sqlx::query_scalar("select hold from tenancy.backups where tenant_id = $1 and hold is not null and deleted_at is null limit 1");
        let held: Option<String> = held.bind(tenant.as_uuid()).fetch_optional(&mut *self).await.map_err(from_sqlx)?;
        if let Some(why) = held {
            return Err(Error::new(ErrorKind::Conflict, format!("a backup of the tenant is held ({why}): let it go first")));
        }
        plan::Plan::read(self).await?;
        self.queue_operation(tenant, Erase::KIND, json!({ "reason": reason }), request_id).await
    }
}

/// Makes sure of the tenant's state, and locks its row.
async fn may_be_erased(tx: &mut SystemTx, tenant: TenantId) -> Result<()> {
    let status = sqlx::query_scalar("select status from tenancy.tenants where id = $1 for update").bind(tenant.as_uuid());
    let status: Option<String> = status.fetch_optional(tx).await.map_err(from_sqlx)?;
    match status.ok_or_else(Error::not_found)?.parse()? {
        TenantStatus::Archived | TenantStatus::Provisioning => Ok(()),
        TenantStatus::Erased => Err(Error::not_found()),
        other => Err(Error::new(ErrorKind::Conflict, format!("a tenant that is {other} can't be erased: archive it first"))),
    }
}
