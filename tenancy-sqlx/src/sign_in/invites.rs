//! Invitations: sent, sent again, revoked and accepted, each with its audit event, in the caller's transaction.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};
use serde_json::{Map, json};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::invite::check_ttl;
use tenancy_core::outbox::Message;
use tenancy_core::quota::Metric;
use tenancy_core::{
    Actor, AuditEvent, Error, ErrorKind, Invite, LinkBase, Member, NewInvite, NewMember, Principal, Result, Role, TenantContext, TenantId,
    TenantStatus,
};
use uuid::Uuid;

use super::no_good;
use crate::error::from_sqlx;
use crate::members::{taken, told};
use crate::token::Token;
use crate::tx::{SystemTx, TenantTx, Tx};

const COLUMNS: &str = "id, email, name, role, scopes, created_at, expires_at";

struct Sent(Invite);

impl FromRow<'_, PgRow> for Sent {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
        let email = row.try_get::<&str, _>("email")?.parse().map_err(decode)?;
        let role = row.try_get::<&str, _>("role")?.parse().map_err(decode)?;
        let (created_at, expires_at) = (row.try_get("created_at")?, row.try_get("expires_at")?);
        let mut invite = Invite::new(row.try_get("id")?, email, row.try_get("name")?, role, created_at, expires_at);
        invite.scopes = row.try_get("scopes")?;
        Ok(Self(invite))
    }
}

impl TenantTx {
    /// Invites somebody: the message `member.invited` with the link goes out when this is committed. One that has expired makes way for
    /// another to the same address. A seat is taken when it is accepted, not before.
    ///
    /// # Errors
    /// Those of [`NewInvite::permit`]; [`Conflict`](ErrorKind::Conflict): the address is a member's, or was invited already.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn invite(&mut self, by: &TenantContext, new: &NewInvite, now: DateTime<Utc>) -> Result<Invite> {
        self.same_tenant(by)?;
        new.permit(by.principal())?;
        let (tenant, token) = (self.tenant_id(), Token::new("")?);
        let invite = insert(self, tenant, new, &token, now).await?;
        let message = self.message(by, &invite, &new.link, &token).await?;
        self.post(&message).await?;
        self.audit(event(by.principal().actor(), "invite.send", &invite)).await?;
        Ok(invite)
    }

    /// At most `limit` invites with ids before `before`, the newest first; also those that have expired.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn invites(&mut self, before: Uuid, limit: i64) -> Result<Vec<Invite>> {
        let sql = format!("select {COLUMNS} from tenancy.invites where tenant_id = $1 and id < $2 order by id desc limit $3");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(limit);
        Ok(query.fetch_all(self).await.map_err(from_sqlx)?.into_iter().map(|Sent(invite)| invite).collect())
    }

    /// Sends an invite again, good for `ttl` from `now`: with a new token, so that the former link is good no more.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), those of [`Invite::permit_change`], [`Invalid`](ErrorKind::Invalid).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn resend_invite(
        &mut self,
        by: &TenantContext,
        id: Uuid,
        link: &LinkBase,
        ttl: Duration,
        now: DateTime<Utc>,
    ) -> Result<Invite> {
        check_ttl(ttl)?;
        self.lock_invite(by, id).await?;
        let token = Token::new("")?;
        let sql =
            format!("update tenancy.invites set token_sha256 = $3, expires_at = $4 where tenant_id = $1 and id = $2 returning {COLUMNS}");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id);
        let query = query.bind(token.sha256().to_vec()).bind((now + ttl).trunc_subsecs(6));
        let Sent(invite) = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        let message = self.message(by, &invite, link, &token).await?;
        self.post(&message).await?;
        self.audit(event(by.principal().actor(), "invite.resend", &invite)).await?;
        Ok(invite)
    }

    /// Revokes an invite: its link is good no more.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), those of [`Invite::permit_change`].
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn revoke_invite(&mut self, by: &TenantContext, id: Uuid) -> Result<()> {
        let invite = self.lock_invite(by, id).await?;
        let query = sqlx::query("delete from tenancy.invites where tenant_id = $1 and id = $2");
        query.bind(self.tenant_id().as_uuid()).bind(id).execute(&mut *self).await.map_err(from_sqlx)?;
        self.audit(event(by.principal().actor(), "invite.revoke", &invite)).await
    }

    /// Makes a member of whoever has the token of an invite of this tenant, and uses the invite up. The member takes a seat of
    /// [`Metric::USERS`]. Call it last before the commit, as [`add_member`](TenantTx::add_member).
    ///
    /// # Errors
    /// - [`NotFound`](ErrorKind::NotFound), in the same words whatever is wrong with the token.
    /// - [`QuotaExceeded`](ErrorKind::QuotaExceeded), [`Conflict`](ErrorKind::Conflict) (the address has become a member's meanwhile): the
    ///   invite stays, and the transaction can go on.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    ///
    /// # Security
    /// Upholds I22. Whoever acts is the new member: the token is all that they prove.
    pub async fn accept_invite(&mut self, token: &str) -> Result<Member> {
        let token = Token::parse("", token).ok_or_else(no_good)?;
        let mut part = self.savepoint().await?;
        let query = sqlx::query("select id, email, name, role, scopes from tenancy.invite_take($1)").bind(token.sha256().to_vec());
        let row = query.fetch_optional(&mut *part).await.map_err(from_sqlx)?.ok_or_else(no_good)?;
        let (invite, new) = invited(&row).map_err(from_sqlx)?;
        let member = part.insert_member(&new).await?;
        let actor = Actor::Member(member.id.to_string().parse()?);
        let detail = json!({ "role": member.role, "scopes": member.scopes, "version": member.version, "invite": invite });
        part.audit(AuditEvent::new(actor, "member.add", member.id.to_string()).with_detail(detail)).await?;
        part.post(&told("member.added", &member)?).await?;
        part.grow(Metric::USERS, 1).await?;
        part.release().await?;
        Ok(member)
    }

    async fn lock_invite(&mut self, by: &TenantContext, id: Uuid) -> Result<Invite> {
        self.same_tenant(by)?;
        let sql = format!("select {COLUMNS} from tenancy.invites where tenant_id = $1 and id = $2 for update");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id);
        let Sent(invite) = query.fetch_optional(&mut *self).await.map_err(from_sqlx)?.ok_or_else(Error::not_found)?;
        invite.permit_change(by.principal())?;
        Ok(invite)
    }

    /// The mail, in the name of the member who invites.
    async fn message(&mut self, by: &TenantContext, invite: &Invite, link: &LinkBase, token: &Token) -> Result<Message> {
        let inviter = self.name_of(by.principal()).await?;
        message(invite, link, token, inviter.as_deref())
    }

    /// What a member is called, for mail in their name.
    pub(crate) async fn name_of(&mut self, who: &Principal) -> Result<Option<String>> {
        let Principal::Member { subject, .. } = who else { return Ok(None) };
        let query = sqlx::query_scalar(
            "select name from tenancy.members where tenant_id = $1 and status = 'active' and (id::text = $2 or subject = $2) limit 1",
        );
        query.bind(self.tenant_id().as_uuid()).bind(subject.as_str()).fetch_optional(self).await.map_err(from_sqlx)
    }
}

impl SystemTx {
    /// Invites a tenant's owner, also before the tenant is active: mail to it waits until it is, and so does whoever accepts.
    ///
    /// # Errors
    /// - [`Invalid`](ErrorKind::Invalid): those of [`NewInvite::check`], and another role than owner.
    /// - [`NotFound`](ErrorKind::NotFound): no such tenant; [`Conflict`](ErrorKind::Conflict): it is archived or erased, or the address is a
    ///   member's or was invited already.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn invite_owner(&mut self, tenant: TenantId, new: &NewInvite, now: DateTime<Utc>) -> Result<Invite> {
        if new.role != Role::Owner {
            return Err(Error::invalid("role", "must be owner"));
        }
        new.check()?;
        // Locked: an erasure that begins meanwhile finds the invite.
        let query = sqlx::query_scalar::<_, String>("select status from tenancy.tenants where id = $1 for share").bind(tenant.as_uuid());
        let status: TenantStatus = query.fetch_optional(&mut *self).await.map_err(from_sqlx)?.ok_or_else(Error::not_found)?.parse()?;
        match status {
            TenantStatus::Erased => return Err(Error::not_found()),
            TenantStatus::Archived => return Err(Error::new(ErrorKind::Conflict, "the tenant is archived")),
            _ => {}
        }
        let token = Token::new("")?;
        let invite = insert(self, tenant, new, &token, now).await?;
        self.post(Some(tenant), &message(&invite, &new.link, &token, None)?).await?;
        self.audit(&event(self.actor().clone(), "invite.send", &invite).with_tenant(tenant)).await?;
        Ok(invite)
    }
}

async fn insert<S: Send + fmt::Debug>(
    tx: &mut Tx<S>,
    tenant: TenantId,
    new: &NewInvite,
    token: &Token,
    now: DateTime<Utc>,
) -> Result<Invite> {
    let member = new.member();
    let query = sqlx::query_scalar("select exists (select from tenancy.members where tenant_id = $1 and email = $2 and status = 'active')");
    if query.bind(tenant.as_uuid()).bind(member.email.as_str()).fetch_one(&mut *tx).await.map_err(from_sqlx)? {
        return Err(taken());
    }
    let sql = format!(
        "insert into tenancy.invites as i (tenant_id, id, token_sha256, email, name, role, scopes, created_at, expires_at)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         on conflict (tenant_id, email) do update set id = excluded.id, token_sha256 = $3, name = excluded.name,
           role = excluded.role, scopes = excluded.scopes, created_at = excluded.created_at, expires_at = excluded.expires_at
          where i.expires_at <= excluded.created_at returning {COLUMNS}"
    );
    let query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(tenant.as_uuid())
        .bind(Uuid::now_v7())
        .bind(token.sha256().to_vec())
        .bind(member.email.as_str())
        .bind(&member.name)
        .bind(member.role.as_str())
        .bind(&member.scopes)
        .bind(now.trunc_subsecs(6))
        .bind((now + new.ttl).trunc_subsecs(6));
    let sent: Option<Sent> = query.fetch_optional(tx).await.map_err(from_sqlx)?;
    let open = || Error::new(ErrorKind::Conflict, "this address was invited already: send that invite again, or revoke it");
    sent.map(|Sent(invite)| invite).ok_or_else(open)
}

fn message(invite: &Invite, link: &LinkBase, token: &Token, inviter: Option<&str>) -> Result<Message> {
    let payload = json!({ "to": invite.email, "role": invite.role, "inviter": inviter });
    let secret = Map::from_iter([("link".to_owned(), link.with(token.expose()).into())]);
    Ok(Message::new("member.invited", Uuid::now_v7().to_string(), payload)?.with_secret(secret))
}

fn invited(row: &PgRow) -> sqlx::Result<(Uuid, NewMember)> {
    let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
    let email = row.try_get::<&str, _>("email")?.parse().map_err(decode)?;
    let mut new = NewMember::new(email, row.try_get::<&str, _>("name")?, row.try_get::<&str, _>("role")?.parse().map_err(decode)?);
    new.scopes = row.try_get("scopes")?;
    Ok((row.try_get("id")?, new))
}

/// As with members, the address stays out of the log.
fn event(by: Actor, action: &str, invite: &Invite) -> AuditEvent {
    let detail = json!({ "role": invite.role, "scopes": invite.scopes, "expires_at": invite.expires_at });
    AuditEvent::new(by, action, invite.id.to_string()).with_detail(detail)
}
