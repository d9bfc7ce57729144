//! A tenant's webhooks: endpoints, their secrets, and what became of deliveries.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tenancy_core::Role;
use tenancy_sqlx::webhook::{Webhook, WebhookChange, WebhookDelivery, check_url};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query, present};
use crate::idempotency::{Answer, Command, Memory, Submitted};
use crate::page::Page;
use crate::precondition::{Preconditions, etag};

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<Webhook>>, Problem> {
    cx.require(Role::Admin)?;
    let items = app.db.read(&cx).await?.webhooks().await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    url: String,
    topics: Vec<String>,
}

/// An endpoint at the one moment when its secret is seen.
#[derive(Debug, Serialize)]
struct Created {
    #[serde(flatten)]
    webhook: Webhook,
    secret: Option<String>,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    check_url(&body.url, app.webhooks_loopback)?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let (webhook, secret) = tx.add_webhook(&cx, &body.url, &body.topics).await?;
    let (etag, location) = (etag(webhook.version), format!("/api/v1/webhooks/{}", webhook.id));
    // What is remembered is without the secret: whoever did not get it asks for another one.
    let mut created = Created { webhook, secret: None };
    once.remember(&mut tx, Memory::Tenant, &by, &Answer::created(&created, etag.clone(), location.clone())?).await?;
    created.secret = Some(secret.expose());
    let answer = Answer::created(&created, etag, location)?;
    tx.commit().await?;
    Ok(answer)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default, deserialize_with = "present")]
    url: Option<String>,
    #[serde(default, deserialize_with = "present")]
    topics: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    enabled: Option<bool>,
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(webhook): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    if let Some(url) = &body.url {
        check_url(url, app.webhooks_loopback)?;
    }
    let change = WebhookChange::new(body.url, body.topics, body.enabled);
    let mut tx = app.db.begin(&cx).await?;
    let changed = tx.update_webhook(&cx, *webhook, &change, preconditions.versions().as_deref()).await?;
    tx.commit().await?;
    Ok(Answer::ok(&changed, etag(changed.version))?)
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(webhook): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.remove_webhook(&cx, *webhook, preconditions.versions().as_deref()).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Serialize)]
pub(super) struct Rotated {
    secret: String,
}

pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(webhook): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Command(_): Command,
) -> Result<axum::Json<Rotated>, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let secret = tx.rotate_webhook(&cx, *webhook).await?;
    tx.commit().await?;
    Ok(axum::Json(Rotated { secret: secret.expose() }))
}

#[derive(Debug, Serialize)]
struct Queued {
    delivery: Uuid,
}

pub(super) async fn test(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(webhook): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Command(_): Command,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let delivery = tx.test_webhook(&cx, *webhook).await?;
    tx.commit().await?;
    Ok((StatusCode::ACCEPTED, axum::Json(Queued { delivery })).into_response())
}

pub(super) async fn deliveries(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(webhook): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<WebhookDelivery>>, Problem> {
    cx.require(Role::Admin)?;
    let items = app.db.read(&cx).await?.webhook_deliveries(*webhook).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}
