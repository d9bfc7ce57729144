//! The caller's own tenant.

use axum::response::IntoResponse;
use serde::Serialize;
use serde_json::{Map, Value};
use tenancy_core::{Role, TenantId, TenantSlug};
use tenancy_tower::axum::Problem;

use crate::extract::{Caller, NoQuery, Query};

/// What a member sees of their tenant: neither its plan nor its history.
#[derive(Debug, Serialize)]
struct OwnTenant<'a> {
    id: TenantId,
    slug: &'a TenantSlug,
    name: &'a str,
    branding: &'a Map<String, Value>,
    flags: &'a Map<String, Value>,
}

pub(super) async fn show(Caller(cx): Caller, Query(NoQuery {}): Query<NoQuery>) -> Result<impl IntoResponse, Problem> {
    cx.require(Role::Viewer)?;
    let tenant = cx.tenant();
    Ok(axum::Json(OwnTenant { id: tenant.id, slug: &tenant.slug, name: &tenant.name, branding: &tenant.branding, flags: &tenant.flags })
        .into_response())
}
