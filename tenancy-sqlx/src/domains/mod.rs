//! Domains of tenants' own: claimed, proved by a TXT record, and looked at again for as long as they are held.
//!
//! A change of what a tenant holds is a new version of the tenant: every node hears of it as of any other change of the catalog.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::Row;
use sqlx::postgres::PgRow;
use tenancy_core::domain::{Challenge, Proof};
use tenancy_core::outbox::Message;
use tenancy_core::{AuditEvent, Domain, DomainName, DomainState, Error, ErrorKind, Result, TenantContext, TenantId};

use crate::error::from_sqlx;
use crate::tx::TenantTx;

mod recheck;

pub use recheck::Rechecker;

/// How long after one look the next one may begin, if a tenant asks for it.
pub const PAUSE: Duration = Duration::from_secs(10);
/// How long after a look a held domain is looked at again.
pub const EVERY: Duration = Duration::from_secs(24 * 3600);

impl TenantTx {
    /// Claims `domain`: nothing is served there until its record is seen. What others have claimed makes no difference, and does not show.
    ///
    /// Not asked here is whether the domain is the platform's own: see [`DomainName::is_within`].
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if the tenant has claimed it already, or has [`Domain::MAX`] claims.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn claim_domain(&mut self, by: &TenantContext, domain: &DomainName) -> Result<Domain> {
        let token = format!("{:032x}", rand::random::<u128>());
        let query =
            sqlx::query_scalar("select tenancy.domain_claim($1, $2, $3)").bind(domain.as_str()).bind(token).bind(Domain::MAX.cast_signed());
        let answer: String = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        match answer.as_str() {
            "claimed" => {}
            "full" => {
                return Err(Error::new(ErrorKind::Conflict, format!("a tenant can claim {} domains: release one first", Domain::MAX)));
            }
            _ => return Err(Error::new(ErrorKind::Conflict, "the domain is claimed already")),
        }
        self.audit(event(by, "domain.claim", domain, Value::Null)).await?;
        self.domain(domain).await?.ok_or_else(Error::not_found)
    }

    /// The tenant's claims, by name.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn domains(&mut self) -> Result<Vec<Domain>> {
        let rows = sqlx::query("select * from tenancy.domains_own(null)").fetch_all(self).await.map_err(from_sqlx)?;
        rows.iter().map(read).collect()
    }

    /// The tenant's claim of `domain`, if there is one.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn domain(&mut self, domain: &DomainName) -> Result<Option<Domain>> {
        let query = sqlx::query("select * from tenancy.domains_own($1)").bind(domain.as_str());
        query.fetch_optional(self).await.map_err(from_sqlx)?.as_ref().map(read).transpose()
    }

    /// Begins a look for the proof of `domain`, unless the last one began less than [`PAUSE`] ago: `None`. Commit, and look then: no
    /// transaction has to wait for the DNS.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without a claim.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn look_at_domain(&mut self, domain: &DomainName) -> Result<Option<Challenge>> {
        let found = self.domain(domain).await?.ok_or_else(Error::not_found)?;
        let query =
            sqlx::query_scalar("select tenancy.domain_look($1, make_interval(secs => $2))").bind(domain.as_str()).bind(PAUSE.as_secs_f64());
        let may: bool = query.fetch_one(self).await.map_err(from_sqlx)?;
        Ok(may.then_some(found.record))
    }

    /// Keeps what a look for `record` has shown: the first tenant with a proof holds the domain. What is missing takes nothing away here;
    /// only the [`Rechecker`] counts that.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if the claim is gone, or is another one by now.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn record_proof(&mut self, by: &TenantContext, domain: &DomainName, record: &Challenge, proof: &Proof) -> Result<Domain> {
        let (word, why) = words(proof);
        let query = sqlx::query("select * from tenancy.domain_seen($1, $2, $3, $4, make_interval(secs => $5))")
            .bind(domain.as_str())
            .bind(record.token())
            .bind(word)
            .bind(why)
            .bind(EVERY.as_secs_f64());
        let row = query.fetch_optional(&mut *self).await.map_err(from_sqlx)?.ok_or_else(Error::not_found)?;
        let Seen { was, became, version } = Seen::read(&row)?;
        if let Some(version) = version {
            self.audit(event(by, "domain.verify", domain, json!({ "was": was, "state": became }))).await?;
            self.audit(tenant_event(by, version, domain, true)).await?;
            self.post(&Message::new("domain.verified", format!("{domain}:{version}"), json!({ "domain": domain }))?).await?;
        }
        self.domain(domain).await?.ok_or_else(Error::not_found)
    }

    /// Gives `domain` up: nothing of this tenant is served there from the commit on, on all nodes within
    /// [`max_staleness`](crate::Options::with_max_staleness).
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without a claim.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn release_domain(&mut self, by: &TenantContext, domain: &DomainName) -> Result<()> {
        let query = sqlx::query("select * from tenancy.domain_release($1)").bind(domain.as_str());
        let row = query.fetch_optional(&mut *self).await.map_err(from_sqlx)?.ok_or_else(Error::not_found)?;
        let (was, version): (String, Option<i64>) = (row.try_get("was").map_err(from_sqlx)?, row.try_get("version").map_err(from_sqlx)?);
        self.audit(event(by, "domain.release", domain, json!({ "was": was }))).await?;
        if let Some(version) = version {
            self.audit(tenant_event(by, version, domain, false)).await?;
        }
        Ok(())
    }
}

/// What a recorded look has changed.
struct Seen {
    was: DomainState,
    became: DomainState,
    /// The tenant's, if it is a new one.
    version: Option<i64>,
}

impl Seen {
    fn read(row: &PgRow) -> Result<Self> {
        let state = |column| -> Result<DomainState> { row.try_get::<&str, _>(column).map_err(from_sqlx)?.parse() };
        Ok(Self { was: state("was")?, became: state("became")?, version: row.try_get("version").map_err(from_sqlx)? })
    }
}

fn words(proof: &Proof) -> (&'static str, Option<&str>) {
    match proof {
        Proof::Found => ("found", None),
        Proof::Missing(why) => ("missing", Some(why)),
        Proof::Unknown(why) => ("unknown", Some(why)),
        _ => ("unknown", None),
    }
}

fn event(by: &TenantContext, action: &str, domain: &DomainName, detail: Value) -> AuditEvent {
    let mut event = AuditEvent::new(by.principal().actor(), action, domain.as_str()).with_detail(detail);
    event.request_id = Some(by.request_id());
    event
}

fn tenant_event(by: &TenantContext, version: i64, domain: &DomainName, holds: bool) -> AuditEvent {
    let mut event =
        AuditEvent::new(by.principal().actor(), "tenant.update", by.tenant_id().to_string()).with_detail(change(version, domain, holds));
    event.request_id = Some(by.request_id());
    event
}

/// The detail of a new version of a tenant.
fn change(version: i64, domain: &DomainName, holds: bool) -> Value {
    let (before, after) = if holds { (json!([]), json!([domain])) } else { (json!([domain]), json!([])) };
    json!({ "version": version, "before": { "domains": before }, "after": { "domains": after } })
}

fn read(row: &PgRow) -> Result<Domain> {
    let text = |column| -> Result<&str> { row.try_get(column).map_err(from_sqlx) };
    let time = |column| -> Result<Option<DateTime<Utc>>> { row.try_get(column).map_err(from_sqlx) };
    let mut domain = Domain::new(text("domain")?.parse()?, text("token")?, time("created_at")?.unwrap_or_default());
    domain.state = text("state")?.parse()?;
    domain.problem = row.try_get("problem").map_err(from_sqlx)?;
    (domain.verified_at, domain.checked_at) = (time("verified_at")?, time("checked_at")?);
    Ok(domain)
}

/// A claim as the administrative role reads it.
fn claimed(row: &PgRow) -> Result<(TenantId, Domain)> {
    Ok((TenantId::from_uuid(row.try_get("tenant_id").map_err(from_sqlx)?)?, read(row)?))
}
