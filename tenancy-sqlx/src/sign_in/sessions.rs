//! Sessions: begun by whoever has proved to be a member, listed and ended by that member.

use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};
use serde::Serialize;
use sqlx::FromRow;
use tenancy_core::{Actor, AuditEvent, Error, Result, Role, TenantContext};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::token::Token;
use crate::tx::TenantTx;

/// The most sessions of one member: the oldest make way.
const MOST: i64 = 20;

/// A member's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[non_exhaustive]
pub struct Session {
    /// Which.
    pub id: Uuid,
    /// When the member signed in.
    pub created_at: DateTime<Utc>,
    /// When they must sign in again, whatever they do.
    pub expires_at: DateTime<Utc>,
}

impl TenantTx {
    /// Begins a session of a member, who has just proved to be one, and returns it with the token that stands for it: it can't be had later.
    /// Sessions that have expired are forgotten, and of more than 20 the oldest.
    ///
    /// # Errors
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound): there is no such member.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn start_session(&mut self, member: Uuid, lasts: Duration, now: DateTime<Utc>) -> Result<(Session, Token)> {
        let tenant = self.tenant_id().as_uuid();
        self.hold_member(member).await?;
        let query = sqlx::query(
            "delete from tenancy.sessions where tenant_id = $1 and member_id = $2 and (expires_at <= $3 or id in
               (select id from tenancy.sessions where tenant_id = $1 and member_id = $2 order by id desc offset $4))",
        );
        query.bind(tenant).bind(member).bind(now).bind(MOST - 1).execute(&mut *self).await.map_err(from_sqlx)?;
        let token = Token::new("")?;
        let query = sqlx::query_as(
            "insert into tenancy.sessions (tenant_id, id, member_id, token_sha256, created_at, expires_at) values ($1, $2, $3, $4, $5, $6)
             returning id, created_at, expires_at",
        );
        let query = query.bind(tenant).bind(Uuid::now_v7()).bind(member).bind(token.sha256().to_vec());
        let query = query.bind(now.trunc_subsecs(6)).bind((now + lasts).trunc_subsecs(6));
        let session: Session = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        let actor = Actor::Member(member.to_string().parse()?);
        self.audit(AuditEvent::new(actor, "session.start", session.id.to_string())).await?;
        Ok((session, token))
    }

    /// The caller's own sessions, the newest first; none for who is no member.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn sessions(&mut self, by: &TenantContext, now: DateTime<Utc>) -> Result<Vec<Session>> {
        let Some(member) = self.own_member(by).await? else { return Ok(Vec::new()) };
        let query = sqlx::query_as(
            "select id, created_at, expires_at from tenancy.sessions where tenant_id = $1 and member_id = $2 and expires_at > $3 order by id desc",
        );
        query.bind(self.tenant_id().as_uuid()).bind(member).bind(now).fetch_all(self).await.map_err(from_sqlx)
    }

    /// Ends a session: the caller's own, or for an admin anybody's of the tenant.
    ///
    /// # Errors
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound), also for a session of somebody else.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn end_session(&mut self, by: &TenantContext, id: Uuid) -> Result<()> {
        let (own, any) = (self.own_member(by).await?, by.require(Role::Admin).is_ok());
        let query = sqlx::query("delete from tenancy.sessions where tenant_id = $1 and id = $2 and ($3 or member_id = $4)");
        let query = query.bind(self.tenant_id().as_uuid()).bind(id).bind(any).bind(own);
        if query.execute(&mut *self).await.map_err(from_sqlx)?.rows_affected() == 0 {
            return Err(Error::not_found());
        }
        self.audit(AuditEvent::new(by.principal().actor(), "session.end", id.to_string())).await
    }

    /// Ends all of the caller's own sessions.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn end_sessions(&mut self, by: &TenantContext) -> Result<()> {
        let Some(member) = self.own_member(by).await? else { return Ok(()) };
        let query = sqlx::query_scalar("delete from tenancy.sessions where tenant_id = $1 and member_id = $2 returning id");
        let ended: Vec<Uuid> = query.bind(self.tenant_id().as_uuid()).bind(member).fetch_all(&mut *self).await.map_err(from_sqlx)?;
        for id in ended {
            self.audit(AuditEvent::new(by.principal().actor(), "session.end", id.to_string())).await?;
        }
        Ok(())
    }
}
