//! Every route of the API, in one table per kind of caller. `openapi.json` is tested against them.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, MethodRouter, on};
use tenancy_core::OperatorRole;
use tenancy_tower::{AdmitLayer, HostResolver, ResolveTenant, ResolveTenantLayer};

use crate::app::App;
use crate::edge::edge;
use crate::impersonation::impersonate;
use crate::link_rate;
use crate::operator::{require_operator, require_role};
use crate::problem;
use crate::signed_in::identify;
use crate::standing::require_standing;
use crate::visitor::Callers;

mod api_tokens;
mod attachments;
mod audit;
mod backups;
mod branding;
mod comments;
mod config;
mod documents;
mod domains;
mod doors;
mod federated;
mod federation;
mod flags;
mod impersonations;
mod invites;
mod lifecycle;
mod link_page;
mod links;
mod logo;
mod mailbox;
mod members;
mod metrics;
mod open;
mod operators;
mod outbox;
mod projects;
mod public;
mod quotas;
mod sessions;
mod shared;
mod shares;
mod sharing;
mod sign_in;
mod tenant;
mod tenants;
mod webhooks;

/// One operation of the API.
struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "`handler` answers to it alone; tests compare it with the document"))]
    method: Method,
    path: &'static str,
    handler: MethodRouter<Arc<App>>,
    /// Of a route for operators: the role that it needs, which is the highest unless it says otherwise.
    role: OperatorRole,
}

impl Route {
    /// Operators with this role may call it.
    fn open_to(self, role: OperatorRole) -> Self {
        Self { role, ..self }
    }
}

fn route<T: 'static>(method: Method, path: &'static str, handler: impl Handler<T, Arc<App>>) -> Route {
    let filter = MethodFilter::try_from(method.clone()).expect("the tables below have standard methods only");
    Route { method, path, handler: on(filter, handler), role: OperatorRole::Admin }
}

/// For anybody.
fn open_routes() -> Vec<Route> {
    vec![
        route(Method::GET, "/healthz", open::healthz),
        route(Method::GET, "/readyz", open::readyz),
        route(Method::GET, "/openapi.json", open::openapi),
        route(Method::POST, "/api/v1/sign-in", sign_in::request),
        route(Method::POST, "/api/v1/sign-in/accept", sign_in::accept),
        route(Method::POST, "/api/v1/invites/accept", sign_in::accept_invite),
        route(Method::GET, "/.well-known/tenancy-federation", federation::announce),
        route(Method::GET, "/federation/v1/shares/{federated_share}/document", federation::document),
        route(Method::POST, "/federation/v1/shares/{federated_share}/accept", federation::accept),
        route(Method::POST, "/federation/v1/shares/{federated_share}/decline", federation::decline),
        route(Method::POST, "/federation/v1/shares/{federated_share}/end", federation::end),
    ]
}

/// For anybody who has a link.
fn link_routes() -> Vec<Route> {
    vec![
        route(Method::GET, "/s/{token}", public::open),
        route(Method::POST, "/s/{token}", public::open_with),
        route(Method::GET, "/s/{token}/attachments/{name}", public::download),
    ]
}

/// For anybody who has a link to what operators keep: where there are administrative credentials.
fn download_routes() -> Vec<Route> {
    vec![route(Method::GET, "/downloads/{token}", backups::download)]
}

/// For operators: a route that does not say to which role it is open needs the highest.
fn operator_routes() -> Vec<Route> {
    use OperatorRole::{Support, Viewer};
    vec![
        route(Method::GET, "/metrics", metrics::show).open_to(Viewer),
        route(Method::GET, "/api/v1/tenants", tenants::list).open_to(Viewer),
        route(Method::POST, "/api/v1/tenants", tenants::create),
        route(Method::GET, "/api/v1/tenants/{tenant}", tenants::show).open_to(Viewer),
        route(Method::PATCH, "/api/v1/tenants/{tenant}", tenants::change),
        route(Method::DELETE, "/api/v1/tenants/{tenant}", tenants::archive),
        route(Method::POST, "/api/v1/tenants/{tenant}/suspend", tenants::suspend),
        route(Method::POST, "/api/v1/tenants/{tenant}/resume", tenants::resume),
        route(Method::GET, "/api/v1/tenants/{tenant}/quotas", quotas::list).open_to(Viewer),
        route(Method::PUT, "/api/v1/tenants/{tenant}/quotas", quotas::put),
        route(Method::GET, "/api/v1/tenants/{tenant}/usage", quotas::usage).open_to(Viewer),
        route(Method::GET, "/api/v1/outbox", outbox::list).open_to(Viewer),
        route(Method::POST, "/api/v1/outbox/{message}/redeliver", outbox::redeliver).open_to(Support),
        route(Method::GET, "/api/v1/tenants/{tenant}/audit", audit::list).open_to(Support),
        route(Method::POST, "/api/v1/tenants/{tenant}/erase", lifecycle::erase),
        route(Method::GET, "/api/v1/tenants/{tenant}/config", config::show).open_to(Viewer),
        route(Method::PATCH, "/api/v1/tenants/{tenant}/config", config::change),
        route(Method::GET, "/api/v1/tenants/{tenant}/config/history", config::history).open_to(Viewer),
        route(Method::POST, "/api/v1/tenants/{tenant}/config/rollback", config::roll_back),
        route(Method::GET, "/api/v1/plans/{plan}/config", config::show_plan).open_to(Viewer),
        route(Method::PATCH, "/api/v1/plans/{plan}/config", config::change_plan),
        route(Method::POST, "/api/v1/tenants/{tenant}/provision", lifecycle::provision),
        route(Method::POST, "/api/v1/tenants/{tenant}/export", lifecycle::export),
        route(Method::POST, "/api/v1/tenants/{tenant}/backup", backups::take),
        route(Method::POST, "/api/v1/tenants/{tenant}/restore", backups::restore),
        route(Method::POST, "/api/v1/tenants/{tenant}/clone", backups::clone),
        route(Method::POST, "/api/v1/tenants/{tenant}/drill", backups::drill),
        route(Method::GET, "/api/v1/tenants/{tenant}/backups", backups::list).open_to(Viewer),
        route(Method::GET, "/api/v1/tenants/{tenant}/backups/{backup}", backups::show).open_to(Viewer),
        route(Method::PATCH, "/api/v1/tenants/{tenant}/backups/{backup}", backups::hold),
        route(Method::DELETE, "/api/v1/tenants/{tenant}/backups/{backup}", backups::delete),
        route(Method::POST, "/api/v1/tenants/{tenant}/backups/{backup}/download", backups::link),
        route(Method::GET, "/api/v1/tenants/{tenant}/backup-schedule", backups::schedule).open_to(Viewer),
        route(Method::PUT, "/api/v1/tenants/{tenant}/backup-schedule", backups::put_schedule),
        route(Method::DELETE, "/api/v1/tenants/{tenant}/backup-schedule", backups::remove_schedule),
        route(Method::GET, "/api/v1/tenants/{tenant}/drills", backups::drills).open_to(Viewer),
        route(Method::POST, "/api/v1/operations/{operation}/cancel", lifecycle::cancel),
        route(Method::GET, "/api/v1/operations/{operation}/files/{file}", lifecycle::file),
        route(Method::GET, "/api/v1/tenants/{tenant}/operations", lifecycle::list).open_to(Viewer),
        route(Method::GET, "/api/v1/operations/{operation}", lifecycle::show).open_to(Viewer),
        route(Method::GET, "/api/v1/operators", operators::list),
        route(Method::POST, "/api/v1/operators", operators::create),
        route(Method::GET, "/api/v1/operators/{operator}", operators::show),
        route(Method::PATCH, "/api/v1/operators/{operator}", operators::change),
        route(Method::DELETE, "/api/v1/operators/{operator}", operators::disable),
        route(Method::POST, "/api/v1/operators/{operator}/token", operators::rotate),
        route(Method::POST, "/api/v1/tenants/{tenant}/impersonate", impersonations::start).open_to(Support),
        route(Method::GET, "/api/v1/tenants/{tenant}/impersonations", impersonations::list).open_to(Support),
        route(Method::DELETE, "/api/v1/tenants/{tenant}/impersonations/{impersonation}", impersonations::end).open_to(Support),
        route(Method::GET, "/api/v1/flag-definitions", flags::list).open_to(Viewer),
        route(Method::GET, "/api/v1/flags/{flag}", flags::show).open_to(Viewer),
        route(Method::PUT, "/api/v1/flags/{flag}", flags::put),
        route(Method::DELETE, "/api/v1/flags/{flag}", flags::remove),
        route(Method::GET, "/api/v1/sharing-platform", sharing::platform).open_to(Viewer),
        route(Method::PUT, "/api/v1/sharing-platform", sharing::put_platform),
        route(Method::GET, "/api/v1/tenants/{tenant}/shares", sharing::of_tenant).open_to(Viewer),
        route(Method::GET, "/api/v1/federation/peers", federation::peers).open_to(Viewer),
        route(Method::POST, "/api/v1/federation/peers", federation::add),
        route(Method::DELETE, "/api/v1/federation/peers/{peer}", federation::remove),
        route(Method::POST, "/api/v1/federation/peers/{peer}/rotate", federation::rotate),
        route(Method::GET, "/api/v1/tenants/{tenant}/links", sharing::links_of_tenant).open_to(Viewer),
    ]
}

/// For whoever has a token of a tenant: each sees that tenant's things alone.
fn tenant_routes() -> Vec<Route> {
    const ATTACHMENT: &str = "/api/v1/documents/{document}/attachments/{name}";
    vec![
        route(Method::GET, "/api/v1/tenant", tenant::show),
        route(Method::GET, "/api/v1/tenant/quotas", quotas::own),
        route(Method::GET, "/api/v1/tenant/usage", quotas::own_usage),
        route(Method::GET, "/api/v1/projects", projects::list),
        route(Method::POST, "/api/v1/projects", projects::create),
        route(Method::GET, "/api/v1/projects/{project}", projects::show),
        route(Method::PATCH, "/api/v1/projects/{project}", projects::change),
        route(Method::DELETE, "/api/v1/projects/{project}", projects::delete),
        route(Method::GET, "/api/v1/projects/{project}/documents", documents::list),
        route(Method::POST, "/api/v1/projects/{project}/documents", documents::create),
        route(Method::GET, "/api/v1/documents/{document}", documents::show),
        route(Method::PATCH, "/api/v1/documents/{document}", documents::change),
        route(Method::DELETE, "/api/v1/documents/{document}", documents::delete),
        route(Method::GET, "/api/v1/documents/{document}/attachments", attachments::list),
        route(Method::GET, ATTACHMENT, attachments::download),
        route(Method::PUT, ATTACHMENT, attachments::upload),
        route(Method::DELETE, ATTACHMENT, attachments::delete),
        route(Method::GET, "/api/v1/documents/{document}/comments", comments::list),
        route(Method::POST, "/api/v1/documents/{document}/comments", comments::add),
        route(Method::GET, "/api/v1/me", members::me),
        route(Method::GET, "/api/v1/members", members::list),
        route(Method::POST, "/api/v1/members", members::create),
        route(Method::GET, "/api/v1/members/{member}", members::show),
        route(Method::PATCH, "/api/v1/members/{member}", members::change),
        route(Method::DELETE, "/api/v1/members/{member}", members::remove),
        route(Method::GET, "/api/v1/audit", audit::own),
        route(Method::GET, "/api/v1/invites", invites::list),
        route(Method::POST, "/api/v1/invites", invites::create),
        route(Method::DELETE, "/api/v1/invites/{invite}", invites::revoke),
        route(Method::POST, "/api/v1/invites/{invite}/resend", invites::resend),
        route(Method::GET, "/api/v1/sessions", sessions::list),
        route(Method::DELETE, "/api/v1/sessions", sessions::end_all),
        route(Method::DELETE, "/api/v1/sessions/{session}", sessions::end),
        route(Method::GET, "/api/v1/api-tokens", api_tokens::list),
        route(Method::POST, "/api/v1/api-tokens", api_tokens::create),
        route(Method::DELETE, "/api/v1/api-tokens/{api_token}", api_tokens::revoke),
        route(Method::GET, "/api/v1/config", config::own),
        route(Method::PATCH, "/api/v1/config", config::change_own),
        route(Method::GET, "/api/v1/config/history", config::own_history),
        route(Method::POST, "/api/v1/config/rollback", config::roll_own_back),
        route(Method::PUT, "/api/v1/branding", branding::put),
        route(Method::PATCH, "/api/v1/branding", branding::patch),
        route(Method::GET, "/api/v1/impersonations", impersonations::own),
        route(Method::DELETE, "/api/v1/impersonations/{impersonation}", impersonations::end_own),
        route(Method::GET, "/api/v1/impersonation-consent", impersonations::consent),
        route(Method::PUT, "/api/v1/impersonation-consent", impersonations::set_consent),
        route(Method::GET, "/api/v1/domains", domains::list),
        route(Method::POST, "/api/v1/domains", domains::claim),
        route(Method::GET, "/api/v1/domains/{domain}", domains::show),
        route(Method::DELETE, "/api/v1/domains/{domain}", domains::release),
        route(Method::POST, "/api/v1/domains/{domain}/verify", domains::verify),
        route(Method::GET, "/api/v1/webhooks", webhooks::list),
        route(Method::POST, "/api/v1/webhooks", webhooks::create),
        route(Method::PATCH, "/api/v1/webhooks/{webhook}", webhooks::change),
        route(Method::DELETE, "/api/v1/webhooks/{webhook}", webhooks::remove),
        route(Method::POST, "/api/v1/webhooks/{webhook}/rotate", webhooks::rotate),
        route(Method::POST, "/api/v1/webhooks/{webhook}/test", webhooks::test),
        route(Method::GET, "/api/v1/webhooks/{webhook}/deliveries", webhooks::deliveries),
        route(Method::PUT, "/api/v1/branding/logo", logo::upload),
        route(Method::DELETE, "/api/v1/branding/logo", logo::delete),
        route(Method::GET, "/api/v1/flags", flags::own),
        route(Method::GET, "/api/v1/sharing", sharing::show),
        route(Method::PUT, "/api/v1/sharing", sharing::put),
        route(Method::POST, "/api/v1/shares", shares::create),
        route(Method::GET, "/api/v1/shares", shares::list),
        route(Method::GET, "/api/v1/shares/{share}", shares::show),
        route(Method::DELETE, "/api/v1/shares/{share}", shares::end),
        route(Method::POST, "/api/v1/shares/{share}/accept", shares::accept),
        route(Method::POST, "/api/v1/shares/{share}/decline", shares::decline),
        route(Method::GET, "/api/v1/shares/{share}/log", shares::log),
        route(Method::GET, "/api/v1/shares/{share}/document", shared::show),
        route(Method::PATCH, "/api/v1/shares/{share}/document", shared::change),
        route(Method::GET, "/api/v1/shares/{share}/attachments", shared::list_attachments),
        route(Method::GET, "/api/v1/shares/{share}/attachments/{name}", shared::download),
        route(Method::GET, "/api/v1/shares/{share}/comments", comments::list_shared),
        route(Method::POST, "/api/v1/shares/{share}/comments", comments::add_shared),
        route(Method::GET, "/api/v1/documents", shared::list),
        route(Method::POST, "/api/v1/links", links::create),
        route(Method::GET, "/api/v1/links", links::list),
        route(Method::GET, "/api/v1/links/{link}", links::show),
        route(Method::DELETE, "/api/v1/links/{link}", links::revoke),
        route(Method::POST, "/api/v1/federated-shares", federated::offer),
        route(Method::GET, "/api/v1/federated-shares", federated::list),
        route(Method::POST, "/api/v1/federated-shares/accept", federated::accept),
        route(Method::POST, "/api/v1/federated-shares/decline", federated::decline),
        route(Method::GET, "/api/v1/federated-shares/{federated_share}", federated::show),
        route(Method::DELETE, "/api/v1/federated-shares/{federated_share}", federated::end),
        route(Method::GET, "/api/v1/federated-shares/{federated_share}/document", federated::document),
    ]
}

/// For whoever has a token of a tenant, and for visitors of its host: what a sign-in page shows.
fn visitor_routes() -> Vec<Route> {
    vec![route(Method::GET, "/api/v1/branding", branding::show), route(Method::GET, "/api/v1/branding/logo", logo::show)]
}

/// The whole API; the operators' part only where it `has_admin` credentials to work with.
pub(crate) fn router(app: &Arc<App>, resolver: impl ResolveTenant, host: Option<HostResolver>, has_admin: bool) -> Router {
    let mount =
        |routes: Vec<Route>| routes.into_iter().fold(Router::new(), |router, Route { path, handler, .. }| router.route(path, handler));
    let catalog = Arc::new(app.catalog.clone());
    let resolver = Arc::new(resolver);
    // From outside in: who signed in, or an operator's visit, whose request it is, what that member may do now, whether it is admitted, then the handler.
    let tenants = mount(tenant_routes())
        .route_layer(AdmitLayer::new(app.meter.clone()))
        .route_layer(from_fn_with_state(Arc::clone(app), require_standing))
        .route_layer(ResolveTenantLayer::new(catalog.clone(), Callers::signed_in(&resolver)))
        .route_layer(from_fn_with_state(Arc::clone(app), impersonate))
        .route_layer(from_fn_with_state(Arc::clone(app), identify));
    // Not admitted: whoever has no credentials must not be able to use up what the tenant may ask.
    let visitors = mount(visitor_routes())
        .route_layer(from_fn_with_state(Arc::clone(app), require_standing))
        .route_layer(ResolveTenantLayer::new(catalog, Callers::or_visiting(&resolver, host)))
        .route_layer(from_fn_with_state(Arc::clone(app), impersonate))
        .route_layer(from_fn_with_state(Arc::clone(app), identify));
    let links = if has_admin { link_routes().into_iter().chain(download_routes()).collect() } else { link_routes() };
    let links = mount(links).layer(from_fn_with_state(Arc::clone(app), link_rate::limit)).layer(from_fn(public::shield));
    let mut router = mount(open_routes()).merge(links).merge(tenants).merge(visitors);
    // For people who follow a link in a mail, and no part of the API.
    router = router
        .route("/welcome/{token}", on(MethodFilter::GET, doors::welcome).on(MethodFilter::POST, doors::join))
        .route("/sign-in/{token}", on(MethodFilter::GET, doors::sign_in).on(MethodFilter::POST, doors::enter_by_link));
    if has_admin {
        let routes = operator_routes().into_iter().map(|route| {
            let handler = route.handler.route_layer(from_fn_with_state(route.role, require_role));
            Route { handler, ..route }
        });
        router = router.merge(mount(routes.collect()).route_layer(from_fn_with_state(Arc::clone(app), require_operator)));
    }
    // For a developer on this machine, and no part of the API.
    if app.mailbox.is_some() {
        router = router
            .route("/dev/mailbox", on(MethodFilter::GET, mailbox::list))
            .route("/dev/mailbox/{id}", on(MethodFilter::GET, mailbox::show));
    }
    router
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(app), edge))
        .with_state(Arc::clone(app))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_openapi_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(open::OPENAPI).expect("JSON");
        let mut documented = BTreeSet::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in item.as_object().expect("a path item").keys().filter(|key| !matches!(key.as_str(), "parameters" | "summary")) {
                documented.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        let routes =
            [open_routes(), link_routes(), download_routes(), operator_routes(), tenant_routes(), visitor_routes()].into_iter().flatten();
        let routed: BTreeSet<_> = routes.map(|route| format!("{} {}", route.method, route.path)).collect();
        assert_eq!(documented, routed);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn every_operation_for_operators_says_which_role_it_needs() {
        let document: Value = serde_json::from_str(open::OPENAPI).expect("JSON");
        for Route { method, path, role, .. } in operator_routes() {
            let operation = &document["paths"][path][method.as_str().to_lowercase()];
            assert_eq!(operation["x-operator-role"], role.as_str(), "{method} {path}");
            // Whoever only looks changes nothing.
            assert!(role > OperatorRole::Viewer || method == Method::GET, "{method} {path}");
        }
        for Route { method, path, .. } in open_routes().into_iter().chain(tenant_routes()) {
            assert!(document["paths"][path][method.as_str().to_lowercase()]["x-operator-role"].is_null(), "{method} {path}");
        }
    }

    #[test]
    fn every_operation_says_who_may_call_it_and_every_reference_is_kept() {
        let document: Value = serde_json::from_str(open::OPENAPI).expect("JSON");
        for (routes, security) in [
            (open_routes(), "[]"),
            (operator_routes(), "[{\"operator\":[]}]"),
            (tenant_routes(), "[{\"tenant\":[]}]"),
            (visitor_routes(), "[{\"tenant\":[]},{}]"),
            (link_routes(), "[]"),
            (download_routes(), "[]"),
        ] {
            for Route { method, path, .. } in routes {
                let operation = &document["paths"][path][method.as_str().to_lowercase()];
                assert_eq!(operation["security"].to_string(), security, "{method} {path}");
                for (_, name) in
                    path.match_indices('{').map(|(at, _)| path[at + 1..].split_once('}').map_or((0, ""), |(name, _)| (at, name)))
                {
                    let all = [&document["paths"][path]["parameters"], &operation["parameters"]];
                    let named = all.into_iter().filter_map(Value::as_array).flatten().any(|parameter| {
                        let of = parameter["$ref"].as_str().and_then(|pointer| document.pointer(&pointer[1..])).unwrap_or(parameter);
                        of["name"] == name && of["in"] == "path"
                    });
                    assert!(named, "{method} {path}: {name}");
                }
            }
        }
        fn check(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(pointer) = members.get("$ref").and_then(Value::as_str) {
                        assert!(document.pointer(&pointer[1..]).is_some(), "{pointer}");
                    }
                    members.values().for_each(|member| check(member, document));
                }
                Value::Array(items) => items.iter().for_each(|item| check(item, document)),
                _ => {}
            }
        }
        check(&document, &document);
    }
}
