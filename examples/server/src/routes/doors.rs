//! The pages that mailed links lead to. To look at one uses nothing up, because scanners of mail do that too: its button does.
//!
//! No script, nothing from elsewhere, and nowhere to leak to: the token is in the path, so the pages have no referrer and no links.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, LOCATION, REFERRER_POLICY, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use tenancy_core::{Error, Tenant};
use tenancy_tower::axum::Problem;
use tenancy_tower::response::status;
use uuid::Uuid;

use super::sign_in::Door;
use crate::app::App;
use crate::cross_site;
use crate::edge::RequestId;
use crate::extract::Path;

const POLICY: &str = "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// Where a member is after the button.
const INSIDE: &str = "/api/v1/me";

pub(super) async fn welcome(State(app): State<Arc<App>>, Path(token): Path<String>) -> Response {
    show(&app, Door::Invite, &token).await
}

pub(super) async fn sign_in(State(app): State<Arc<App>>, Path(token): Path<String>) -> Response {
    show(&app, Door::SignIn, &token).await
}

pub(super) async fn join(
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
) -> Response {
    enter(&app, Door::Invite, &token, id, &headers).await
}

pub(super) async fn enter_by_link(
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
) -> Response {
    enter(&app, Door::SignIn, &token, id, &headers).await
}

async fn show(app: &App, door: Door, token: &str) -> Response {
    let tenant = match door.tenant(app, token).await {
        Ok(tenant) => tenant,
        Err(error) => return refusal(error),
    };
    let product = escaped(product(&tenant));
    let (says, label) = match door {
        Door::Invite => ("You are invited to join.", "Accept the invitation"),
        Door::SignIn => ("Sign in with this link: it works once.", "Sign in"),
    };
    // Without an action, a form goes to the page's own address.
    page(StatusCode::OK, &product, &format!("<p>{says}</p><form method=\"post\"><button>{label}</button></form>"))
}

async fn enter(app: &App, door: Door, token: &str, request_id: Uuid, headers: &HeaderMap) -> Response {
    let entered = async {
        cross_site::require_same(headers)?;
        door.enter(app, token, request_id).await
    };
    match entered.await {
        Ok((_, cookie)) => {
            let inside = HeaderValue::from_static(INSIDE);
            (StatusCode::SEE_OTHER, [(LOCATION, inside), (SET_COOKIE, cookie)]).into_response()
        }
        Err(error) => refusal(error),
    }
}

/// What went wrong, for people; a failure is answered, and logged, as elsewhere.
fn refusal(error: Error) -> Response {
    let status = status(error.kind());
    if status.is_server_error() {
        return Problem(error).into_response();
    }
    page(status, "This did not work", &format!("<p>{}</p>", escaped(error.message())))
}

fn page(status: StatusCode, title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
    ];
    (status, headers, html).into_response()
}

fn product(tenant: &Tenant) -> &str {
    let named = tenant.branding.get("product_name").and_then(|name| name.as_str()).filter(|name| !name.trim().is_empty());
    named.unwrap_or(&tenant.name)
}

/// A text in HTML, outside of tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
