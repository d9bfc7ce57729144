//! Webhooks: the endpoints that tenants register, and a sink of the outbox that sends to them.
//!
//! What a message is signed with, and how a receiver verifies it: [`tenancy_core::webhook`].

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::webhook::{Secret, TOPICS};
use tenancy_core::{AuditEvent, Error, ErrorKind, Result, TenantContext};
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::tx::TenantTx;

mod address;
pub(crate) mod client;
mod sink;

pub use address::check_url;
pub use sink::WebhookSink;

/// The most endpoints of one tenant.
pub const MAX_ENDPOINTS: i64 = 10;
/// How long a replaced secret goes on.
pub const OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// How many deliveries are listed.
pub const LISTED: i32 = 100;

const COLUMNS: &str = "id, url, topics, enabled, disabled_because, failing_since, created_at, updated_at, version";

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Webhook {
    /// Its id.
    pub id: Uuid,
    /// Where it is.
    pub url: String,
    /// What it is told of, out of [`TOPICS`].
    pub topics: Vec<String>,
    /// Whether it is told.
    pub enabled: bool,
    /// Why it was disabled, if it did not do so itself.
    pub disabled_because: Option<String>,
    /// Since when no delivery has succeeded.
    pub failing_since: Option<DateTime<Utc>>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// Counts the changes, from 1.
    pub version: u64,
}

impl FromRow<'_, PgRow> for Webhook {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            url: row.try_get("url")?,
            topics: row.try_get("topics")?,
            enabled: row.try_get("enabled")?,
            disabled_because: row.try_get("disabled_because")?,
            failing_since: row.try_get("failing_since")?,
            created_at: row.try_get("created_at")?,
            updated_at: row.try_get("updated_at")?,
            version: row.try_get::<i64, _>("version")?.unsigned_abs(),
        })
    }
}

/// What to change of an endpoint; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct WebhookChange {
    /// See [`Webhook::url`]; it must have passed [`check_url`].
    pub url: Option<String>,
    /// See [`Webhook::topics`].
    pub topics: Option<Vec<String>>,
    /// See [`Webhook::enabled`].
    pub enabled: Option<bool>,
}

impl WebhookChange {
    /// These changes.
    pub fn new(url: Option<String>, topics: Option<Vec<String>>, enabled: Option<bool>) -> Self {
        Self { url, topics, enabled }
    }
}

/// One message on its way to one endpoint, without what it says.
#[derive(Debug, Clone, Serialize, FromRow)]
#[non_exhaustive]
pub struct WebhookDelivery {
    /// Its id: `webhook-id` is `msg_` and this without hyphens.
    pub id: Uuid,
    /// Of what it tells.
    pub topic: String,
    /// `waiting`, `delivered`, `dead` (given up) or `skipped` (the endpoint was disabled).
    pub state: String,
    /// How often it was tried.
    pub attempts: i32,
    /// The status of the last answer, if there was one.
    pub status_code: Option<i32>,
    /// Why the last try failed.
    pub problem: Option<String>,
    /// When the message came.
    pub created_at: DateTime<Utc>,
    /// When it was last tried.
    pub tried_at: Option<DateTime<Utc>>,
}

impl TenantTx {
    /// Registers an endpoint at `url`, which must have passed [`check_url`]. The secret is seen here and never again.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) at `topics`; [`Conflict`](ErrorKind::Conflict) past [`MAX_ENDPOINTS`].
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn add_webhook(&mut self, by: &TenantContext, url: &str, topics: &[String]) -> Result<(Webhook, Secret)> {
        check_topics(topics)?;
        // Two at once must not go past the limit.
        let lock = "select pg_advisory_xact_lock(hashtextextended('tenancy.webhooks ' || $1::uuid, 0))";
        sqlx::query(lock).bind(self.tenant_id().as_uuid()).execute(&mut *self).await.map_err(from_sqlx)?;
        let count = sqlx::query_scalar("select count(*) from tenancy.webhooks where tenant_id = $1").bind(self.tenant_id().as_uuid());
        let count: i64 = count.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        if count >= MAX_ENDPOINTS {
            return Err(Error::new(ErrorKind::Conflict, format!("a tenant can have {MAX_ENDPOINTS} webhooks: remove one first")));
        }
        let sql = format!("insert into tenancy.webhooks (tenant_id, id, url, topics) values ($1, $2, $3, $4) returning {COLUMNS}");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(Uuid::now_v7()).bind(url).bind(topics);
        let added: Webhook = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        let secret = self.add_secret(added.id).await?;
        self.audit(event(by, "webhook.add", &added)).await?;
        Ok((added, secret))
    }

    /// The tenant's endpoints, in the order of their registration.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn webhooks(&mut self) -> Result<Vec<Webhook>> {
        let sql = format!("select {COLUMNS} from tenancy.webhooks where tenant_id = $1 order by id");
        sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).fetch_all(self).await.map_err(from_sqlx)
    }

    /// Changes an endpoint that is of the version `expected`, if one is given. One that is enabled again begins anew.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) at `topics`, [`NotFound`](ErrorKind::NotFound), [`VersionMismatch`](ErrorKind::VersionMismatch).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn update_webhook(
        &mut self,
        by: &TenantContext,
        id: Uuid,
        change: &WebhookChange,
        expected: Option<&[i64]>,
    ) -> Result<Webhook> {
        change.topics.as_deref().map(check_topics).transpose()?;
        self.lock_webhook(id, expected).await?;
        let sql = format!(
            "update tenancy.webhooks set url = coalesce($3, url), topics = coalesce($4, topics), enabled = coalesce($5, enabled),
                    disabled_because = case when $5 is null then disabled_because end, failing_since = case when $5 is distinct from true then failing_since end,
                    updated_at = now(), version = version + 1
              where tenant_id = $1 and id = $2 returning {COLUMNS}"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id);
        let query = query.bind(&change.url).bind(&change.topics).bind(change.enabled);
        let changed: Webhook = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        self.audit(event(by, "webhook.update", &changed)).await?;
        Ok(changed)
    }

    /// Removes an endpoint that is of one of the versions `expected`, if any are given, with its secrets and deliveries.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`VersionMismatch`](ErrorKind::VersionMismatch).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn remove_webhook(&mut self, by: &TenantContext, id: Uuid, expected: Option<&[i64]>) -> Result<()> {
        let removed = self.lock_webhook(id, expected).await?;
        let query = sqlx::query("delete from tenancy.webhooks where tenant_id = $1 and id = $2");
        query.bind(self.tenant_id().as_uuid()).bind(id).execute(&mut *self).await.map_err(from_sqlx)?;
        self.audit(event(by, "webhook.remove", &removed)).await
    }

    /// Gives an endpoint another secret, which is seen here and never again. Those before it go on for [`OVERLAP`]: deliveries are signed
    /// with all of them.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) with five secrets that are valid.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn rotate_webhook(&mut self, by: &TenantContext, id: Uuid) -> Result<Secret> {
        let found = self.lock_webhook(id, None).await?;
        let secret = self.add_secret(id).await?;
        self.audit(event(by, "webhook.rotate", &found)).await?;
        Ok(secret)
    }

    /// Sends an endpoint the message `webhook.test`, also if that is not among its topics. Returns the delivery's id.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn test_webhook(&mut self, by: &TenantContext, id: Uuid) -> Result<Uuid> {
        let found = self.lock_webhook(id, None).await?;
        let delivery = Uuid::now_v7();
        sqlx::query("select tenancy.webhook_test($1, $2)").bind(id).bind(delivery).execute(&mut *self).await.map_err(from_sqlx)?;
        self.audit(event(by, "webhook.test", &found)).await?;
        Ok(delivery)
    }

    /// The latest [`LISTED`] deliveries to an endpoint, the newest first.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn webhook_deliveries(&mut self, id: Uuid) -> Result<Vec<WebhookDelivery>> {
        let known = sqlx::query("select from tenancy.webhooks where tenant_id = $1 and id = $2").bind(self.tenant_id().as_uuid()).bind(id);
        known.fetch_optional(&mut *self).await.map_err(from_sqlx)?.ok_or_else(Error::not_found)?;
        let query = sqlx::query_as("select * from tenancy.webhook_deliveries_own($1, $2)").bind(id).bind(LISTED);
        query.fetch_all(self).await.map_err(from_sqlx)
    }

    async fn add_secret(&mut self, id: Uuid) -> Result<Secret> {
        let secret = Secret::new(rand::random());
        let query = sqlx::query_scalar("select tenancy.webhook_secret_add($1, $2, make_interval(secs => $3))");
        let added: bool = query.bind(id).bind(secret.expose()).bind(OVERLAP.as_secs_f64()).fetch_one(self).await.map_err(from_sqlx)?;
        if added {
            Ok(secret)
        } else {
            Err(Error::new(ErrorKind::Conflict, "five secrets are valid already: wait until one of them is not"))
        }
    }

    async fn lock_webhook(&mut self, id: Uuid, expected: Option<&[i64]>) -> Result<Webhook> {
        let sql = format!("select {COLUMNS} from tenancy.webhooks where tenant_id = $1 and id = $2 for update");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.tenant_id().as_uuid()).bind(id);
        let found: Webhook = query.fetch_optional(self).await.map_err(from_sqlx)?.ok_or_else(Error::not_found)?;
        if expected.is_some_and(|versions| !versions.contains(&found.version.cast_signed())) {
            return Err(Error::new(ErrorKind::VersionMismatch, "it has changed since it was read: read it again"));
        }
        Ok(found)
    }
}

fn check_topics(topics: &[String]) -> Result<()> {
    let known = |topic: &String| TOPICS.contains(&topic.as_str());
    let twice = topics.iter().enumerate().any(|(n, topic)| topics[..n].contains(topic));
    if topics.is_empty() || twice || !topics.iter().all(known) {
        return Err(Error::invalid("topics", format!("must be some of {}, each once", TOPICS.join(", "))));
    }
    Ok(())
}

/// The URL may hold a token of its owner's: the audit log, which nobody can change, has only the host.
fn event(by: &TenantContext, action: &str, webhook: &Webhook) -> AuditEvent {
    let host = url::Url::parse(&webhook.url).ok().and_then(|url| url.host_str().map(str::to_owned)).map_or(Value::Null, Value::from);
    let detail = json!({ "host": host, "topics": webhook.topics, "enabled": webhook.enabled, "version": webhook.version });
    let mut event = AuditEvent::new(by.principal().actor(), action, webhook.id.to_string()).with_detail(detail);
    event.request_id = Some(by.request_id());
    event
}
