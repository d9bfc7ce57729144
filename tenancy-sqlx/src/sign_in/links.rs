//! Links to sign in with: sent to members only, and nobody who asks for one learns who is a member.

use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};
use serde_json::{Map, json};
use tenancy_core::outbox::Message;
use tenancy_core::{Actor, AuditEvent, Email, LinkBase, Member, Result};
use uuid::Uuid;

use super::no_good;
use crate::error::from_sqlx;
use crate::token::Token;
use crate::tx::TenantTx;

/// How long a link is good.
const TTL: Duration = Duration::from_secs(15 * 60);
/// The most links of one member that are good at once.
const MOST: i64 = 3;

impl TenantTx {
    /// Sends a link to sign in with, if `email` is a member's: the message `member.sign_in` goes out when this is committed. It is good for
    /// 15 minutes. Of one member at most three are good at once; more are not sent.
    ///
    /// # Errors
    /// As any statement: never because of who is, or is not, a member.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    ///
    /// # Security
    /// How long it takes tells whether there is such a member: whoever asks must not wait for it.
    pub async fn request_sign_in(&mut self, email: &Email, link: &LinkBase, now: DateTime<Utc>) -> Result<()> {
        let tenant = self.tenant_id().as_uuid();
        // Locked, so that links are counted one request after the other.
        let query = sqlx::query_scalar::<_, Uuid>(
            "select id from tenancy.members where tenant_id = $1 and email = $2 and status = 'active' for update",
        );
        let Some(member) = query.bind(tenant).bind(email.as_str()).fetch_optional(&mut *self).await.map_err(from_sqlx)? else {
            return Ok(());
        };
        let query = sqlx::query("delete from tenancy.sign_in_links where tenant_id = $1 and member_id = $2 and expires_at <= $3");
        query.bind(tenant).bind(member).bind(now).execute(&mut *self).await.map_err(from_sqlx)?;
        let query = sqlx::query_scalar::<_, i64>("select count(*) from tenancy.sign_in_links where tenant_id = $1 and member_id = $2");
        if query.bind(tenant).bind(member).fetch_one(&mut *self).await.map_err(from_sqlx)? >= MOST {
            return Ok(());
        }
        let token = Token::new("")?;
        let query = sqlx::query(
            "insert into tenancy.sign_in_links (tenant_id, id, member_id, token_sha256, created_at, expires_at) values ($1, $2, $3, $4, $5, $6)",
        );
        let query = query.bind(tenant).bind(Uuid::now_v7()).bind(member).bind(token.sha256().to_vec());
        query.bind(now.trunc_subsecs(6)).bind((now + TTL).trunc_subsecs(6)).execute(&mut *self).await.map_err(from_sqlx)?;
        let secret = Map::from_iter([("link".to_owned(), link.with(token.expose()).into())]);
        let message = Message::new("member.sign_in", Uuid::now_v7().to_string(), json!({ "to": email }))?.with_secret(secret);
        self.post(&message).await?;
        self.audit(AuditEvent::new(Actor::Visitor, "sign_in.send", member.to_string())).await
    }

    /// The member whose link `token` is of, which is used up; and so are their other links.
    ///
    /// # Errors
    /// [`NotFound`](tenancy_core::ErrorKind::NotFound), in the same words whatever is wrong with the token.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    ///
    /// # Security
    /// Upholds I22.
    pub async fn accept_sign_in(&mut self, token: &str) -> Result<Member> {
        let token = Token::parse("", token).ok_or_else(no_good)?;
        let query = sqlx::query_scalar::<_, Option<Uuid>>("select tenancy.sign_in_take($1)").bind(token.sha256().to_vec());
        let id = query.fetch_one(&mut *self).await.map_err(from_sqlx)?.ok_or_else(no_good)?;
        let member = self.member(id).await?.ok_or_else(no_good)?;
        let query = sqlx::query("delete from tenancy.sign_in_links where tenant_id = $1 and member_id = $2");
        query.bind(self.tenant_id().as_uuid()).bind(id).execute(&mut *self).await.map_err(from_sqlx)?;
        Ok(member)
    }
}
