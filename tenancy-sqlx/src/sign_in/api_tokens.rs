//! API tokens: what a member's programs sign in with.

use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::member::{check_name, check_scopes};
use tenancy_core::{AuditEvent, Error, ErrorKind, Member, Result, Role, TenantContext};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::token::Token;
use crate::tx::TenantTx;

const COLUMNS: &str = "id, member_id, name, role, scopes, created_at, expires_at, last_used_at";

/// What is known of an API token: everything but itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ApiToken {
    /// Which.
    pub id: Uuid,
    /// Whose.
    pub member_id: Uuid,
    /// What it is called.
    pub name: String,
    /// The most that it allows.
    pub role: Role,
    /// The scopes that it allows.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it is good no more.
    pub expires_at: DateTime<Utc>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

impl ApiToken {
    /// What each begins with, so that one that has leaked is found by a search.
    pub const PREFIX: &str = "tnt_";
    /// The longest that one is good.
    pub const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
}

impl FromRow<'_, PgRow> for ApiToken {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let role = row.try_get::<&str, _>("role")?.parse().map_err(|error: Error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(Self {
            id: row.try_get("id")?,
            member_id: row.try_get("member_id")?,
            name: row.try_get("name")?,
            role,
            scopes: row.try_get("scopes")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            last_used_at: row.try_get("last_used_at")?,
        })
    }
}

/// An API token to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewApiToken {
    /// What it is called.
    pub name: String,
    /// The most that it allows.
    pub role: Role,
    /// The scopes that it allows.
    pub scopes: Vec<String>,
    /// How long it is good.
    pub ttl: Duration,
}

impl NewApiToken {
    /// A token without scopes.
    pub fn new(name: impl Into<String>, role: Role, ttl: Duration) -> Self {
        Self { name: name.into(), role, scopes: Vec::new(), ttl }
    }

    /// With these scopes.
    #[must_use]
    pub fn with_scopes(self, scopes: Vec<String>) -> Self {
        Self { scopes, ..self }
    }

    /// Whether `member`, who acts with `role`, may have it: it allows no more than they may do.
    fn permit(&self, member: &Member, role: Role) -> Result<()> {
        check_name(&self.name)?;
        check_scopes(&self.scopes)?;
        if self.ttl < Duration::from_secs(60) || self.ttl > ApiToken::MAX_TTL {
            return Err(Error::invalid("ttl", "must be 1 minute to 365 days"));
        }
        let excess = member.scopes.as_ref().is_some_and(|own| self.scopes.iter().any(|scope| !own.contains(scope)));
        if self.role > role.min(member.role) || excess {
            return Err(Error::new(ErrorKind::Forbidden, "a token allows no more than its member may do"));
        }
        Ok(())
    }
}

impl TenantTx {
    /// Makes an API token of the caller's, and returns it with its text: that can't be had later.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden): the caller is no member with a row, or it would allow more than they may do;
    /// [`Invalid`](ErrorKind::Invalid).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn create_api_token(&mut self, by: &TenantContext, new: &NewApiToken, now: DateTime<Utc>) -> Result<(ApiToken, Token)> {
        let nobody = || Error::new(ErrorKind::Forbidden, "only members of the tenant have tokens");
        let id = self.own_member(by).await?.ok_or_else(nobody)?;
        self.hold_member(id).await?;
        let member = self.member(id).await?.ok_or_else(nobody)?;
        let tenancy_core::Principal::Member { role, .. } = by.principal() else { return Err(nobody()) };
        new.permit(&member, *role)?;
        let token = Token::new(ApiToken::PREFIX)?;
        let sql = format!(
            "insert into tenancy.api_tokens (tenant_id, id, member_id, name, role, scopes, token_sha256, created_at, expires_at)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning {COLUMNS}"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(Uuid::now_v7()).bind(id).bind(&new.name);
        let query = query.bind(new.role.as_str()).bind(&new.scopes).bind(token.sha256().to_vec());
        let query = query.bind(now.trunc_subsecs(6)).bind((now + new.ttl).trunc_subsecs(6));
        let made: ApiToken = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        let detail = json!({ "role": made.role, "scopes": made.scopes, "expires_at": made.expires_at });
        self.audit(AuditEvent::new(by.principal().actor(), "api_token.create", made.id.to_string()).with_detail(detail)).await?;
        Ok((made, token))
    }

    /// At most `limit` API tokens with ids before `before`, the newest first: the caller's own, or for an admin all of the tenant's.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn api_tokens(&mut self, by: &TenantContext, before: Uuid, limit: i64) -> Result<Vec<ApiToken>> {
        let (own, any) = (self.own_member(by).await?, by.require(Role::Admin).is_ok());
        let sql = format!(
            "select {COLUMNS} from tenancy.api_tokens where tenant_id = $1 and id < $2 and ($3 or member_id = $4) order by id desc limit $5"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(any).bind(own).bind(limit);
        query.fetch_all(self).await.map_err(from_sqlx)
    }

    /// Revokes an API token: the caller's own, or for an admin anybody's of the tenant.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), also for a token of somebody else.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn revoke_api_token(&mut self, by: &TenantContext, id: Uuid) -> Result<()> {
        let (own, any) = (self.own_member(by).await?, by.require(Role::Admin).is_ok());
        let query = sqlx::query("delete from tenancy.api_tokens where tenant_id = $1 and id = $2 and ($3 or member_id = $4)");
        let query = query.bind(self.tenant_id().as_uuid()).bind(id).bind(any).bind(own);
        if query.execute(&mut *self).await.map_err(from_sqlx)?.rows_affected() == 0 {
            return Err(Error::not_found());
        }
        self.audit(AuditEvent::new(by.principal().actor(), "api_token.revoke", id.to_string())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_allows_no_more_than_its_member_may_do() {
        let email = "ada@example.com".parse().expect("an address");
        let mut ada = Member::new(Uuid::now_v7(), email, "Ada".to_owned(), Role::Admin, DateTime::UNIX_EPOCH);
        let hour = Duration::from_secs(3600);
        let kind = |new: &NewApiToken, member: &Member, role| new.permit(member, role).err().map(|error| error.kind());
        assert_eq!(kind(&NewApiToken::new("ci", Role::Admin, hour), &ada, Role::Admin), None);
        assert_eq!(kind(&NewApiToken::new("ci", Role::Owner, hour), &ada, Role::Owner), Some(ErrorKind::Forbidden), "the row");
        assert_eq!(kind(&NewApiToken::new("ci", Role::Admin, hour), &ada, Role::Member), Some(ErrorKind::Forbidden), "how they act");
        let scoped = NewApiToken::new("ci", Role::Viewer, hour).with_scopes(vec!["a".to_owned()]);
        assert_eq!(kind(&scoped, &ada, Role::Admin), None);
        ada.scopes = Some(vec!["b".to_owned()]);
        assert_eq!(kind(&scoped, &ada, Role::Admin), Some(ErrorKind::Forbidden));
        for ttl in [Duration::from_secs(59), ApiToken::MAX_TTL + Duration::from_secs(1)] {
            assert_eq!(NewApiToken::new("ci", Role::Viewer, ttl).permit(&ada, Role::Admin).expect_err("refused").field(), Some("ttl"));
        }
        assert_eq!(NewApiToken::new("", Role::Viewer, hour).permit(&ada, Role::Admin).expect_err("refused").field(), Some("name"));
    }
}
