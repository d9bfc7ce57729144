//! What anybody may ask: is it alive, is it ready, and what can it do.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tenancy_core::{Error, ErrorKind};
use tenancy_tower::axum::Problem;

use crate::app::App;

pub(super) const OPENAPI: &str = include_str!("../openapi.json");

const READY_LIMIT: Duration = Duration::from_secs(2);

/// The process answers. A database that is away does not make it dead: restarting would not help.
pub(super) async fn healthz() -> axum::Json<Value> {
    axum::Json(json!({ "status": "alive" }))
}

/// The database answers, and the server is not about to stop.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<axum::Json<Value>, Problem> {
    if app.is_draining() {
        return Err(Error::new(ErrorKind::Unavailable, "the server is stopping").into());
    }
    // Whatever is wrong with the database, it is not this process that is broken.
    let unready = || Error::new(ErrorKind::Unavailable, "the database does not answer");
    let pinged = tokio::time::timeout(READY_LIMIT, app.db.ping()).await;
    pinged.map_err(|_| unready())?.map_err(|source| unready().with_source(source))?;
    Ok(axum::Json(json!({ "status": "ready" })))
}

/// The OpenAPI document.
pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI)
}
