//! How people and programs prove who they are: invitations.
//!
//! Whoever presents a token has no tenant yet. So it goes in two steps: [`TenantDb`] says whose a token is, without using it; then a
//! transaction of that tenant, which begins only if the tenant is active, uses it up. Every token that is no good has one answer.

use sqlx::Row;
use sqlx::postgres::PgRow;
use tenancy_core::{Error, ErrorKind, Result, TenantId};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::lease::Lease;

mod invites;
mod token;

pub use token::Token;

impl TenantDb {
    /// The tenant of an invite that can be accepted; `None` for any other text.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: nothing is used up.
    pub async fn find_invite(&self, token: &str) -> Result<Option<TenantId>> {
        let Some(token) = Token::parse(token) else { return Ok(None) };
        let rows = self.ask(&format!("select tenancy.invite_find({}) as tenant_id", token.literal())).await?;
        rows.first().map_or(Ok(None), tenant_of)
    }

    /// Asks before there is a tenant. `sql` is ours: the only part that varies is a digest in hex.
    async fn ask(&self, sql: &str) -> Result<Vec<PgRow>> {
        let inner = self.inner();
        Lease::ask(&inner.pool, sql, inner.scrub).await.map_err(from_sqlx)
    }
}

fn tenant_of(row: &PgRow) -> Result<Option<TenantId>> {
    row.try_get::<Option<Uuid>, _>("tenant_id").map_err(from_sqlx)?.map(TenantId::from_uuid).transpose()
}

/// The one answer to every token that is no good, whatever is wrong with it.
pub(crate) fn no_good() -> Error {
    Error::new(ErrorKind::NotFound, "this link is not valid: it was used, has expired, or never was one")
}
