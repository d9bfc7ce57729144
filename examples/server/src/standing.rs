//! What a token says is held against the tenant's members, at each request: a change of role and a removal don't wait for it to expire.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tenancy_core::{Error, ErrorKind, Principal, Result, Standing, TenantContext};
use tenancy_sqlx::sign_in::SignedIn;
use tenancy_tower::axum::Problem;
use tenancy_tower::response::invalid_token;

use crate::app::App;

/// Lowers the request's context to what the member's row allows, or refuses the request.
pub(crate) async fn require_standing(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let Some(cx) = request.extensions().get::<TenantContext>() else { return next.run(request).await };
    let vouched = request.extensions().get::<SignedIn>().is_none();
    match limited(&app, cx.clone(), vouched).await {
        Ok(cx) => {
            request.extensions_mut().insert(cx);
            next.run(request).await
        }
        Err(error) => Problem(error).into_response(),
    }
}

async fn limited(app: &App, cx: TenantContext, vouched: bool) -> Result<TenantContext> {
    let Principal::Member { subject, .. } = cx.principal() else { return Ok(cx) };
    match app.db.read(&cx).await?.member_standing(subject).await? {
        Standing::Active { role, scopes, .. } => Ok(cx.limited_to(role, scopes.as_deref())),
        // The token's issuer vouches for those who have no row; nobody does for sessions and API tokens.
        Standing::Unknown if vouched && !app.members_only => Ok(cx),
        Standing::Unknown => Err(Error::new(ErrorKind::Forbidden, "only members of the tenant may do this")),
        _ => Err(invalid_token("its subject is a member no more")),
    }
}
