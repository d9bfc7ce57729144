//! Session cookies and API tokens: whose they are is looked up before the tenant is resolved.
//!
//! 1. A request with an `Authorization` header is judged by it alone, and its cookies are not read: a browser adds those by itself.
//! 2. What is presented and no good is refused, in the same words whatever is wrong with it.
//! 3. A cookie changes nothing unless the request comes [from a page of this server](crate::cross_site).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tenancy_core::{Error, ErrorKind, Result, TenantHint};
use tenancy_sqlx::sign_in::{ApiToken, SignedIn, Token};
use tenancy_tower::Identified;
use tenancy_tower::axum::Problem;
use tenancy_tower::response::invalid_token;

use crate::app::App;
use crate::cross_site;

/// The prefix makes browsers keep it to this host, to `https` and to the path `/`.
const NAME: &str = "__Host-tenancy";

/// The header that gives a browser its session, for as long as that lasts.
pub(crate) fn set_cookie(token: &Token, lasts: Duration) -> Result<HeaderValue> {
    header(token.expose(), lasts.as_secs())
}

/// The header that takes it away.
pub(crate) fn clear_cookie() -> Result<HeaderValue> {
    header("", 0)
}

fn header(value: &str, seconds: u64) -> Result<HeaderValue> {
    let text = format!("{NAME}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax");
    let mut header =
        HeaderValue::try_from(text).map_err(|e| Error::new(ErrorKind::Internal, "the cookie can't be written").with_source(e))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Says who asks, where a session's cookie or an API token does.
pub(crate) async fn identify(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match signed_in(&app, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => Problem(error).into_response(),
    }
}

async fn signed_in(app: &App, request: &mut Request) -> Result<()> {
    let safe = request.method().is_safe();
    let headers = request.headers_mut();
    let found = if headers.contains_key(AUTHORIZATION) {
        let Some(token) = api_token(headers) else { return Ok(()) };
        let found = app.db.find_api_token(&token).await?.ok_or_else(|| invalid_token("there is no such API token"))?;
        headers.remove(AUTHORIZATION);
        found
    } else {
        let Some(token) = session_cookie(headers)? else { return Ok(()) };
        if !safe {
            cross_site::require_same(headers)?;
        }
        let found = app.db.find_session(&token).await?.ok_or_else(ended)?;
        headers.remove(COOKIE);
        found
    };
    let identified = Identified::proven(TenantHint::Id(found.tenant_id), found.principal()?).with_scopes(found.scopes.clone());
    request.extensions_mut().insert(identified);
    request.extensions_mut().insert::<SignedIn>(found);
    Ok(())
}

fn ended() -> Error {
    Error::new(ErrorKind::Unauthenticated, "the session has ended: sign in again")
}

/// The API token of the one `Authorization` header; other headers are the JWT resolver's to judge.
fn api_token(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && token.starts_with(ApiToken::PREFIX)).then(|| token.to_owned())
}

/// The value of our cookie, if there is one; two are one too many.
fn session_cookie(headers: &HeaderMap) -> Result<Option<String>> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let mut ours = pairs.filter_map(|pair| pair.trim().split_once('=')).filter(|(name, _)| *name == NAME).map(|(_, value)| value);
    match (ours.next(), ours.next()) {
        (Some(value), None) => Ok(Some(value.to_owned())),
        (None, _) => Ok(None),
        _ => Err(ended()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cookie_of_our_name_and_one_header() {
        let with = |name: axum::http::HeaderName, values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(name.clone(), value.parse().expect("a header"));
            }
            headers
        };
        let cookie = |values: &[&str]| session_cookie(&with(COOKIE, values)).map_err(|error| error.kind());
        assert_eq!(cookie(&["a=b; __Host-tenancy=x; c=d"]), Ok(Some("x".to_owned())));
        assert_eq!(cookie(&["a=b", "__Host-tenancy=x"]), Ok(Some("x".to_owned())));
        assert_eq!(cookie(&["tenancy=x; __host-tenancy=x; x__Host-tenancy=y"]), Ok(None));
        for twice in [&["__Host-tenancy=x; __Host-tenancy=x"][..], &["__Host-tenancy=x", "__Host-tenancy=y"]] {
            assert_eq!(cookie(twice), Err(ErrorKind::Unauthenticated));
        }
        let token = |values: &[&str]| api_token(&with(AUTHORIZATION, values));
        assert_eq!(token(&["bearer tnt_x"]).as_deref(), Some("tnt_x"));
        assert_eq!(token(&["Bearer ey.J.x"]).or(token(&["Basic tnt_x"])).or(token(&["Bearer tnt_x", "Bearer tnt_x"])), None);
        let made = clear_cookie().expect("a header");
        assert_eq!(made.to_str().ok(), Some("__Host-tenancy=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax"));
    }
}
