//! Operators inside a tenant: for a while, for a reason that the tenant reads, and in its own audit log.
//!
//! The token is looked up at each request. What goes on under it is a [`TenantContext`] of an
//! [`Impersonator`](tenancy_core::Principal::Impersonator), [read-only](TenantContext::read_only) unless an admin asked for more.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::{AssertSqlSafe, FromRow};
use tenancy_core::{
    Actor, AuditEvent, Error, ErrorKind, NewImpersonation, Operator, OperatorRole, Principal, Result, Subject, TenantContext, TenantId,
};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::token::Token;
use crate::tx::{SystemTx, TenantTx};

const COLUMNS: &str = "tenant_id, id, operator_id, operator_name, reason, write, created_at, expires_at, ended_at, ended_by";

/// An operator's visit to a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[non_exhaustive]
pub struct Impersonation {
    /// Which tenant.
    pub tenant_id: Uuid,
    /// Which visit.
    pub id: Uuid,
    /// By whom; `None` is whoever has the bootstrap credential.
    pub operator_id: Option<Uuid>,
    /// Their name at that time.
    pub operator_name: String,
    /// Why.
    pub reason: String,
    /// Whether they may change anything.
    pub write: bool,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it ends by itself.
    pub expires_at: DateTime<Utc>,
    /// When somebody ended it.
    pub ended_at: Option<DateTime<Utc>>,
    /// Who did.
    pub ended_by: Option<String>,
}

impl Impersonation {
    /// Whom the token is of: what a context under it has as its principal.
    ///
    /// # Errors
    /// None for what this kit wrote.
    pub fn principal(&self) -> Result<Principal> {
        let operator: Subject = self.operator_id.map_or_else(|| Operator::BOOTSTRAP.to_owned(), |id| id.to_string()).parse()?;
        Ok(NewImpersonation::principal(operator, self.write))
    }

    /// An event of it, for the tenant's log.
    pub fn event(&self, action: &str) -> Result<AuditEvent> {
        Ok(AuditEvent::new(self.principal()?.actor(), action, self.id.to_string()))
    }
}

impl TenantDb {
    /// The visit that `token` is for, if it may go on now: nobody has ended it, its time is not over, the tenant still allows it, and its
    /// operator is still one who may.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// Upholds I29. Whether the tenant is active is for whoever establishes its context.
    pub async fn impersonation_by_token(&self, token: &str) -> Result<Option<Impersonation>> {
        let Some(token) = Token::parse(Token::IMPERSONATION, token) else { return Ok(None) };
        let rows = self.inner().catalog.ask(format!("select {COLUMNS} from tenancy.find_impersonation({})", token.literal())).await?;
        rows.first().map(|row| Impersonation::from_row(row).map_err(from_sqlx)).transpose()
    }
}

impl SystemTx {
    /// Lets an operator into a tenant, with an event in its log, and gives the token of it: it can't be had later. `by` is the operator;
    /// `None` is whoever has the bootstrap credential.
    ///
    /// # Errors
    /// Those of [`NewImpersonation::permit`]; [`Forbidden`](ErrorKind::Forbidden) if the tenant does not allow it;
    /// [`TenantInactive`](ErrorKind::TenantInactive), [`NotFound`](ErrorKind::NotFound); [`Retry`](ErrorKind::Retry) if the operator was
    /// changed since they were looked up.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn start_impersonation(
        &mut self,
        tenant: TenantId,
        by: Option<&Operator>,
        wish: &NewImpersonation,
    ) -> Result<(Impersonation, Token)> {
        wish.permit(by.map_or(OperatorRole::Admin, |operator| operator.role))?;
        // Locked: nobody is let in behind a suspension.
        let query = "select t.status, coalesce((select c.allowed from tenancy.impersonation_consent c where c.tenant_id = t.id), true)
                       from tenancy.tenants t where t.id = $1 and t.status <> 'erased' for share of t";
        let found: Option<(String, bool)> =
            sqlx::query_as(query).bind(tenant.as_uuid()).fetch_optional(&mut *self).await.map_err(from_sqlx)?;
        match found {
            None => return Err(Error::not_found()),
            Some((status, _)) if status != "active" => {
                return Err(Error::new(ErrorKind::TenantInactive, format!("the tenant is {status}")));
            }
            Some((_, false)) => return Err(Error::new(ErrorKind::Forbidden, "the tenant does not let operators in")),
            Some(_) => {}
        }
        // Whoever was changed since their token was looked up is asked to come again: it may be another role, or another token.
        if let Some(operator) = by {
            let query = "select version from tenancy.operators where id = $1 for share";
            let version: Option<i64> = sqlx::query_scalar(query).bind(operator.id).fetch_optional(&mut *self).await.map_err(from_sqlx)?;
            if version.and_then(|version| u64::try_from(version).ok()) != Some(operator.version) {
                return Err(Error::new(ErrorKind::Retry, "the operator was changed meanwhile: ask again"));
            }
        }
        let token = Token::new(Token::IMPERSONATION)?;
        let sql = format!(
            "insert into tenancy.impersonations (tenant_id, id, operator_id, operator_name, reason, write, token_sha256, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, clock_timestamp() + make_interval(mins => $8)) returning {COLUMNS}"
        );
        let made: Impersonation = sqlx::query_as(AssertSqlSafe(sql))
            .bind(tenant.as_uuid())
            .bind(Uuid::now_v7())
            .bind(by.map(|operator| operator.id))
            .bind(by.map_or(Operator::BOOTSTRAP, |operator| &operator.name))
            .bind(&wish.reason)
            .bind(wish.write)
            .bind(token.sha256().to_vec())
            .bind(i32::from(wish.minutes))
            .fetch_one(&mut *self)
            .await
            .map_err(from_sqlx)?;
        let detail = json!({ "operator": made.operator_name, "reason": made.reason, "write": made.write, "expires_at": made.expires_at });
        self.audit(&made.event("impersonation.start")?.with_tenant(tenant).with_detail(detail)).await?;
        Ok((made, token))
    }

    /// At most `limit` visits to a tenant with ids before `before`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn impersonations(&mut self, tenant: TenantId, before: Uuid, limit: i64) -> Result<Vec<Impersonation>> {
        let sql = format!("select {COLUMNS} from tenancy.impersonations where tenant_id = $1 and id < $2 order by id desc limit $3");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant.as_uuid()).bind(before).bind(limit);
        query.fetch_all(self).await.map_err(from_sqlx)
    }

    /// Ends a visit: its token is refused from the next request on.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is none of this id that nobody has ended.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn end_impersonation(&mut self, tenant: TenantId, id: Uuid) -> Result<()> {
        let by = self.actor().clone();
        let query = "update tenancy.impersonations set ended_at = clock_timestamp(), ended_by = $3 where tenant_id = $1 and id = $2 and ended_at is null";
        let query = sqlx::query(query).bind(tenant.as_uuid()).bind(id).bind(by.to_string());
        if query.execute(&mut *self).await.map_err(from_sqlx)?.rows_affected() == 0 {
            return Err(Error::not_found());
        }
        self.audit(&end(by, id).with_tenant(tenant)).await
    }
}

impl TenantTx {
    /// At most `limit` visits of operators with ids before `before`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn impersonations(&mut self, before: Uuid, limit: i64) -> Result<Vec<Impersonation>> {
        let sql = format!("select {COLUMNS} from tenancy.impersonations where tenant_id = $1 and id < $2 order by id desc limit $3");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(limit);
        query.fetch_all(self).await.map_err(from_sqlx)
    }

    /// Ends a visit: its token is refused from the next request on.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is none of this id that nobody has ended.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn end_impersonation(&mut self, by: &TenantContext, id: Uuid) -> Result<()> {
        let by = by.principal().actor();
        let query = sqlx::query_scalar("select tenancy.impersonation_end($1, $2)").bind(id).bind(by.to_string());
        if !query.fetch_one(&mut *self).await.map_err(from_sqlx)? {
            return Err(Error::not_found());
        }
        self.audit(end(by, id)).await
    }

    /// Whether this tenant lets operators in.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn allows_impersonation(&mut self) -> Result<bool> {
        let query = sqlx::query_scalar("select allowed from tenancy.impersonation_consent where tenant_id = $1");
        let allowed = query.bind(self.tenant_id().as_uuid()).fetch_optional(self).await.map_err(from_sqlx)?;
        Ok(allowed.unwrap_or(true))
    }

    /// Says whether this tenant lets operators in. Those who are inside are out at their next request.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn allow_impersonation(&mut self, by: &TenantContext, allowed: bool) -> Result<()> {
        let query = sqlx::query(
            "insert into tenancy.impersonation_consent (tenant_id, allowed) values ($1, $2)
             on conflict (tenant_id) do update set allowed = excluded.allowed, changed_at = now()",
        );
        query.bind(self.tenant_id().as_uuid()).bind(allowed).execute(&mut *self).await.map_err(from_sqlx)?;
        let action = if allowed { "impersonation.allow" } else { "impersonation.forbid" };
        let target = self.tenant_id().to_string();
        self.audit(AuditEvent::new(by.principal().actor(), action, target)).await
    }
}

fn end(by: Actor, id: Uuid) -> AuditEvent {
    AuditEvent::new(by, "impersonation.end", id.to_string())
}
