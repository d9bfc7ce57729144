//! The tenant's logo: a picture in its own store, which its branding names.
//!
//! The content is written under a fresh name before the branding names it, and deleted after another one took its place: a failure in
//! between leaves at most an object that nothing names.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG};
use axum::response::{IntoResponse as _, Response};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use sha2::{Digest as _, Sha256};
use tenancy_core::objects::{TenantStore, into_error};
use tenancy_core::quota::Metric;
use tenancy_core::{Error, ErrorKind, Result, Role, TenantCatalog as _, TenantContext};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::branding::{Shown, caching};
use super::config::commit_own;
use crate::app::{App, uncancelled};
use crate::extract::{Caller, NoQuery, Query, bytes_up_to, content_length};
use crate::logo::{Logo, MAX_BYTES, normalized};
use crate::precondition::{Preconditions, etag, mismatch};

fn path(object: &str) -> Path {
    Path::from_iter(["branding", object])
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    let store = app.objects.scope(&cx)?;
    let mut logo = Logo::read(&cx.tenant().branding).ok_or_else(Error::not_found)?;
    let tag = etag(&logo.sha256);
    if preconditions.not_modified(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, caching(tag)).into_response());
    }
    let content = match store.get(&path(&logo.object)).await {
        // Another node has just put another one in its place: what names it is asked for anew, once.
        Err(object_store::Error::NotFound { .. }) => {
            app.catalog.refresh().await?;
            let tenant = app.catalog.find(&cx.tenant_id().into()).await?.ok_or_else(Error::not_found)?;
            logo = Logo::read(&tenant.branding).ok_or_else(Error::not_found)?;
            store.get(&path(&logo.object)).await
        }
        got => got,
    };
    let content = content.map_err(into_error)?;
    let headers = [
        (CONTENT_TYPE, "image/png".to_owned()),
        (CONTENT_LENGTH, logo.size.to_string()),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned()),
    ];
    Ok((caching(etag(&logo.sha256)), headers, Body::from_stream(content.into_stream())).into_response())
}

pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    request: Request,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    if content_length(request.headers()).is_some_and(|length| length > MAX_BYTES as u64) {
        return Err(Error::new(ErrorKind::TooLarge, "a logo must have at most 1 MiB").into());
    }
    let picture = normalized(bytes_up_to(request, MAX_BYTES).await?).await?;
    let sha256 = Sha256::digest(&picture.png).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let logo = Logo {
        object: format!("{sha256}-{}.png", Uuid::now_v7()),
        sha256,
        size: picture.png.len() as u64,
        width: picture.width,
        height: picture.height,
    };
    let store = app.objects.scope(&cx)?;
    let tag = [(ETAG, etag(&logo.sha256))];
    let shown = uncancelled(async move {
        store.put(&path(&logo.object), picture.png.into()).await.map_err(into_error)?;
        let done = replace(&app, &cx, &store, &preconditions, Some(&logo)).await;
        // Where nobody knows whether the branding names it, it stays.
        if done.as_ref().is_err_and(|error| error.kind() != ErrorKind::OutcomeUnknown) {
            discard(&store, &logo.object).await;
        }
        done
    })
    .await?;
    Ok((tag, axum::Json(shown)).into_response())
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let store = app.objects.scope(&cx)?;
    uncancelled(async move { replace(&app, &cx, &store, &preconditions, None).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets the branding name this logo or none, counts its room, and deletes the former one.
async fn replace(
    app: &Arc<App>,
    cx: &TenantContext,
    store: &TenantStore,
    preconditions: &Preconditions,
    logo: Option<&Logo>,
) -> Result<Shown> {
    let mut tx = app.db.begin(cx).await?;
    let mut shown = None;
    let (_, before) = tx
        .change_branding(cx, None, |object| {
            let current = Logo::read(object);
            if !preconditions.permit(current.as_ref().map(|logo| etag(&logo.sha256)).as_deref()) {
                return Err(mismatch());
            }
            if let Some(logo) = logo {
                let named =
                    serde_json::to_value(logo).map_err(|e| Error::new(ErrorKind::Internal, "a logo has no JSON form").with_source(e))?;
                object.insert(Logo::FIELD.to_owned(), named);
            } else {
                object.remove(Logo::FIELD).ok_or_else(Error::not_found)?;
            }
            shown = Some(Shown::of(object));
            Ok(())
        })
        .await?;
    let former = Logo::read(&before);
    if let Some(former) = &former {
        tx.shrink(Metric::STORAGE, former.size).await?;
    }
    if let Some(logo) = logo {
        tx.grow(Metric::STORAGE, logo.size).await?;
    }
    commit_own(app, tx).await?;
    if let Some(former) = former {
        discard(store, &former.object).await;
    }
    shown.ok_or_else(|| Error::new(ErrorKind::Internal, "the branding was not changed"))
}

/// Deletes what nothing names any more. What can't be deleted is left over: logged, and seen by nobody.
async fn discard(store: &TenantStore, object: &str) {
    match store.delete(&path(object)).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => tracing::warn!(object, "a logo is left over: {error}"),
    }
}
