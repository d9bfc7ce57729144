//! The one way around the fence.

use tenancy_core::{Actor, AuditEvent, Error, ErrorKind, Result, TenantId};

use crate::db::{Inner, TenantDb};
use crate::error::{from_sqlx, is_denied};
use crate::lease::Lease;
use crate::tx::{ForSystem, SystemTx, Tx};

/// Work that no tenant confines: made by [`TenantDb::dangerous`], so that a reviewer finds it by its name.
#[derive(Debug, Clone)]
#[must_use]
pub struct Dangerous {
    db: TenantDb,
    actor: Actor,
    about: Option<TenantId>,
}

impl Dangerous {
    pub(crate) fn new(db: TenantDb) -> Self {
        Self { db, actor: Actor::System, about: None }
    }

    /// Names who is behind it in the audit log; otherwise it is the system itself.
    pub fn on_behalf_of(mut self, actor: Actor) -> Self {
        self.actor = actor;
        self
    }

    /// Names the one tenant that it is about, whose own log then has the access.
    pub fn about(mut self, tenant_id: TenantId) -> Self {
        self.about = Some(tenant_id);
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
        let mut tx = begin_admin(self.db.inner(), self.actor.clone()).await?;
        let mut event = AuditEvent::new(self.actor, "system.access", reason);
        event.tenant_id = self.about;
        tx.audit(&event).await?;
        tx.commit_and(&become_admin(self.db.inner())).await
    }
}

fn become_admin(inner: &Inner) -> String {
    format!("BEGIN; SET LOCAL ROLE {}", inner.roles.admin())
}

/// Begins a transaction across tenants that nobody hears of: for the kit's own fixed statements, which run all the time.
pub(crate) async fn begin_admin(inner: &Inner, actor: Actor) -> Result<SystemTx> {
    begin_as(inner, actor, &become_admin(inner), &[inner.roles.admin()]).await
}

/// Begins a transaction of the administrative login with statements of ours, by which it becomes one of the `roles`.
pub(crate) async fn begin_as(inner: &Inner, actor: Actor, begin: &str, roles: &[String]) -> Result<SystemTx> {
    let pool = inner
        .admin
        .as_ref()
        .ok_or_else(|| Error::new(ErrorKind::Misconfigured, "this needs administrative credentials: give Options::with_admin_url"))?;
    let lease = Lease::begin(pool, begin, inner.scrub).await.map_err(|error| {
        if !is_denied(&error) {
            return from_sqlx(error);
        }
        let roles = roles.join(", ");
        let message = format!("the administrative login can't become {roles}: GRANT {roles} TO it, or give another one");
        Error::new(ErrorKind::Misconfigured, message).with_source(error)
    })?;
    Ok(Tx::new(lease, ForSystem(actor), false, inner.named_statements))
}
