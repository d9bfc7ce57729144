//! Links: whoever has the token reads one resource, without being anybody.

use std::fmt;

use argon2::{Argon2, PasswordHash, PasswordHasher as _, PasswordVerifier as _};
use serde_json::{Map, json};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use tenancy_core::outbox::Message;
use tenancy_core::share::{Link, NewLink, ResourceRef};
use tenancy_core::{Email, Error, ErrorKind, LinkBase, Result, TenantContext, TenantId};
use uuid::Uuid;

use super::{admin, count, refused};
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::lease::Lease;
use crate::token::Token;
use crate::tx::{SystemTx, TenantTx, Tx};

const COLUMNS: &str =
    "id, resource_type, resource_id, label, recipient, created_at, expires_at, max_uses, uses, has_passphrase, revoked_at";

/// The scope of a transaction that shows what a link opened.
#[derive(Debug)]
pub struct ForLink(());

/// A READ ONLY transaction that sees one resource, in the views `tenancy_views.<table>_link`, and serves no tenant.
pub type LinkTx = Tx<ForLink>;

/// A link that was opened: for ten minutes, [`read_link`](TenantDb::read_link) shows what it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenedLink {
    /// Which link.
    pub link: Uuid,
    /// Whose it is.
    pub owner: TenantId,
    /// What it shows.
    pub resource: ResourceRef,
    /// A secret of 64 hexadecimal digits, which stands for this opening.
    pub ticket: String,
}

/// A link that is about to be made: checked, and with its passphrase hashed. That takes a while, so it is done before the transaction begins.
#[derive(Clone)]
pub struct ReadyLink {
    new: NewLink,
    passphrase: Option<String>,
}

impl ReadyLink {
    /// What is ready to be made of `new`.
    ///
    /// # Errors
    /// Those of [`NewLink::check`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn new(mut new: NewLink) -> Result<Self> {
        new.check()?;
        let passphrase = match new.passphrase.take() {
            Some(phrase) => Some(hashed(phrase).await?),
            None => None,
        };
        Ok(Self { new, passphrase })
    }
}

impl fmt::Debug for ReadyLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadyLink").field("new", &self.new).finish_non_exhaustive()
    }
}

struct Found(Link);

impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let resource = ResourceRef::new(row.try_get("resource_type")?, row.try_get("resource_id")?);
        let resource = resource.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let mut link = Link::new(row.try_get("id")?, resource, row.try_get("created_at")?, row.try_get("expires_at")?);
        link.label = row.try_get("label")?;
        let recipient: Option<&str> = row.try_get("recipient")?;
        link.recipient = recipient.map(str::parse).transpose().map_err(|error: Error| sqlx::Error::Decode(Box::new(error)))?;
        link.max_uses = row.try_get::<Option<i64>, _>("max_uses")?.and_then(|most| most.try_into().ok());
        link.uses = row.try_get::<i64, _>("uses")?.try_into().unwrap_or_default();
        link.has_passphrase = row.try_get("has_passphrase")?;
        link.revoked_at = row.try_get("revoked_at")?;
        Ok(Self(link))
    }
}

impl TenantTx {
    /// Makes a link to a resource of this tenant. Its token can be had here alone: only its hash is stored.
    ///
    /// # Errors
    /// - [`Forbidden`](ErrorKind::Forbidden) unless `by` is an admin, and platform and tenant have links switched on.
    /// - [`NotFound`](ErrorKind::NotFound): this tenant has no such resource.
    /// - [`Invalid`](ErrorKind::Invalid), with the field; also at `recipients` if there are any: for [`send_links`](TenantTx::send_links).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn create_link(&mut self, by: &TenantContext, ready: &ReadyLink) -> Result<(Link, Token)> {
        admin(self, by)?;
        if !ready.new.recipients.is_empty() {
            return Err(Error::invalid("recipients", "are sent their links: there is none to be told"));
        }
        self.insert_link(by, ready, None).await
    }

    /// Makes a link for each of the recipients, and mails it to them when this is committed: the message `link.sent`, in the tenant's name.
    /// Each has a token of its own, is revoked on its own, and its openings name the recipient in the audit log. `base` is what the links
    /// in the mails begin with. Nobody else is told the tokens.
    ///
    /// # Errors
    /// Those of [`create_link`](TenantTx::create_link); [`Invalid`](ErrorKind::Invalid) if there are no recipients.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn send_links(&mut self, by: &TenantContext, ready: &ReadyLink, base: &LinkBase) -> Result<Vec<Link>> {
        admin(self, by)?;
        if ready.new.recipients.is_empty() {
            return Err(Error::invalid("recipients", "must be at least 1"));
        }
        let sender = self.name_of(by.principal()).await?;
        let mut sent = Vec::with_capacity(ready.new.recipients.len());
        for recipient in &ready.new.recipients {
            let (link, token) = self.insert_link(by, ready, Some(recipient)).await?;
            let payload = json!({
                "to": recipient, "sender": sender, "label": link.label, "expires_at": link.expires_at, "has_passphrase": link.has_passphrase,
            });
            let secret = Map::from_iter([("link".to_owned(), base.with(token.expose()).into())]);
            self.post(&Message::new("link.sent", link.id.to_string(), payload)?.with_secret(secret)).await?;
            sent.push(link);
        }
        Ok(sent)
    }

    async fn insert_link(&mut self, by: &TenantContext, ready: &ReadyLink, recipient: Option<&Email>) -> Result<(Link, Token)> {
        let (new, token) = (&ready.new, Token::new("")?);
        let actor = by.principal().actor();
        let sql = format!("select {COLUMNS} from tenancy.link_create($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(Uuid::now_v7())
            .bind(new.resource.kind())
            .bind(new.resource.id())
            .bind(token.sha256().to_vec())
            .bind(&new.label)
            .bind(recipient.map(Email::as_str))
            .bind(new.expires_at)
            .bind(new.max_uses.map(i64::from))
            .bind(&ready.passphrase)
            .bind(actor.kind())
            .bind(actor.subject().map(|subject| subject.as_str().to_owned()))
            .bind(by.request_id());
        let Found(link) = query.fetch_one(self).await.map_err(refused)?;
        count::link("active");
        Ok((link, token))
    }

    /// Revokes a link: from the commit on it opens nothing, and what it opened shows nothing.
    ///
    /// # Errors
    /// [`Forbidden`](ErrorKind::Forbidden) unless `by` is an admin; [`NotFound`](ErrorKind::NotFound). Revoked again, it stays revoked.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn revoke_link(&mut self, by: &TenantContext, link: Uuid) -> Result<()> {
        admin(self, by)?;
        let actor = by.principal().actor();
        let query = sqlx::query_scalar("select tenancy.link_revoke($1, $2, $3, $4)").bind(link).bind(actor.kind());
        let query = query.bind(actor.subject().map(|subject| subject.as_str().to_owned())).bind(by.request_id());
        if !query.fetch_one(self).await.map_err(refused)? {
            return Err(Error::not_found());
        }
        count::link("revoked");
        Ok(())
    }

    /// A link of this tenant.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn link(&mut self, id: Uuid) -> Result<Link> {
        let sql = format!("select {COLUMNS} from tenancy.share_links where tenant_id = $1 and id = $2");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id);
        query.fetch_one(self).await.map(|Found(link)| link).map_err(from_sqlx)
    }

    /// At most `limit` links with ids before `before`, the newest first, ended ones too.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn links(&mut self, before: Uuid, limit: i64) -> Result<Vec<Link>> {
        let sql = format!("select {COLUMNS} from tenancy.share_links where tenant_id = $1 and id < $2 order by id desc limit $3");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(before).bind(limit);
        Ok(query.fetch_all(self).await.map_err(from_sqlx)?.into_iter().map(|Found(link)| link).collect())
    }
}

impl SystemTx {
    /// At most `limit` links of `tenant` with ids before `before`, the newest first, ended ones too.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn links(&mut self, tenant: TenantId, before: Uuid, limit: i64) -> Result<Vec<Link>> {
        let sql = format!("select {COLUMNS} from tenancy.share_links where tenant_id = $1 and id < $2 order by id desc limit $3");
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(tenant.as_uuid()).bind(before).bind(limit);
        Ok(query.fetch_all(self).await.map_err(from_sqlx)?.into_iter().map(|Found(link)| link).collect())
    }
}

impl TenantDb {
    /// Opens a link: one of its uses. `client` (an address, say) goes into the tenant's audit log with the request, or with the denial.
    ///
    /// # Errors
    /// - [`NotFound`](ErrorKind::NotFound) for every token that opens nothing: unknown, malformed, revoked, used up, expired, locked.
    /// - [`Unauthenticated`](ErrorKind::Unauthenticated): it needs a passphrase, and this is none or a wrong one. After ten wrong ones
    ///   in a row the link is locked for a quarter of an hour.
    ///
    /// # Cancel safety
    /// Safe; the use may be counted.
    pub async fn open_link(&self, token: &str, passphrase: Option<&str>, client: &str, request_id: Uuid) -> Result<OpenedLink> {
        let opened = self.open_token(token, passphrase, client, request_id).await;
        count::opened("link", &opened);
        opened
    }

    async fn open_token(&self, token: &str, passphrase: Option<&str>, client: &str, request_id: Uuid) -> Result<OpenedLink> {
        let token = Token::parse("", token).ok_or_else(Error::not_found)?;
        let mut tx = self.link_tx("BEGIN", false).await?;
        let found = sqlx::query_scalar("select passphrase from tenancy.link_find($1)").bind(token.sha256().to_vec());
        let phrase: Option<String> = found.fetch_optional(&mut tx).await.map_err(from_sqlx)?.ok_or_else(Error::not_found)?;
        tx.rollback().await?; // no connection waits for a slow hash
        let wrong = match (phrase, passphrase) {
            (None, _) => false,
            (Some(_), None) => return Err(asks()),
            (Some(hash), Some(said)) => !matches(hash, said.to_owned()).await?,
        };
        let mut tx = self.link_tx("BEGIN", false).await?;
        let query =
            sqlx::query("select ticket, owner_tenant_id, link_id, resource_type, resource_id from tenancy.link_open($1, $2, $3, $4)")
                .bind(token.sha256().to_vec())
                .bind(wrong)
                .bind(client.chars().take(200).collect::<String>())
                .bind(request_id);
        let opened = query.fetch_optional(&mut tx).await.map_err(from_sqlx)?;
        tx.commit().await?;
        if wrong {
            return Err(asks());
        }
        let row = opened.ok_or_else(Error::not_found)?;
        let decode = |error: Error| sqlx::Error::Decode(Box::new(error));
        let read = || -> sqlx::Result<OpenedLink> {
            Ok(OpenedLink {
                link: row.try_get("link_id")?,
                owner: row.try_get("owner_tenant_id").and_then(|id| TenantId::from_uuid(id).map_err(decode))?,
                resource: ResourceRef::new(row.try_get("resource_type")?, row.try_get("resource_id")?).map_err(decode)?,
                ticket: row.try_get("ticket")?,
            })
        };
        read().map_err(from_sqlx)
    }

    /// Begins a transaction that sees what `ticket` stands for, which the link of this `token` gave: drop it when done. If the ticket is no
    /// good, or another link's, or its link is no longer, it sees nothing.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if `token` or `ticket` can't be one; [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// As [`begin`](TenantDb::begin).
    pub async fn read_link(&self, token: &str, ticket: &str) -> Result<LinkTx> {
        let token = Token::parse("", token).ok_or_else(Error::not_found)?;
        check_ticket(ticket)?;
        let link = token.sha256().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.link_tx(&format!("BEGIN READ ONLY; SET LOCAL tenancy.link = '{link}'; SET LOCAL tenancy.ticket = '{ticket}'"), true).await
    }

    pub(crate) async fn link_tx(&self, begin: &str, read_only: bool) -> Result<LinkTx> {
        let inner = self.inner();
        let lease = Lease::begin(&inner.pool, begin, inner.scrub).await.map_err(from_sqlx)?;
        Ok(Tx::new(lease, ForLink(()), read_only, inner.named_statements))
    }
}

/// Refuses what can't be a ticket.
pub(crate) fn check_ticket(ticket: &str) -> Result<()> {
    let plain = ticket.len() == 64 && ticket.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if plain { Ok(()) } else { Err(Error::not_found()) }
}

fn asks() -> Error {
    Error::new(ErrorKind::Unauthenticated, "this link asks for its passphrase")
}

/// A slow hash, off the threads that serve.
async fn hashed(phrase: String) -> Result<String> {
    let hash = tokio::task::spawn_blocking(move || Argon2::default().hash_password(phrase.as_bytes()).map(|hash| hash.to_string()));
    let failed = || Error::new(ErrorKind::Internal, "the passphrase could not be hashed");
    hash.await.map_err(|source| failed().with_source(source))?.map_err(|source| failed().with_source(source.to_string()))
}

async fn matches(hash: String, said: String) -> Result<bool> {
    let checked = tokio::task::spawn_blocking(move || {
        PasswordHash::new(&hash).is_ok_and(|hash| Argon2::default().verify_password(said.as_bytes(), &hash).is_ok())
    });
    checked.await.map_err(|source| Error::new(ErrorKind::Internal, "the passphrase could not be checked").with_source(source))
}
