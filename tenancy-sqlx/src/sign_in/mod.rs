//! How people and programs prove who they are.
//!
//! | what | who has it | good for |
//! |---|---|---|
//! | [invite](TenantTx::invite) | whoever reads mail at the address | becoming a member, once |
//! | [link](TenantTx::request_sign_in) | a member, by mail | signing in, once |
//! | [session](TenantTx::start_session) | a member's browser, as a cookie | acting as the member until it expires or is ended |
//! | [API token](TenantTx::create_api_token) | a member's program | the same, at most with the token's role and scopes |
//!
//! Whoever presents a token has no tenant yet. So it goes in two steps: [`TenantDb`] says whose a token is, without using it; then a
//! transaction of that tenant, which begins only if the tenant is active, does the rest. Every token that is no good has one answer.
//!
//! # Security
//! Neither a session nor an API token says what its member may do: the member's row does, at each request
//! ([`member_standing`](TenantTx::member_standing)).

use std::collections::BTreeSet;

use sqlx::Row;
use sqlx::postgres::PgRow;
use tenancy_core::{Error, ErrorKind, Principal, Result, Role, Standing, TenantContext, TenantId};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::lease::Lease;
use crate::tx::TenantTx;

mod api_tokens;
mod invites;
mod links;
mod sessions;

pub use crate::token::Token;
pub use api_tokens::{ApiToken, NewApiToken};
pub use sessions::Session;

/// Who a session's cookie or an API token is of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignedIn {
    /// Which session or API token.
    pub id: Uuid,
    /// Which of the two.
    pub with: Credential,
    /// Whose.
    pub tenant_id: TenantId,
    /// Whose: their id is their subject.
    pub member_id: Uuid,
    /// The most that it allows; the member's row may allow less.
    pub role: Role,
    /// The scopes that it allows; the member's row may allow fewer.
    pub scopes: BTreeSet<String>,
}

/// What somebody signed in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// A session.
    Session,
    /// An API token.
    ApiToken,
}

impl SignedIn {
    /// Who acts, before the member's row is asked.
    ///
    /// # Errors
    /// None for an id: it is a subject.
    pub fn principal(&self) -> Result<Principal> {
        Ok(Principal::Member { subject: self.member_id.to_string().parse()?, role: self.role })
    }
}

impl TenantDb {
    /// The tenant of an invite that can be accepted; `None` for any other text.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: nothing is used up.
    pub async fn find_invite(&self, token: &str) -> Result<Option<TenantId>> {
        self.find("", token, "tenancy.invite_find({}) as found (tenant_id)", tenant_of).await.map(Option::flatten)
    }

    /// The tenant of a link that can be signed in with; `None` for any other text.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: nothing is used up.
    pub async fn find_sign_in(&self, token: &str) -> Result<Option<TenantId>> {
        self.find("", token, "tenancy.sign_in_find({}) as found (tenant_id)", tenant_of).await.map(Option::flatten)
    }

    /// Whose the session is that `token` stands for; `None` for any other text. One look-up by an index, outside of any transaction.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// Upholds I23. Hold the answer against [`member_standing`](TenantTx::member_standing), and refuse who is unknown there.
    pub async fn find_session(&self, token: &str) -> Result<Option<SignedIn>> {
        let read = |row: &PgRow| signed_in(row, Credential::Session, Role::Owner, BTreeSet::new());
        self.find("", token, "tenancy.session_find({})", read).await
    }

    /// Whose the API token is; `None` for any other text. At most once a minute its last use is noted.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// As [`find_session`](TenantDb::find_session).
    pub async fn find_api_token(&self, token: &str) -> Result<Option<SignedIn>> {
        let read = |row: &PgRow| {
            let role = row.try_get::<&str, _>("role").map_err(from_sqlx)?.parse()?;
            let scopes: Vec<String> = row.try_get("scopes").map_err(from_sqlx)?;
            signed_in(row, Credential::ApiToken, role, scopes.into_iter().collect())
        };
        self.find(ApiToken::PREFIX, token, "tenancy.api_token_find({})", read).await
    }

    /// Asks before there is a tenant.
    async fn find<T>(&self, prefix: &str, token: &str, from: &'static str, read: impl Fn(&PgRow) -> Result<T>) -> Result<Option<T>> {
        let Some(token) = Token::parse(prefix, token) else { return Ok(None) };
        let inner = self.inner();
        // The text is ours: what varies is a digest in hex.
        let sql = format!("select * from {}", from.replace("{}", &token.literal()));
        let rows = Lease::ask(&inner.pool, &sql, inner.scrub).await.map_err(from_sqlx)?;
        rows.first().map(read).transpose()
    }
}

impl TenantTx {
    /// The member as whom `by` acts: whom a session or an API token can be of.
    async fn own_member(&mut self, by: &TenantContext) -> Result<Option<Uuid>> {
        self.same_tenant(by)?;
        let Principal::Member { subject, .. } = by.principal() else { return Ok(None) };
        Ok(match self.member_standing(subject).await? {
            Standing::Active { id, .. } => Some(id),
            _ => None,
        })
    }

    /// Fails unless the member is there, who then can't be removed before this transaction ends.
    async fn hold_member(&mut self, id: Uuid) -> Result<()> {
        let query = sqlx::query("select from tenancy.members where tenant_id = $1 and id = $2 and status = 'active' for share");
        let found = query.bind(self.tenant_id().as_uuid()).bind(id).fetch_optional(self).await.map_err(from_sqlx)?;
        found.map(drop).ok_or_else(Error::not_found)
    }
}

fn tenant_of(row: &PgRow) -> Result<Option<TenantId>> {
    row.try_get::<Option<Uuid>, _>("tenant_id").map_err(from_sqlx)?.map(TenantId::from_uuid).transpose()
}

fn signed_in(row: &PgRow, with: Credential, role: Role, scopes: BTreeSet<String>) -> Result<SignedIn> {
    let uuid = |column: &str| row.try_get::<Uuid, _>(column).map_err(from_sqlx);
    Ok(SignedIn { id: uuid("id")?, with, tenant_id: TenantId::from_uuid(uuid("tenant_id")?)?, member_id: uuid("member_id")?, role, scopes })
}

/// The one answer to every link that is no good, whatever is wrong with it.
pub fn no_good() -> Error {
    Error::new(ErrorKind::NotFound, "this link is not valid: it was used, has expired, or never was one")
}
