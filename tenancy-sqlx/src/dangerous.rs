//! The one way around the fence.

use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result};

use crate::db::TenantDb;
use crate::error::{from_sqlx, is_denied};
use crate::lease::Lease;
use crate::tx::{ForSystem, SystemTx, Tx};

/// Work that no tenant confines: made by [`TenantDb::dangerous`], so that a reviewer finds it by its name.
#[derive(Debug, Clone)]
#[must_use]
pub struct Dangerous {
    db: TenantDb,
    actor: Actor,
}

impl Dangerous {
    pub(crate) fn new(db: TenantDb) -> Self {
        Self { db, actor: Actor::System }
    }

    /// Names who is behind it in the audit log; otherwise it is the system itself.
    pub fn on_behalf_of(mut self, actor: Actor) -> Self {
        self.actor = actor;
        self
    }

    /// Begins a transaction that sees and writes every tenant's rows, as the role `tenancy_admin` on the administrative pool.
    ///
    /// The audit event `system.access`, with `reason`, is committed first, so that it stays whatever becomes of the transaction.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) without [administrative credentials](crate::Options::with_admin_url),
    /// [`Invalid`](ErrorKind::Invalid) without a reason, [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe; the audit event may stay.
    ///
    /// # Security
    /// Upholds I6: a bypass is named, separate and audited.
    pub async fn begin_system(self, reason: &str) -> Result<SystemTx> {
        if reason.trim().is_empty() {
            return Err(Error::invalid("reason", "must say why every tenant's rows are needed"));
        }
        let become_admin = self.become_admin();
        let event = AuditEvent::new(self.actor.clone(), "system.access", reason);
        let mut tx = self.begin_quietly().await?;
        tx.audit(&event).await?;
        tx.commit_and(&become_admin).await
    }

    fn become_admin(&self) -> String {
        format!("BEGIN; SET LOCAL ROLE {}", self.db.inner().roles.admin())
    }

    /// [`begin_system`](Self::begin_system) without an audit event of its own: for the many transactions of an operation that was audited
    /// when it was queued.
    pub(crate) async fn begin_quietly(self) -> Result<SystemTx> {
        let inner = self.db.inner();
        let pool = inner
            .admin
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Misconfigured, "this needs administrative credentials: give Options::with_admin_url"))?;
        let become_admin = self.become_admin();
        let lease = Lease::begin(pool, &become_admin, inner.scrub).await.map_err(|error| {
            if !is_denied(&error) {
                return from_sqlx(error);
            }
            let admin = inner.roles.admin();
            let message = format!("the administrative login can't become {admin}: GRANT {admin} TO it, or give another one");
            Error::new(ErrorKind::Misconfigured, message).with_source(error)
        })?;
        Ok(Tx::new(lease, ForSystem(self.actor), false, inner.named_statements))
    }
}
