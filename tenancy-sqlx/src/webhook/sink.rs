//! The sink: a message becomes a delivery for each endpoint that wants it, and a delivery becomes a request.

use std::fmt;

use async_trait::async_trait;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::Row;
use tenancy_core::outbox::{Delivery, DeliveryError, Message, Sink};
use tenancy_core::webhook::{Secret, TOPICS};
use tenancy_core::{Actor, AuditEvent, Clock as _, Error, Result, SystemClock, TenantId};
use url::Url;
use uuid::Uuid;

use super::client::{Client, Failure, Signed};
use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// After how many days without a success an endpoint is disabled.
const PATIENCE: i32 = 3;

/// Sends messages of the [`TOPICS`] to the endpoints that tenants have registered.
///
/// Each endpoint has its own delivery, which is a message of the outbox (topic `webhook.delivery`) with its own tries. It is signed anew at
/// each try, with every secret of the endpoint that is valid then; `webhook-id` stays the same.
///
/// An endpoint that answers 410, or nothing but failures for three days, is disabled: the message `webhook.disabled` tells the tenant's
/// admins.
///
/// # Security
/// Upholds I31: connections go to public addresses alone, whatever names lead to.
pub struct WebhookSink {
    db: TenantDb,
    client: Client,
}

impl fmt::Debug for WebhookSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSink").field("loopback", &self.client.loopback).finish_non_exhaustive()
    }
}

impl WebhookSink {
    /// Trusts the system's certificates.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if TLS can't be set up.
    pub fn new(db: &TenantDb) -> Result<Self> {
        Ok(Self { db: db.clone(), client: Client::new(None, false)? })
    }

    /// Also sends to this machine, also by http: for development.
    #[must_use]
    pub fn with_loopback(mut self, loopback: bool) -> Self {
        self.client.loopback = loopback;
        self
    }

    /// Also trusts the certificate `root`, in PEM.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) if it is not one.
    pub fn with_root(mut self, root: &[u8]) -> Result<Self> {
        self.client = Client::new(Some(root), self.client.loopback)?;
        Ok(self)
    }

    async fn begin(&self) -> Result<SystemTx> {
        begin_admin(self.db.inner(), Actor::System).await
    }

    /// A delivery for each endpoint that wants the message; those that are there already stay.
    async fn fan_out(&self, tenant: TenantId, message: &Delivery) -> Result<()> {
        let mut tx = self.begin().await?;
        let wanted = "select id from tenancy.webhooks where tenant_id = $1 and enabled and $2 = any(topics) order by id";
        let webhooks: Vec<Uuid> =
            sqlx::query_scalar(wanted).bind(tenant.as_uuid()).bind(&message.topic).fetch_all(&mut tx).await.map_err(from_sqlx)?;
        for webhook in webhooks {
            sqlx::query("select tenancy.webhook_send_for($1, $2, $3, $4, $5)")
                .bind(tenant.as_uuid())
                .bind(webhook)
                .bind(delivery_id(webhook, &message.key))
                .bind(&message.topic)
                .bind(&message.payload)
                .execute(&mut tx)
                .await
                .map_err(from_sqlx)?;
        }
        tx.commit().await
    }

    async fn send(&self, tenant: TenantId, message: &Delivery) -> Result<Result<(), DeliveryError>> {
        let id = |field: &str| message.payload[field].as_str().and_then(|text| Uuid::try_parse(text).ok());
        let (Some(webhook), Some(delivery)) = (id("webhook"), id("delivery")) else {
            return Ok(Err(DeliveryError::Refused("the message names no webhook".to_owned())));
        };
        let Some(Endpoint { url, enabled, secrets }) = self.endpoint(tenant, webhook).await? else { return Ok(Ok(())) };
        let attempt = Attempt { tenant, webhook, delivery, number: message.attempt };
        if !enabled || secrets.is_empty() {
            let mut tx = self.begin().await?;
            attempt.record(&mut tx, "skipped", None, Some("the endpoint is disabled")).await?;
            tx.commit().await?;
            return Ok(Ok(()));
        }
        let body = serde_json::to_vec(&message.payload["body"]).map_err(|e| Error::invalid("body", "is not JSON").with_source(e))?;
        let (id, timestamp) = (format!("msg_{}", delivery.simple()), SystemClock.now().timestamp());
        let signatures = secrets.iter().map(|secret| secret.sign(&id, timestamp, &body)).collect::<Vec<_>>().join(" ");
        let outcome = self.client.post(&url, Signed { id, timestamp, signatures, body }).await;
        attempt.conclude(self.begin().await?, &url, outcome).await
    }

    async fn endpoint(&self, tenant: TenantId, webhook: Uuid) -> Result<Option<Endpoint>> {
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "select url, enabled, array(select s.secret from tenancy.webhook_secrets s where s.tenant_id = w.tenant_id and s.webhook_id = w.id
                                           and (s.expires_at is null or s.expires_at > clock_timestamp()) order by s.created_at desc) as secrets
               from tenancy.webhooks w where tenant_id = $1 and id = $2",
        )
        .bind(tenant.as_uuid())
        .bind(webhook)
        .fetch_optional(&mut tx)
        .await
        .map_err(from_sqlx)?;
        let Some(row) = row else { return Ok(None) };
        let secrets: Vec<String> = row.try_get("secrets").map_err(from_sqlx)?;
        let secrets = secrets.iter().map(|secret| secret.parse()).collect::<Result<_>>()?;
        Ok(Some(Endpoint { url: row.try_get("url").map_err(from_sqlx)?, enabled: row.try_get("enabled").map_err(from_sqlx)?, secrets }))
    }
}

struct Endpoint {
    url: String,
    enabled: bool,
    secrets: Vec<Secret>,
}

/// One try of a delivery.
struct Attempt {
    tenant: TenantId,
    webhook: Uuid,
    delivery: Uuid,
    number: u32,
}

impl Attempt {
    async fn conclude(self, mut tx: SystemTx, url: &str, outcome: Result<u16, Failure>) -> Result<Result<(), DeliveryError>> {
        let (status, problem, forever) = match outcome {
            Ok(status @ 200..=299) => {
                self.record(&mut tx, "delivered", Some(status), None).await?;
                let well =
                    "update tenancy.webhooks set failing_since = null where tenant_id = $1 and id = $2 and failing_since is not null";
                sqlx::query(well).bind(self.tenant.as_uuid()).bind(self.webhook).execute(&mut tx).await.map_err(from_sqlx)?;
                tx.commit().await?;
                return Ok(Ok(()));
            }
            Ok(410) => (Some(410), "it answered 410: it wants no more".to_owned(), true),
            Ok(status @ 300..=399) => (Some(status), format!("it answered {status}: redirects are not followed"), false),
            Ok(status) => (Some(status), format!("it answered {status}"), false),
            Err(Failure::Away(why)) => (None, why.to_owned(), false),
            Err(Failure::Forbidden(why)) => (None, why.to_owned(), true),
        };
        self.record(&mut tx, "waiting", status, Some(&problem)).await?;
        self.note_failure(&mut tx, url, status == Some(410)).await?;
        tx.commit().await?;
        Ok(Err(if forever { DeliveryError::Refused(problem) } else { DeliveryError::Retry(problem) }))
    }

    async fn record(&self, tx: &mut SystemTx, state: &str, status: Option<u16>, problem: Option<&str>) -> Result<()> {
        sqlx::query(
            "update tenancy.webhook_deliveries set state = $3, attempts = $4, status_code = $5, problem = $6, tried_at = clock_timestamp()
              where tenant_id = $1 and id = $2",
        )
        .bind(self.tenant.as_uuid())
        .bind(self.delivery)
        .bind(state)
        .bind(self.number.cast_signed())
        .bind(status.map(i32::from))
        .bind(problem)
        .execute(tx)
        .await
        .map(drop)
        .map_err(from_sqlx)
    }

    /// Disables an endpoint that wants no more, or that has failed for days.
    async fn note_failure(&self, tx: &mut SystemTx, url: &str, gone: bool) -> Result<()> {
        let failing =
            "update tenancy.webhooks set failing_since = coalesce(failing_since, clock_timestamp()) where tenant_id = $1 and id = $2";
        sqlx::query(failing).bind(self.tenant.as_uuid()).bind(self.webhook).execute(&mut *tx).await.map_err(from_sqlx)?;
        let why = if gone { "it answered 410" } else { "every delivery failed for days" };
        let disable = "update tenancy.webhooks set enabled = false, disabled_because = $3, updated_at = clock_timestamp(), version = version + 1
              where tenant_id = $1 and id = $2 and enabled and ($4 or failing_since < clock_timestamp() - make_interval(days => $5)) returning version";
        let version: Option<i64> = sqlx::query_scalar(disable)
            .bind(self.tenant.as_uuid())
            .bind(self.webhook)
            .bind(why)
            .bind(gone)
            .bind(PATIENCE)
            .fetch_optional(&mut *tx)
            .await
            .map_err(from_sqlx)?;
        let Some(version) = version else { return Ok(()) };
        let event = AuditEvent::new(Actor::System, "webhook.disable", self.webhook.to_string()).with_tenant(self.tenant);
        tx.audit(&event.with_detail(json!({ "why": why, "version": version }))).await?;
        let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
        let told = json!({ "webhook": self.webhook, "host": host, "why": why });
        tx.post(Some(self.tenant), &Message::new("webhook.disabled", format!("{}:{version}", self.webhook), told)?).await?;
        Ok(())
    }
}

/// The same for the same message and endpoint.
fn delivery_id(webhook: Uuid, key: &str) -> Uuid {
    let digest = Sha256::digest(format!("{webhook}\n{key}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::from_bytes(bytes)
}

#[async_trait]
impl Sink for WebhookSink {
    async fn deliver(&self, delivery: &Delivery) -> Result<(), DeliveryError> {
        let Some(tenant) = delivery.tenant_id else { return Ok(()) };
        let done = if delivery.topic == "webhook.delivery" {
            self.send(tenant, delivery).await
        } else if TOPICS.contains(&delivery.topic.as_str()) && delivery.secret == Value::Null {
            self.fan_out(tenant, delivery).await.map(Ok)
        } else {
            return Ok(());
        };
        done.unwrap_or_else(|error| Err(DeliveryError::Retry(error.to_string())))
    }
}
