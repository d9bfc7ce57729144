//! Held domains are looked at again: what is no longer proved stops to resolve.

use std::sync::Arc;
use std::time::Duration;

use tenancy_core::outbox::Message;
use tenancy_core::{Actor, AuditEvent, Domain, DomainState, Result, TenantId, TxtResolver};

use super::{EVERY, Seen, change, claimed, words};
use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;

/// How long a look may take until another node may begin one.
const LEASE: Duration = Duration::from_secs(600);

/// Looks for the proofs of domains that are held, each once a day, on whichever node comes first.
///
/// Only an answer that the record is gone counts: while the DNS does not answer, nobody loses a domain. The tenant's admins are told by the
/// message `domain.lost`.
#[derive(Clone)]
pub struct Rechecker {
    db: TenantDb,
    resolver: Arc<dyn TxtResolver>,
    misses: u32,
}

impl std::fmt::Debug for Rechecker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rechecker").field("misses", &self.misses).finish_non_exhaustive()
    }
}

impl Rechecker {
    /// A domain is lost when its proof is gone at three looks in a row.
    pub fn new(db: &TenantDb, resolver: Arc<dyn TxtResolver>) -> Self {
        Self { db: db.clone(), resolver, misses: 3 }
    }

    /// After how many looks in a row that find no proof a domain is lost; at least one.
    #[must_use]
    pub fn with_misses(mut self, misses: u32) -> Self {
        self.misses = misses.max(1);
        self
    }

    /// Looks at up to fifty domains that are due. Returns how many.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) without administrative credentials,
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: what was not looked at is due again after ten minutes.
    pub async fn round(&self) -> Result<usize> {
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let rows = sqlx::query(
            "update tenancy.domains d set checked_at = clock_timestamp(), due_at = clock_timestamp() + make_interval(secs => $1)
              where (d.tenant_id, d.domain) in (
                select x.tenant_id, x.domain from tenancy.domains x join tenancy.tenants t on t.id = x.tenant_id
                 where x.state = 'verified' and x.due_at <= clock_timestamp() and t.status in ('active', 'suspended')
                 order by x.due_at limit 50 for update of x skip locked)
             returning d.*",
        )
        .bind(LEASE.as_secs_f64())
        .fetch_all(&mut tx)
        .await
        .map_err(from_sqlx)?;
        tx.commit().await?;
        for row in &rows {
            let (tenant, domain) = claimed(row)?;
            self.look(tenant, &domain).await?;
        }
        Ok(rows.len())
    }

    async fn look(&self, tenant: TenantId, held: &Domain) -> Result<()> {
        let proof = held.record.look(self.resolver.as_ref()).await;
        let (word, why) = words(&proof);
        let mut tx = begin_admin(self.db.inner(), Actor::System).await?;
        let row = sqlx::query("select * from tenancy.domain_seen_for($1, $2, $3, $4, $5, $6, make_interval(secs => $7))")
            .bind(tenant.as_uuid())
            .bind(held.domain.as_str())
            .bind(held.record.token())
            .bind(word)
            .bind(why)
            .bind(self.misses.cast_signed())
            .bind(EVERY.as_secs_f64())
            .fetch_optional(&mut tx)
            .await
            .map_err(from_sqlx)?;
        let seen = row.as_ref().map(Seen::read).transpose()?;
        if let Some(Seen { became: DomainState::Lost, version: Some(version), .. }) = seen {
            let event = |action: &str, target: String| AuditEvent::new(Actor::System, action, target).with_tenant(tenant);
            tx.audit(&event("domain.lost", held.domain.to_string()).with_detail(serde_json::json!({ "why": why }))).await?;
            tx.audit(&event("tenant.update", tenant.to_string()).with_detail(change(version, &held.domain, false))).await?;
            let lost = Message::new("domain.lost", format!("{}:{version}", held.domain), serde_json::json!({ "domain": held.domain }))?;
            tx.post(Some(tenant), &lost).await?;
        }
        tx.commit().await
    }
}
