//! Federated shares: offered by one tenant's admin, accepted by the other's, ended by either.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use tenancy_core::share::{NewShare, Perms, ResourceRef, Share, ShareState};
use tenancy_core::{Error, Result, Role, Subject, TenantContext, TenantId};
use uuid::Uuid;

use super::{admin, audience, count, literal, refused};
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::{SystemTx, TenantTx};

/// What has run out says so, though nobody was there to end it.
const COLUMNS: &str = "id, owner_tenant_id, target_tenant_id, resource_type, resource_id, perms, only_roles, only_subjects,
    case when state in ('offered', 'active') and expires_at <= clock_timestamp() then 'expired' else state end as state,
    created_at, answered_at, ended_at, expires_at, version";

/// Which side of its shares a tenant looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What it shares with others.
    Outgoing,
    /// What others share with it.
    Incoming,
}

/// What a share lets this transaction do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Granted {
    /// Which share.
    pub share: Uuid,
    /// Whose the resource is.
    pub owner: TenantId,
    /// What.
    pub resource: ResourceRef,
    /// What may be done with it.
    pub perms: Perms,
}

fn decode(error: Error) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

fn resource(row: &PgRow) -> sqlx::Result<ResourceRef> {
    ResourceRef::new(row.try_get("resource_type")?, row.try_get("resource_id")?).map_err(decode)
}

struct Found(Share);

impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let tenant = |name| row.try_get(name).and_then(|id| TenantId::from_uuid(id).map_err(decode));
        let roles: Option<Vec<String>> = row.try_get("only_roles")?;
        let subjects: Option<Vec<String>> = row.try_get("only_subjects")?;
        let perms: Perms = row.try_get::<&str, _>("perms")?.parse().map_err(decode)?;
        let mut of = NewShare::new(resource(row)?, tenant("target_tenant_id")?, perms);
        of.only_roles = roles.map(|all| all.iter().map(|role| role.parse::<Role>()).collect::<Result<_>>()).transpose().map_err(decode)?;
        of.only_subjects =
            subjects.map(|all| all.iter().map(|one| one.parse::<Subject>()).collect::<Result<_>>()).transpose().map_err(decode)?;
        of.expires_at = row.try_get("expires_at")?;
        let state: ShareState = row.try_get::<&str, _>("state")?.parse().map_err(decode)?;
        let mut share = Share::new(row.try_get("id")?, of, tenant("owner_tenant_id")?, state, row.try_get("created_at")?);
        share.answered_at = row.try_get("answered_at")?;
        share.ended_at = row.try_get("ended_at")?;
        share.version = row.try_get::<i64, _>("version")?.try_into().unwrap_or_default();
        Ok(Self(share))
    }
}

impl TenantTx {
    /// Offers a resource of this tenant to another one. Both audit logs have it, and the other's admins are told.
    ///
    /// # Errors
    /// - [`Forbidden`](tenancy_core::ErrorKind::Forbidden) unless `by` is an admin, and platform and tenant have sharing switched on.
    /// - [`NotFound`](tenancy_core::ErrorKind::NotFound): this tenant has no such resource.
    /// - [`Invalid`](tenancy_core::ErrorKind::Invalid): `target` can't be offered anything, for whatever reason; a type or time that
    ///   the policy does not allow.
    /// - [`Conflict`](tenancy_core::ErrorKind::Conflict): it is offered to that tenant, or shared with it, already.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn offer_share(&mut self, by: &TenantContext, new: &NewShare) -> Result<Share> {
        admin(self, by)?;
        new.check()?;
        let actor = by.principal().actor();
        let sql = format!("select {COLUMNS} from tenancy.share_offer($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(Uuid::now_v7())
            .bind(new.resource.kind())
            .bind(new.resource.id())
            .bind(new.target.as_uuid())
            .bind(new.perms.as_str())
            .bind(new.only_roles.as_ref().map(|roles| roles.iter().map(|role| role.as_str()).collect::<Vec<_>>()))
            .bind(new.only_subjects.as_ref().map(|all| all.iter().map(|one| one.as_str().to_owned()).collect::<Vec<_>>()))
            .bind(new.expires_at)
            .bind(actor.kind())
            .bind(actor.subject().map(|subject| subject.as_str().to_owned()))
            .bind(by.request_id());
        let Found(share) = query.fetch_one(self).await.map_err(refused)?;
        count::moved(&share);
        Ok(share)
    }

    /// Accepts an offer: from the commit on, the resource shows.
    ///
    /// # Errors
    /// [`Forbidden`](tenancy_core::ErrorKind::Forbidden) unless `by` is an admin and the tenant accepts shares;
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound); [`Conflict`](tenancy_core::ErrorKind::Conflict) for one that is no offer to this tenant.
    /// Accepted again, it stays accepted.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn accept_share(&mut self, by: &TenantContext, share: Uuid) -> Result<Share> {
        self.move_share(by, share, "accept").await
    }

    /// Declines an offer.
    ///
    /// # Errors
    /// Those of [`accept_share`](TenantTx::accept_share).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn decline_share(&mut self, by: &TenantContext, share: Uuid) -> Result<Share> {
        self.move_share(by, share, "decline").await
    }

    /// Ends a share, or takes an offer back: from the commit on, the next statement of whoever reads it shows nothing.
    ///
    /// # Errors
    /// [`Forbidden`](tenancy_core::ErrorKind::Forbidden) unless `by` is an admin; [`NotFound`](tenancy_core::ErrorKind::NotFound). Ended again, it
    /// stays as it ended.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn end_share(&mut self, by: &TenantContext, share: Uuid) -> Result<Share> {
        self.move_share(by, share, "end").await
    }

    async fn move_share(&mut self, by: &TenantContext, share: Uuid, act: &str) -> Result<Share> {
        admin(self, by)?;
        let actor = by.principal().actor();
        let sql = format!("select {COLUMNS} from tenancy.share_move($1, $2, $3, $4, $5)");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(share)
            .bind(act)
            .bind(actor.kind())
            .bind(actor.subject().map(|subject| subject.as_str().to_owned()))
            .bind(by.request_id());
        let Found(share) = query.fetch_one(self).await.map_err(refused)?;
        count::moved(&share);
        Ok(share)
    }

    /// A share of which this tenant is one side.
    ///
    /// # Errors
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn share(&mut self, id: Uuid) -> Result<Share> {
        let sql = format!("select {COLUMNS} from tenancy.cross_tenant_shares where id = $1 and $2 in (owner_tenant_id, target_tenant_id)");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).bind(self.tenant_id().as_uuid());
        query.fetch_one(self).await.map(|Found(share)| share).map_err(from_sqlx)
    }

    /// At most `limit` shares with ids before `before`, the newest first, ended ones too.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn shares(&mut self, side: Direction, before: Uuid, limit: i64) -> Result<Vec<Share>> {
        let column = match side {
            Direction::Outgoing => "owner_tenant_id",
            Direction::Incoming => "target_tenant_id",
        };
        let sql = format!("select {COLUMNS} from tenancy.cross_tenant_shares where {column} = $1 and id < $2 order by id desc limit $3");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(limit);
        Ok(query.fetch_all(self).await.map_err(from_sqlx)?.into_iter().map(|Found(share)| share).collect())
    }
}

impl SystemTx {
    /// At most `limit` shares with ids before `before` of which `tenant` is one side, the newest first, ended ones too.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn shares(&mut self, tenant: TenantId, before: Uuid, limit: i64) -> Result<Vec<Share>> {
        let sql = format!(
            "select {COLUMNS} from tenancy.cross_tenant_shares where $1 in (owner_tenant_id, target_tenant_id) and id < $2 order by id desc limit $3"
        );
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.as_uuid()).bind(before).bind(limit);
        Ok(query.fetch_all(self).await.map_err(from_sqlx)?.into_iter().map(|Found(share)| share).collect())
    }
}

impl TenantDb {
    /// Begins a transaction that sees one share in `tenancy_views`, and nothing else there, and may write through it what its perms and
    /// the tables let it. The access, or its denial, is in both tenants' audit logs first.
    ///
    /// # Errors
    /// Those of [`begin`](TenantDb::begin); [`NotFound`](tenancy_core::ErrorKind::NotFound) if the share shows nothing to `cx`, for whatever
    /// reason. One that ends later shows nothing from the next statement on.
    ///
    /// # Cancel safety
    /// As [`begin`](TenantDb::begin); the audit events may stay.
    pub async fn begin_shared(&self, cx: &TenantContext, share: Uuid) -> Result<(TenantTx, Granted)> {
        let opened = self.open_share(cx, share, false).await;
        count::opened("share", &opened);
        opened
    }

    /// [`begin_shared`](TenantDb::begin_shared), in a READ ONLY transaction: drop it when done.
    ///
    /// # Errors
    /// As `begin_shared`.
    ///
    /// # Cancel safety
    /// As `begin_shared`.
    pub async fn read_shared(&self, cx: &TenantContext, share: Uuid) -> Result<(TenantTx, Granted)> {
        let opened = self.open_share(cx, share, true).await;
        count::opened("share", &opened);
        opened
    }

    /// [`read`](TenantDb::read), with all that is shared with whoever acts in `cx` showing in `tenancy_views`: for
    /// [lists](super::own_and_shared).
    ///
    /// # Errors
    /// As [`read`](TenantDb::read).
    ///
    /// # Cancel safety
    /// As [`read`](TenantDb::read).
    pub async fn read_with_shares(&self, cx: &TenantContext) -> Result<TenantTx> {
        self.bind_and(cx, "BEGIN READ ONLY", Some(&audience(cx)), true).await
    }

    async fn open_share(&self, cx: &TenantContext, share: Uuid, read_only: bool) -> Result<(TenantTx, Granted)> {
        let also = format!("SET LOCAL tenancy.share = '{share}'; {}", audience(cx));
        let begin = self.begin_text(cx, if read_only { "BEGIN READ ONLY" } else { "BEGIN" }, Some(&also));
        let actor = cx.principal().actor();
        let sql = format!(
            "SELECT owner_tenant_id, resource_type, resource_id, perms FROM tenancy.share_open('{share}', '{}', {}, {}, '{}'); COMMIT; {begin}",
            actor.kind(),
            literal(actor.subject().map_or("", Subject::as_str)),
            literal(match cx.principal() {
                tenancy_core::Principal::Member { role, .. } => role.as_str(),
                _ => "",
            }),
            cx.request_id(),
        );
        // One message: opening costs no round trip more than any other transaction.
        let (tx, rows) = self.begin_after(cx, &sql, read_only, refused).await?;
        let row = rows.iter().find(|row| row.try_get_raw("resource_id").is_ok()).ok_or_else(Error::not_found)?;
        let read = || -> sqlx::Result<Granted> {
            Ok(Granted {
                share,
                owner: row.try_get("owner_tenant_id").and_then(|id| TenantId::from_uuid(id).map_err(decode))?,
                resource: resource(row)?,
                perms: row.try_get::<&str, _>("perms")?.parse().map_err(decode)?,
            })
        };
        let granted = read().map_err(from_sqlx)?;
        Ok((tx, granted))
    }
}
