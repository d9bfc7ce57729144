//! Mail that was kept instead of sent, for the developer on this machine: it has secrets, so nobody else may see it.
//!
//! Requests are answered only if they name this machine as their host, against a page elsewhere whose name was made to point here, and
//! only if nothing says that they were passed on.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, FORWARDED, HOST, REFERRER_POLICY, VIA};
use axum::response::{IntoResponse, Response};
use mail_parser::MessageParser;
use tenancy_core::{Error, Result};
use tenancy_tower::axum::Problem;

use crate::app::App;
use crate::extract::{NoQuery, Path, Query};
use crate::mailer::Mailbox;

pub(super) async fn list(State(app): State<Arc<App>>, headers: HeaderMap, Query(NoQuery {}): Query<NoQuery>) -> Result<Response, Problem> {
    let mailbox = near(&app, &headers)?;
    // Ids are hexadecimal: there is nothing to escape.
    let items: String = mailbox.list()?.iter().map(|id| format!("<li><a href=\"/dev/mailbox/{id}\">{id}</a></li>")).collect();
    Ok(page("text/html; charset=utf-8", format!("<!doctype html><title>Mailbox</title><h1>Mailbox</h1><ol>{items}</ol>")))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let mail = near(&app, &headers)?.read(&id)?;
    let parsed = MessageParser::default().parse(&mail).ok_or_else(Error::not_found)?;
    let to = parsed.to().and_then(|to| to.first()).and_then(|to| to.address()).unwrap_or_default();
    let text = parsed.body_text(0).unwrap_or_default();
    Ok(page("text/plain; charset=utf-8", format!("To: {to}\nSubject: {}\n\n{text}", parsed.subject().unwrap_or_default())))
}

fn near<'a>(app: &'a App, headers: &HeaderMap) -> Result<&'a Mailbox> {
    let passed_on = headers.contains_key(FORWARDED)
        || headers.contains_key(VIA)
        || headers.keys().any(|name| name.as_str().starts_with("x-forwarded-"));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    let here = matches!(name, "localhost" | "127.0.0.1" | "[::1]") && !passed_on;
    app.mailbox.as_ref().filter(|_| here).ok_or_else(Error::not_found)
}

fn page(kind: &'static str, body: String) -> Response {
    ([(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, "default-src 'none'"), (REFERRER_POLICY, "no-referrer")], body).into_response()
}
