//! Metrics for a scraper, which has the operators' token: they name tenants.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use tenancy_core::Error;
use tenancy_tower::axum::Problem;

use crate::extract::{NoQuery, Query};
use crate::metrics;

pub(super) async fn show(Query(NoQuery {}): Query<NoQuery>) -> Result<impl IntoResponse, Problem> {
    let text = metrics::render().ok_or_else(Error::not_found)?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}
