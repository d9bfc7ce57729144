//! The layer in front of real services: what it lets through, what it answers, and when a place is free again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tenancy_core::quota::{Admit, Admitted, Ask, Denial, Node, Place, Priority, Reason, Refusal, Slot, Standing, Terms};
use tenancy_core::{NewTenant, Principal, Tenant, TenantContext};
use tenancy_tower::AdmitLayer;
use tower::ServiceExt as _;

/// Slots without a database: so many units, and no more.
struct Units {
    slot: Slot,
    node: Node,
    /// Whether the first request must wait for its units.
    cold: AtomicBool,
}

struct Handle(Arc<Units>);

impl Place for Units {
    fn release(&self) {
        self.slot.release(&self.node);
    }

    fn standing(&self) -> Option<Standing> {
        Some(Standing::new("api", 100, Some(3600), self.slot.left(), Some(60)))
    }
}

impl Units {
    fn new(units: u64, at_once: u32) -> Arc<Self> {
        let slot = Slot::new();
        let mut terms = Terms::default();
        terms.concurrency = Some(at_once);
        slot.set_terms(terms);
        slot.add(units, 0, u64::MAX);
        Arc::new(Self { slot, node: Node::new(10), cold: AtomicBool::new(true) })
    }

    fn decide(self: &Arc<Self>, ask: Ask) -> Result<Admitted, Denial> {
        match self.slot.admit(&self.node, ask.priority, ask.cost, 0) {
            Ok(_) => Ok(Admitted::new(Arc::clone(self) as Arc<dyn Place>)),
            Err(Refusal::Concurrency) => Err(Denial::new(Reason::Concurrency, "api.concurrency")),
            Err(Refusal::Shed) => {
                Err(Denial::new(Reason::Shed, "node.capacity").with_retry_after(Some(std::time::Duration::from_millis(1))))
            }
            Err(_) => {
                let denial = Denial::new(Reason::Exhausted, "api").with_limit(Some(100), Some(3600));
                Err(denial.with_retry_after(Some(std::time::Duration::from_millis(59_001))))
            }
        }
    }
}

#[async_trait]
impl Admit for Handle {
    fn try_admit(&self, _: &TenantContext, ask: Ask) -> Option<Result<Admitted, Denial>> {
        (!self.0.cold.load(Ordering::Relaxed)).then(|| self.0.decide(ask))
    }

    async fn admit(&self, _: &TenantContext, ask: Ask) -> Result<Admitted, Denial> {
        tokio::task::yield_now().await;
        self.0.cold.store(false, Ordering::Relaxed);
        self.0.decide(ask)
    }
}

fn context() -> TenantContext {
    let new = NewTenant::new("acme".parse().expect("slug"), "Acme").active();
    let tenant = Arc::new(Tenant::new(new, chrono::DateTime::UNIX_EPOCH).expect("tenant"));
    TenantContext::establish(tenant.into_active().expect("active"), Principal::Visitor)
}

fn request(method: Method, cx: Option<TenantContext>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri("/").body(Body::empty()).expect("request");
    if let Some(cx) = cx {
        request.extensions_mut().insert(cx);
    }
    request
}

fn app(units: &Arc<Units>) -> Router {
    let layer = AdmitLayer::new(Handle(Arc::clone(units)));
    let layer =
        layer.asking(|method, _| if *method == Method::POST { Ask::cost(5) } else { Ask::default().with_priority(Priority::Critical) });
    Router::new().route("/", get(|| async { "hello" }).post(|| async { "done" })).layer(layer)
}

async fn send(app: &Router, method: Method, cx: Option<TenantContext>) -> Response<Body> {
    app.clone().oneshot(request(method, cx)).await.expect("infallible")
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.expect("body").to_bytes().to_vec()).expect("text")
}

#[tokio::test]
async fn a_route_costs_what_it_asks_and_answers_say_what_is_left() {
    let (units, cx) = (Units::new(12, 10), context());
    let app = app(&units);
    let response = send(&app, Method::POST, Some(cx.clone())).await;
    assert_eq!((response.status(), units.slot.left()), (StatusCode::OK, 7));
    assert_eq!(response.headers()["ratelimit-policy"], "\"api\";q=100;w=3600");
    assert_eq!(response.headers()["ratelimit"], "\"api\";r=7;t=60");
    assert_eq!(text(response).await, "done");
    assert_eq!(send(&app, Method::GET, Some(cx.clone())).await.status(), StatusCode::OK);
    assert_eq!(send(&app, Method::POST, Some(cx.clone())).await.status(), StatusCode::OK);
    let denied = send(&app, Method::POST, Some(cx.clone())).await;
    assert_eq!((denied.status(), units.slot.left()), (StatusCode::TOO_MANY_REQUESTS, 1));
    assert_eq!(
        (&denied.headers()["retry-after"], &denied.headers()["ratelimit"]),
        (&"60".parse().expect("value"), &"\"api\";r=0;t=60".parse().expect("value"))
    );
    let wanted = r#"{"type":"urn:tenancy:problem:exhausted","title":"Too many requests","status":429,"detail":"the quota of api is used up","violated-policies":["api"]}"#;
    assert_eq!(text(denied).await, wanted);
    // What is left is still served.
    assert_eq!(send(&app, Method::GET, Some(cx)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_place_is_held_until_the_body_has_ended_or_is_dropped() {
    let (units, cx) = (Units::new(100, 1), context());
    let app = app(&units);
    let first = send(&app, Method::GET, Some(cx.clone())).await;
    assert_eq!(send(&app, Method::GET, Some(cx.clone())).await.status(), StatusCode::TOO_MANY_REQUESTS);
    let mut body = first.into_body();
    while let Some(frame) = body.frame().await {
        frame.expect("frame");
    }
    assert_eq!(units.slot.in_flight(), 0, "ended, and not yet dropped");
    let second = send(&app, Method::GET, Some(cx.clone())).await;
    assert_eq!((second.status(), units.slot.in_flight()), (StatusCode::OK, 1));
    drop(second);
    assert_eq!((units.slot.in_flight(), units.node.in_flight(), units.node.active()), (0, 0, 0));
    // A request that is dropped in the handler gives its place back as well.
    let stuck = Router::new().route("/", get(std::future::pending::<&str>)).layer(AdmitLayer::new(Handle(Arc::clone(&units))));
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), stuck.oneshot(request(Method::GET, Some(cx)))).await;
    assert!(waiting.is_err() && units.slot.in_flight() == 0);
}

#[tokio::test]
async fn a_full_node_answers_503() {
    let (units, cx) = (Units::new(100, 100), context());
    let app = app(&units);
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(send(&app, Method::GET, Some(cx.clone())).await);
    }
    let shed = send(&app, Method::GET, Some(cx)).await;
    assert_eq!((shed.status(), &shed.headers()["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().expect("value")));
    assert!(!shed.headers().contains_key("ratelimit") && text(shed).await.contains("\"urn:tenancy:problem:shed\""));
}

#[tokio::test]
async fn without_a_tenant_nothing_is_served_unless_said() {
    let units = Units::new(100, 100);
    assert_eq!(send(&app(&units), Method::GET, None).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let open = Router::new().route("/", get(|| async { "hello" })).layer(AdmitLayer::new(Handle(Arc::clone(&units))).tenantless());
    assert_eq!(send(&open, Method::GET, None).await.status(), StatusCode::OK);
    assert_eq!(units.slot.left(), 100);
}
