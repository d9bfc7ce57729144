//! What a tenant of this installation shares with one of another, and the other installation's requests for it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::federation::{Capability, Document as _, Nonce, Origin, Proof, Unverified, check_target};
use tenancy_core::share::{Perms, ResourceRef, ShareState};
use tenancy_core::{Error, ErrorKind, Result, TenantCatalog as _, TenantContext, TenantId};
use uuid::Uuid;

use super::peers::pinned;
use super::{Federation, path};
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::sharing::{LinkTx, admin, check_ticket, count, refused};
use crate::tx::TenantTx;

const COLUMNS: &str = "s.id, p.origin, s.target, s.resource_type, s.resource_id,
    case when s.state in ('offered', 'active') and s.expires_at <= clock_timestamp() then 'expired' else s.state end as state,
    s.created_at, s.answered_at, s.ended_at, s.expires_at, s.version";

/// What to offer to whom, elsewhere: to read it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NewFederatedShare {
    /// What.
    pub resource: ResourceRef,
    /// The other installation, which an operator has added.
    pub peer: Origin,
    /// An id or slug there. Nobody here knows whether it exists.
    pub target: String,
    /// Until when; `None`: as long as the policy allows, and at most 30 days.
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
}

/// A share with a tenant elsewhere, as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FederatedShare {
    /// Which.
    pub id: Uuid,
    /// The other installation.
    pub peer: Origin,
    /// The tenant there, as it was named.
    pub target: String,
    /// What.
    pub resource: ResourceRef,
    /// How far it has come.
    pub state: ShareState,
    /// When it was offered.
    pub created_at: DateTime<Utc>,
    /// When it was answered.
    pub answered_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Until when it lasts.
    pub expires_at: DateTime<Utc>,
    /// Counts the changes.
    pub version: u64,
}

impl FromRow<'_, PgRow> for FederatedShare {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
        Ok(Self {
            id: row.try_get("id")?,
            peer: row.try_get::<&str, _>("origin")?.parse().map_err(decode)?,
            target: row.try_get("target")?,
            resource: ResourceRef::new(row.try_get("resource_type")?, row.try_get("resource_id")?).map_err(decode)?,
            state: row.try_get::<&str, _>("state")?.parse().map_err(decode)?,
            created_at: row.try_get("created_at")?,
            answered_at: row.try_get("answered_at")?,
            ended_at: row.try_get("ended_at")?,
            expires_at: row.try_get("expires_at")?,
            version: row.try_get::<i64, _>("version")?.unsigned_abs(),
        })
    }
}

impl TenantTx {
    /// Offers a resource of this tenant to a tenant of another installation. Returns the signed document, which is had here alone: it is for
    /// the admins there, and for nobody else.
    ///
    /// # Errors
    /// - [`Forbidden`](ErrorKind::Forbidden) unless `by` is an admin, platform and tenant have sharing switched on, and the policy names no
    ///   targets (which are tenants of this installation).
    /// - [`NotFound`](ErrorKind::NotFound): this tenant has no such resource.
    /// - [`Invalid`](ErrorKind::Invalid), with the field: a peer that is none, a target that is no name, a type or time that the policy does not
    ///   allow.
    /// - [`Conflict`](ErrorKind::Conflict): it is offered to that tenant, or shared with it, already.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn offer_federated(
        &mut self,
        federation: &Federation,
        by: &TenantContext,
        new: &NewFederatedShare,
    ) -> Result<(FederatedShare, String)> {
        admin(self, by)?;
        check_target(&new.target)?;
        let owner = federation.db.catalog().find(&by.tenant_id().into()).await?.ok_or_else(Error::tenant_not_found)?;
        let (nonce, actor) = (Nonce::new(rand::random()), by.principal().actor());
        let sql = format!(
            "select {COLUMNS} from tenancy.federated_offer($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) s
               join tenancy.federation_peers p on p.id = s.peer_id"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql))
            .bind(Uuid::now_v7())
            .bind(new.peer.as_str())
            .bind(&new.target)
            .bind(new.resource.kind())
            .bind(new.resource.id())
            .bind(Sha256::digest(nonce.as_bytes()).to_vec())
            .bind(new.expires_at)
            .bind(actor.kind())
            .bind(actor.subject().map(|subject| subject.as_str().to_owned()))
            .bind(by.request_id());
        let share: FederatedShare = query.fetch_one(self).await.map_err(refused)?;
        let capability = Capability {
            issuer: federation.origin.clone(),
            audience: share.peer.clone(),
            owner: by.tenant_id(),
            owner_name: owner.name.clone(),
            target: share.target.clone(),
            share: share.id,
            resource: share.resource.clone(),
            perms: Perms::Read,
            not_before: share.created_at,
            expires_at: share.expires_at,
            nonce,
        };
        count::federated("offered");
        Ok((share, capability.sign(&federation.key)?))
    }

    /// A share of this tenant with one elsewhere.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn federated_share(&mut self, id: Uuid) -> Result<FederatedShare> {
        let sql = format!(
            "select {COLUMNS} from tenancy.federated_shares s join tenancy.federation_peers p on p.id = s.peer_id
              where s.tenant_id = $1 and s.id = $2"
        );
        sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id).fetch_one(self).await.map_err(from_sqlx)
    }

    /// At most `limit` shares of this tenant with others elsewhere, with ids before `before`, the newest first, ended ones too.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn federated_shares(&mut self, before: Uuid, limit: i64) -> Result<Vec<FederatedShare>> {
        let sql = format!(
            "select {COLUMNS} from tenancy.federated_shares s join tenancy.federation_peers p on p.id = s.peer_id
              where s.tenant_id = $1 and s.id < $2 order by s.id desc limit $3"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(limit);
        query.fetch_all(self).await.map_err(from_sqlx)
    }

    /// Ends a share of this tenant with one elsewhere, or takes the offer back: from the commit on, the next statement shows nothing.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden) unless `by` is an admin; [`NotFound`](ErrorKind::NotFound). Ended again, it stays as it ended.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn end_federated(&mut self, by: &TenantContext, share: Uuid) -> Result<()> {
        admin(self, by)?;
        let actor = by.principal().actor();
        let query = sqlx::query_scalar("select tenancy.federated_end($1, $2, $3, $4)").bind(share).bind(actor.kind());
        let query = query.bind(actor.subject().map(|subject| subject.as_str().to_owned())).bind(by.request_id());
        if !query.fetch_one(self).await.map_err(refused)? {
            return Err(Error::not_found());
        }
        count::federated("revoked");
        Ok(())
    }
}

/// A request of another installation about a share.
#[derive(Debug, Clone, Copy)]
pub struct PeerRequest<'a> {
    /// What its header [`PROOF`](super::PROOF) says.
    pub proof: &'a str,
    /// Its method.
    pub method: &'a str,
    /// The share that its path names.
    pub share: Uuid,
    /// What its path says after that: see [`path`](super::path).
    pub act: &'a str,
    /// Its id here.
    pub request_id: Uuid,
    /// When it came.
    pub now: DateTime<Utc>,
}

/// A share that was opened for another installation: for a minute, [`read_federated`](crate::TenantDb::read_federated) shows what it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FederatedOpening {
    /// Whose it is.
    pub owner: TenantId,
    /// What it shows.
    pub resource: ResourceRef,
    /// A secret that stands for this opening, and never leaves the service.
    pub ticket: String,
}

impl Federation {
    /// Opens a share for the installation that asks. The owner's audit log has it, or its denial, first.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), whatever is wrong: with the proof, with who has signed it, or with the share.
    ///
    /// # Cancel safety
    /// Safe; the proof may be used up, and the audit event stay.
    ///
    /// # Security
    /// Upholds I34 and I35.
    pub async fn open(&self, asked: &PeerRequest<'_>) -> Result<FederatedOpening> {
        let opened = self.opened(asked).await;
        count::opened("federated", &opened);
        opened
    }

    async fn opened(&self, asked: &PeerRequest<'_>) -> Result<FederatedOpening> {
        let (mut tx, peer, capability) = self.admit(asked).await?;
        let query = sqlx::query("select ticket, owner_tenant_id, resource_type, resource_id from tenancy.federated_open($1, $2, $3, $4)");
        let query = query.bind(peer).bind(asked.share).bind(&capability.as_bytes()[..]).bind(asked.request_id);
        let row = query.fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        tx.commit().await?;
        let row = row.ok_or_else(Error::not_found)?;
        let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
        let read = || -> sqlx::Result<FederatedOpening> {
            Ok(FederatedOpening {
                owner: row.try_get("owner_tenant_id").and_then(|id| TenantId::from_uuid(id).map_err(decode))?,
                resource: ResourceRef::new(row.try_get("resource_type")?, row.try_get("resource_id")?).map_err(decode)?,
                ticket: row.try_get("ticket")?,
            })
        };
        read().map_err(from_sqlx)
    }

    /// Takes the other side's answer: its act is `accept`, `decline` or `end`. The owner's log has it, and its admins are told.
    ///
    /// # Errors
    /// As [`open`](Federation::open).
    ///
    /// # Cancel safety
    /// Safe; the answer may be kept. Given again, with another proof, it stays.
    ///
    /// # Security
    /// Upholds I34.
    pub async fn answer(&self, asked: &PeerRequest<'_>) -> Result<()> {
        let state = match asked.act {
            "accept" => "active",
            "decline" => "declined",
            "end" => "left",
            _ => return Err(Error::not_found()),
        };
        let (mut tx, peer, capability) = self.admit(asked).await?;
        let query = sqlx::query_scalar("select tenancy.federated_answer($1, $2, $3, $4, $5)").bind(peer).bind(asked.share);
        let query = query.bind(&capability.as_bytes()[..]).bind(asked.act).bind(asked.request_id);
        let done: bool = query.fetch_one(&mut tx).await.map_err(from_sqlx)?;
        tx.commit().await?;
        if !done {
            return Err(Error::not_found());
        }
        count::federated(state);
        Ok(())
    }

    /// Verifies a request and uses its proof up: in the transaction that is given back, which must be committed, with who asks and by which
    /// capability.
    async fn admit(&self, asked: &PeerRequest<'_>) -> Result<(LinkTx, Uuid, Nonce)> {
        let nothing = |source: Error| match source.kind() {
            ErrorKind::Unauthenticated => Error::not_found().with_source(source),
            _ => source,
        };
        let proof = Unverified::<Proof>::parse(asked.proof).map_err(nothing)?;
        let mut tx = self.db.link_tx("BEGIN", false).await?;
        let peer = pinned(&mut tx, proof.issuer()).await?.ok_or_else(Error::not_found)?;
        let (proof, key) = proof.verify(&peer.keys, &self.origin, asked.now).map_err(nothing)?;
        if proof.method != asked.method || proof.path != path(asked.share, asked.act) {
            return Err(Error::not_found());
        }
        let query = sqlx::query_scalar("select tenancy.federation_proof_used($1, $2, $3)").bind(peer.id);
        let query = query.bind(&key.as_bytes()[..]).bind(&proof.nonce.as_bytes()[..]);
        if query.fetch_one(&mut tx).await.map_err(from_sqlx)? { Ok((tx, peer.id, proof.capability)) } else { Err(Error::not_found()) }
    }
}

impl TenantDb {
    /// Begins a transaction that sees, in the `_link` views, what `ticket` stands for, which the [opening](Federation::open) of a share gave: drop
    /// it when done. If the share is no longer, it sees nothing.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if `ticket` can't be one; [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// As [`begin`](TenantDb::begin).
    pub async fn read_federated(&self, ticket: &str) -> Result<LinkTx> {
        check_ticket(ticket)?;
        self.link_tx(&format!("BEGIN READ ONLY; SET LOCAL tenancy.ticket = '{ticket}'"), true).await
    }
}
