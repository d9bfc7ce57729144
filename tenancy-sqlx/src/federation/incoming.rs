//! What is shared with a tenant of this installation by one of another, and the requests for it.

use chrono::{DateTime, Utc};
use hyper::Method;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::federation::{Capability, Nonce, Origin, PublicKey, Unverified};
use tenancy_core::share::{ResourceRef, ShareState};
use tenancy_core::{Error, ErrorKind, Result, Role, Subject, TenantCatalog as _, TenantContext, TenantId};
use uuid::Uuid;

use super::peers::pinned;
use super::{Federation, path, unexpected};
use crate::error::from_sqlx;
use crate::sharing::{count, literal, refused};
use crate::tx::TenantTx;

const COLUMNS: &str = "g.id, p.origin, g.owner_id, g.owner_name, g.resource_ref,
    case when g.state = 'active' and g.expires_at <= clock_timestamp() then 'expired' else g.state end as state,
    g.created_at, g.ended_at, g.expires_at, g.version";

/// What a tenant elsewhere shares with one here, as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FederatedGrant {
    /// Which.
    pub id: Uuid,
    /// The other installation.
    pub peer: Origin,
    /// Whose the resource is: an id of the other installation.
    pub owner: TenantId,
    /// What the owner is called there.
    pub owner_name: String,
    /// What.
    pub resource: ResourceRef,
    /// How far it has come, as far as is known here: what the owner has ended stays active until it is asked for.
    pub state: ShareState,
    /// When it was answered.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Until when it lasts.
    pub expires_at: DateTime<Utc>,
    /// Counts the changes.
    pub version: u64,
}

fn decode(error: Error) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

impl FromRow<'_, PgRow> for FederatedGrant {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            peer: row.try_get::<&str, _>("origin")?.parse().map_err(decode)?,
            owner: row.try_get("owner_id").and_then(|id| TenantId::from_uuid(id).map_err(decode))?,
            owner_name: row.try_get("owner_name")?,
            resource: row.try_get::<&str, _>("resource_ref")?.parse().map_err(decode)?,
            state: row.try_get::<&str, _>("state")?.parse().map_err(decode)?,
            created_at: row.try_get("created_at")?,
            ended_at: row.try_get("ended_at")?,
            expires_at: row.try_get("expires_at")?,
            version: row.try_get::<i64, _>("version")?.unsigned_abs(),
        })
    }
}

/// What it takes to ask the owner's installation.
struct Elsewhere {
    peer: Origin,
    share: Uuid,
    capability: Nonce,
}

impl FromRow<'_, PgRow> for Elsewhere {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let secret: Vec<u8> = row.try_get("secret")?;
        let secret = secret.as_slice().try_into().map_err(|source| sqlx::Error::Decode(Box::new(source)))?;
        let peer = row.try_get::<&str, _>("origin")?.parse().map_err(decode)?;
        Ok(Self { peer, share: row.try_get("share_id")?, capability: Nonce::new(secret) })
    }
}

impl TenantTx {
    /// What a tenant elsewhere shares with this one.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn federated_grant(&mut self, id: Uuid) -> Result<FederatedGrant> {
        let sql = format!(
            "select {COLUMNS} from tenancy.federated_grants g join tenancy.federation_peers p on p.id = g.peer_id
              where g.tenant_id = $1 and g.id = $2"
        );
        sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id).fetch_one(self).await.map_err(from_sqlx)
    }

    /// At most `limit` of what tenants elsewhere share with this one, with ids before `before`, the newest first, ended ones too.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn federated_grants(&mut self, before: Uuid, limit: i64) -> Result<Vec<FederatedGrant>> {
        let sql = format!(
            "select {COLUMNS} from tenancy.federated_grants g join tenancy.federation_peers p on p.id = g.peer_id
              where g.tenant_id = $1 and g.id < $2 order by g.id desc limit $3"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(limit);
        query.fetch_all(self).await.map_err(from_sqlx)
    }

    async fn take_federated(
        &mut self,
        by: &TenantContext,
        (peer, key): (Uuid, &PublicKey),
        of: &Capability,
        state: &str,
    ) -> Result<FederatedGrant> {
        let actor = by.principal().actor();
        let used = sqlx::query_scalar("select tenancy.federation_key_used($1, $2)").bind(peer).bind(&key.as_bytes()[..]);
        if !used.fetch_one(&mut *self).await.map_err(from_sqlx)? {
            return Err(wrong());
        }
        let sql = format!(
            "select {COLUMNS} from tenancy.federated_take($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) g
               join tenancy.federation_peers p on p.id = g.peer_id"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql))
            .bind(Uuid::now_v7())
            .bind(peer)
            .bind(of.share)
            .bind(&of.nonce.as_bytes()[..])
            .bind(of.owner.as_uuid())
            .bind(&of.owner_name)
            .bind(of.resource.to_string())
            .bind(of.expires_at)
            .bind(state)
            .bind(actor.kind())
            .bind(actor.subject().map(|subject| subject.as_str().to_owned()))
            .bind(by.request_id());
        query.fetch_one(self).await.map_err(refused)
    }
}

/// The one answer to a document that can't be taken.
fn wrong() -> Error {
    Error::invalid("document", "is no offer to this tenant that an installation known here has signed, or its time is over")
}

impl Federation {
    /// Accepts an offer from elsewhere, by its signed document. The owner's installation is told first; accepted again, it stays accepted.
    ///
    /// # Errors
    /// - [`Forbidden`](ErrorKind::Forbidden) unless `by` is an admin, and platform and tenant let it accept shares.
    /// - [`Invalid`](ErrorKind::Invalid) at `document`, in the same words whatever is wrong with it.
    /// - [`Conflict`](ErrorKind::Conflict): it was answered otherwise, or the owner's installation has no such offer any more.
    /// - [`Unavailable`](ErrorKind::Unavailable): that one can't be reached. Nothing was kept here.
    ///
    /// # Cancel safety
    /// Safe; the owner's installation may have been told. Accept it again.
    ///
    /// # Security
    /// Upholds I34.
    pub async fn accept(&self, by: &TenantContext, document: &str, now: DateTime<Utc>) -> Result<FederatedGrant> {
        self.take(by, document, ("accept", "active"), now).await
    }

    /// Declines an offer from elsewhere, by its signed document.
    ///
    /// # Errors
    /// Those of [`accept`](Federation::accept).
    ///
    /// # Cancel safety
    /// As [`accept`](Federation::accept).
    pub async fn decline(&self, by: &TenantContext, document: &str, now: DateTime<Utc>) -> Result<FederatedGrant> {
        self.take(by, document, ("decline", "declined"), now).await
    }

    async fn take(
        &self,
        by: &TenantContext,
        document: &str,
        (act, state): (&'static str, &'static str),
        now: DateTime<Utc>,
    ) -> Result<FederatedGrant> {
        by.require(Role::Admin)?;
        let offer = Unverified::<Capability>::parse(document).map_err(|_| wrong())?;
        let mut tx = self.db.begin(by).await?;
        let peer = pinned(&mut tx, offer.issuer()).await?.ok_or_else(wrong)?;
        let (offer, key) = offer.verify(&peer.keys, &self.origin, now).map_err(|_| wrong())?;
        let tenant = self.db.catalog().find(&by.tenant_id().into()).await?.ok_or_else(Error::tenant_not_found)?;
        if offer.target != tenant.slug.as_str() && offer.target != tenant.id.to_string() {
            return Err(wrong());
        }
        // Whether it could be kept, before anybody is told; and no connection waits for another installation.
        tx.take_federated(by, (peer.id, &key), &offer, state).await?;
        tx.rollback().await?;
        match self.call(&offer.issuer, (Method::POST, &path(offer.share, act)), offer.nonce, now).await? {
            (204, _) => {}
            (404, _) => return Err(Error::new(ErrorKind::Conflict, "the owner's installation has no such offer any more")),
            (status, _) => return Err(unexpected(status)),
        }
        let mut tx = self.db.begin(by).await?;
        let taken = tx.take_federated(by, (peer.id, &key), &offer, state).await?;
        tx.commit().await?;
        count::federated(state);
        Ok(taken)
    }

    /// Ends what a tenant elsewhere shares with `by`'s. The owner's installation is told, if it can be reached; if not, end it again.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden) unless `by` is an admin; [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// Safe; it may have ended.
    pub async fn leave(&self, by: &TenantContext, grant: Uuid, now: DateTime<Utc>) -> Result<()> {
        by.require(Role::Admin)?;
        let mut tx = self.db.begin(by).await?;
        let actor = by.principal().actor();
        let query = sqlx::query_as("select origin, share_id, secret from tenancy.federated_leave($1, $2, $3, $4)").bind(grant);
        let query = query.bind(actor.kind()).bind(actor.subject().map(|subject| subject.as_str().to_owned())).bind(by.request_id());
        let left: Option<Elsewhere> = query.fetch_optional(&mut tx).await.map_err(refused)?;
        let Elsewhere { peer, share, capability } = left.ok_or_else(Error::not_found)?;
        tx.commit().await?;
        count::federated("left");
        match self.call(&peer, (Method::POST, &path(share, "end")), capability, now).await {
            Ok((204 | 404, _)) => {}
            Ok((status, _)) => tracing::warn!(status, "the owner's installation was not told that a share has ended"),
            Err(error) => tracing::warn!(?error, "the owner's installation was not told that a share has ended"),
        }
        Ok(())
    }

    /// Asks the owner's installation for what a share is of: the body of its answer, at most 1 MiB, which nobody has looked at yet. This
    /// tenant's log has it, or its denial, first.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if the share shows nothing to `cx`, for whatever reason, here or there;
    /// [`Unavailable`](ErrorKind::Unavailable) if the other installation can't be reached.
    ///
    /// # Cancel safety
    /// Safe; the audit events may stay.
    pub async fn ask(&self, cx: &TenantContext, grant: Uuid, what: &str, now: DateTime<Utc>) -> Result<Vec<u8>> {
        let actor = cx.principal().actor();
        // The access is kept also where the context is read-only.
        let sql = format!(
            "SELECT origin, share_id, secret FROM tenancy.federated_ask('{grant}', '{}', {}, '{}'); COMMIT",
            actor.kind(),
            literal(actor.subject().map_or("", Subject::as_str)),
            cx.request_id(),
        );
        let (tx, rows) = self.db.begin_after(cx, &sql, false, refused).await?;
        drop(tx); // no connection waits for another installation
        let row = rows.iter().find(|row| row.try_get_raw("secret").is_ok()).ok_or_else(Error::not_found)?;
        let Elsewhere { peer, share, capability } = Elsewhere::from_row(row).map_err(from_sqlx)?;
        match self.call(&peer, (Method::GET, &path(share, what)), capability, now).await? {
            (200, body) => Ok(body.into()),
            (404, _) => Err(Error::not_found()),
            (status, _) => Err(unexpected(status)),
        }
    }
}
