//! The layer from outside: what each kind of request is answered, byte for byte.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use chrono::DateTime;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tenancy_core::storage::memory::MemoryCatalog;
use tenancy_core::{
    Actor, Error, ErrorKind, ManualClock, NewTenant, Result, Role, Tenant, TenantCatalog, TenantChange, TenantContext, TenantHint,
    TenantId, TenantPage, TenantQuery, TenantStatus,
};
use tenancy_tower::{
    Algorithm, AllAgree, FirstOf, HostResolver, Identified, JwtResolver, KeySet, PathResolver, ResolveTenant, ResolveTenantLayer,
};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;

const NOW: i64 = 1_800_000_000;
const SECRET: &[u8] = b"a secret for tests, of 32 bytes.";

/// How the catalog answers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// From memory, at once.
    Warm,
    /// After a wait.
    Cold,
    /// Not at all.
    Away,
}

/// A catalog in memory that can be slow or away.
#[derive(Debug)]
struct Catalog(MemoryCatalog, Mode);

#[async_trait]
impl TenantCatalog for Catalog {
    fn peek(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        if self.1 == Mode::Warm { self.0.peek(hint) } else { None }
    }

    async fn find(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>> {
        tokio::task::yield_now().await;
        if self.1 == Mode::Away { Err(Error::new(ErrorKind::Unavailable, "the catalog is away")) } else { self.0.find(hint).await }
    }

    async fn list(&self, query: &TenantQuery, by: &Actor) -> Result<TenantPage> {
        self.0.list(query, by).await
    }

    async fn create(&self, new: NewTenant, by: &Actor) -> Result<Arc<Tenant>> {
        self.0.create(new, by).await
    }

    async fn update(&self, id: TenantId, change: TenantChange, expected: Option<u64>, by: &Actor) -> Result<Arc<Tenant>> {
        self.0.update(id, change, expected, by).await
    }
}

/// Two active tenants, and one in each other state that there can be.
struct World {
    catalog: Arc<dyn TenantCatalog>,
    acme: TenantId,
    calls: Arc<AtomicUsize>,
}

impl World {
    async fn new(mode: Mode) -> Self {
        let catalog = Catalog(MemoryCatalog::new(), mode);
        let make = async |slug: &str, through: &[TenantStatus]| {
            let new = NewTenant::new(slug.parse().expect("slug"), slug).active();
            let id = catalog.create(new, &Actor::System).await.expect("created").id;
            for status in through {
                catalog.update(id, TenantChange::status(*status), None, &Actor::System).await.expect("changed");
            }
            id
        };
        let acme = make("acme", &[]).await;
        make("beta", &[]).await;
        make("suspended-inc", &[TenantStatus::Suspended]).await;
        make("archived-inc", &[TenantStatus::Archived]).await;
        make("erased-inc", &[TenantStatus::Archived, TenantStatus::Erased]).await;
        make("moving-inc", &[TenantStatus::Moving]).await;
        let readable = make("readable-inc", &[]).await;
        let fence = TenantChange::status(TenantStatus::Restoring).with_reads(true);
        catalog.update(readable, fence, None, &Actor::System).await.expect("changed");
        Self { catalog: Arc::new(catalog), acme, calls: Arc::default() }
    }

    fn layer<R: ResolveTenant>(&self, resolver: R) -> ResolveTenantLayer<R> {
        ResolveTenantLayer::new(Arc::clone(&self.catalog), resolver)
    }

    /// Sends `request` through `layer` to a service that says whom it serves.
    async fn send<R: ResolveTenant>(&self, layer: &ResolveTenantLayer<R>, request: Request<()>) -> Response<String> {
        let calls = Arc::clone(&self.calls);
        let inner = service_fn(move |request: Request<()>| {
            calls.fetch_add(1, Ordering::SeqCst);
            let served = match request.extensions().get::<TenantContext>() {
                Some(cx) if cx.is_read_only() => format!("{} to be read", cx.tenant().slug),
                Some(cx) => format!("{} {} {:?}", cx.tenant().slug, cx.principal().actor(), cx.scopes()),
                None => "nobody".to_owned(),
            };
            std::future::ready(Ok::<_, Infallible>(Response::new(served)))
        });
        let Ok(response) = layer.layer(inner).oneshot(request).await;
        response
    }

    /// Sends `request`, which must be refused without reaching the inner service, and returns all of the answer.
    async fn refused<R: ResolveTenant>(&self, layer: &ResolveTenantLayer<R>, request: Request<()>) -> (StatusCode, String) {
        let before = self.calls.load(Ordering::SeqCst);
        let response = self.send(layer, request).await;
        assert_eq!(self.calls.load(Ordering::SeqCst), before, "a refused request reached the service");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let all = format!("{:?} {}", response.headers(), response.body());
        for name in ["acme", "beta", "-inc", &self.acme.to_string()] {
            assert!(!all.contains(name), "{all} names a tenant");
        }
        (response.status(), all)
    }
}

fn token_of(claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET)).expect("signed")
}

fn token(tenant: &str) -> String {
    token_of(&json!({"iss": "issuer", "aud": "app", "sub": "u1", "exp": NOW + 60, "tenant_id": tenant, "role": "member", "scope": "read"}))
}

fn jwt() -> JwtResolver {
    let clock = ManualClock::new(DateTime::from_timestamp(NOW, 0).expect("time"));
    let keys = KeySet::from_secret(SECRET).expect("secret");
    JwtResolver::new(keys, &[Algorithm::Hs256], "issuer", "app").expect("resolver").with_clock(clock)
}

fn host() -> HostResolver {
    HostResolver::new("example.com").expect("base")
}

fn request(token: Option<&str>, host: Option<&str>) -> Request<()> {
    let mut request = Request::get("/");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if let Some(host) = host {
        request = request.header("host", host);
    }
    request.body(()).expect("request")
}

fn outsider(host: &str) -> Request<()> {
    request(None, Some(host))
}

/// The one refusal that outsiders get.
async fn not_found(world: &World) -> (StatusCode, String) {
    let answer = world.refused(&world.layer(host()), outsider("no-such-tenant.example.com")).await;
    assert_eq!(answer.0, StatusCode::NOT_FOUND);
    assert!(answer.1.contains("urn:tenancy:problem:tenant-not-found"), "{}", answer.1);
    answer
}

#[tokio::test]
async fn a_request_is_served_as_the_tenant_it_names() {
    for mode in [Mode::Warm, Mode::Cold] {
        let world = World::new(mode).await;
        let both = world.layer(FirstOf::new(jwt()).then(host()));
        let served = world.send(&both, outsider("acme.example.com")).await;
        assert_eq!(served.body(), "acme visitor {}");
        let served = world.send(&both, request(Some(&token("beta")), None)).await;
        assert_eq!(served.body(), r#"beta member:u1 {"read"}"#);
        // The host alone would do; the proof makes it a member.
        let by_id = token(&world.acme.to_string());
        let served = world.send(&both, request(Some(&by_id), Some("ACME.example.com:443"))).await;
        assert_eq!(served.body(), r#"acme member:u1 {"read"}"#);
    }
}

#[tokio::test]
async fn to_outsiders_all_tenants_that_do_not_serve_are_alike() {
    for mode in [Mode::Warm, Mode::Cold] {
        let world = World::new(mode).await;
        let want = not_found(&world).await;
        let hosts = [
            "suspended-inc.example.com",
            "archived-inc.example.com",
            "erased-inc.example.com",
            "moving-inc.example.com",
            "xn--80ak6aa92e.example.com",
            "a.acme.example.com",
            "acme.example.com:http",
            "' or 1=1 --.example.com",
            "../acme.example.com",
        ];
        for bad in hosts {
            assert_eq!(world.refused(&world.layer(host()), outsider(bad)).await, want, "{bad}");
            assert_eq!(world.refused(&world.layer(FirstOf::new(jwt()).then(host())), outsider(bad)).await, want, "{bad}");
        }
        let path = world.layer(PathResolver::new("/t").expect("prefix"));
        for bad in
            ["/t/suspended-inc/x", "/t/nobody", "/t/../t/acme", "/t/%61cme", "/t//acme", "/t/", "//t/acme", "/t/acme/%2e%2e/beta", "/"]
        {
            assert_eq!(world.refused(&path, Request::get(bad).body(()).expect("request")).await, want, "{bad}");
        }
        let served = world.send(&path, Request::get("/t/acme/x").body(()).expect("request")).await;
        assert_eq!(served.body(), "acme visitor {}");
    }
}

#[tokio::test]
async fn a_disagreeing_hint_is_refused_whether_its_tenant_exists_or_not() {
    for mode in [Mode::Warm, Mode::Cold] {
        let world = World::new(mode).await;
        let want = not_found(&world).await;
        let first = world.layer(FirstOf::new(host()).then(jwt()));
        let all = world.layer(AllAgree::new(jwt()).and(host()));
        for tenant in ["acme", &world.acme.to_string()] {
            let token = token(tenant);
            for other in ["beta", "nobody", "suspended-inc", "erased-inc", "a.acme", "a_b"] {
                let request = || request(Some(&token), Some(&format!("{other}.example.com")));
                assert_eq!(world.refused(&first, request()).await, want, "first of: {other}");
                assert_eq!(world.refused(&all, request()).await, want, "all agree: {other}");
            }
            // Not the second hint as such is refused.
            for layer_answer in [
                world.send(&first, request(Some(&token), Some("acme.example.com"))).await,
                world.send(&all, request(Some(&token), Some("acme.example.com"))).await,
            ] {
                assert_eq!(layer_answer.status(), StatusCode::OK);
            }
        }
        // Three that differ, none of them proven.
        let names_beta = |_: &Parts| Ok(Some(Identified::claimed("beta".parse()?)));
        let claimed = world.layer(FirstOf::new(host()).then(names_beta));
        assert_eq!(world.refused(&claimed, outsider("acme.example.com")).await, want);
        assert_eq!(world.send(&claimed, outsider("beta.example.com")).await.body(), "beta visitor {}");
    }
}

#[tokio::test]
async fn a_member_hears_that_the_own_tenant_is_inactive_and_nothing_of_others() {
    for mode in [Mode::Warm, Mode::Cold] {
        let world = World::new(mode).await;
        let want = not_found(&world).await;
        let layer = world.layer(FirstOf::new(jwt()).then(host()));
        let inactive = world.refused(&layer, request(Some(&token("suspended-inc")), Some("example.com"))).await;
        assert_eq!(inactive.0, StatusCode::FORBIDDEN);
        assert!(inactive.1.contains("urn:tenancy:problem:tenant-inactive"));
        let agreeing = request(Some(&token("suspended-inc")), Some("suspended-inc.example.com"));
        assert_eq!(world.refused(&layer, agreeing).await, inactive);
        for unknown in ["nobody", "erased-inc", &TenantId::new().to_string()] {
            assert_eq!(world.refused(&layer, request(Some(&token(unknown)), None)).await, want, "{unknown}");
        }
        let disagreeing = request(Some(&token("suspended-inc")), Some("acme.example.com"));
        assert_eq!(world.refused(&layer, disagreeing).await, want);
    }
}

#[tokio::test]
async fn where_reads_go_on_safe_methods_are_served_read_only_and_others_wait() {
    for mode in [Mode::Warm, Mode::Cold] {
        let world = World::new(mode).await;
        let layer = world.layer(FirstOf::new(jwt()).then(host()));
        let asked = |method: &str, mut request: Request<()>| {
            *request.method_mut() = method.parse().expect("a method");
            request
        };
        let member = |slug: &str| request(Some(&token(slug)), None);
        for method in ["GET", "HEAD", "OPTIONS"] {
            for request in [member("readable-inc"), outsider("readable-inc.example.com")] {
                assert_eq!(world.send(&layer, asked(method, request)).await.body(), "readable-inc to be read", "{method}");
            }
            // The controls: one that can't be read, and one that is served.
            assert_eq!(world.refused(&layer, asked(method, member("moving-inc"))).await.0, StatusCode::SERVICE_UNAVAILABLE);
            assert!(world.send(&layer, asked(method, member("acme"))).await.body().starts_with("acme member"), "{method}");
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "PURGE", "get"] {
            let waits = world.refused(&layer, asked(method, member("readable-inc"))).await;
            assert!(waits.0 == StatusCode::SERVICE_UNAVAILABLE && waits.1.contains("retry-after"), "{method}: {waits:?}");
            let outside = world.refused(&layer, asked(method, outsider("readable-inc.example.com"))).await;
            assert_eq!(outside, not_found(&world).await, "{method}");
        }
    }
}

#[tokio::test]
async fn bad_tokens_are_refused_alike_even_where_the_host_would_do() {
    let world = World::new(Mode::Warm).await;
    let layer = world.layer(FirstOf::new(host()).then(jwt()));
    let good = json!({"iss": "issuer", "aud": "app", "sub": "u1", "exp": NOW + 60, "tenant_id": "acme", "role": "member"});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        token_of(&claims)
    };
    let good_token = token_of(&good);
    let unsigned = good_token.rsplit_once('.').expect("three parts").0;
    let bad = [
        String::new(),
        "x".to_owned(),
        "' or 1=1 --".to_owned(),
        format!("{unsigned}."),
        format!("eyJhbGciOiJub25lIn0.{}.", unsigned.split_once('.').expect("two parts").1),
        "a".repeat(100_000),
        with("exp", json!(NOW - 60)),
        with("exp", json!("never")),
        with("iss", json!("other")),
        with("aud", json!(null)),
        with("tenant_id", json!(["acme"])),
        with("tenant_id", json!({"eq": "acme"})),
        with("tenant_id", json!("acme".repeat(2500))),
        with("tenant_id", json!("acme' or '1'='1")),
        with("role", json!("superuser")),
        with("sub", json!("u1\n")),
    ];
    let mut answers = Vec::new();
    for token in &bad {
        answers.push(world.refused(&layer, request(Some(token), Some("acme.example.com"))).await);
    }
    assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
    assert!(answers[0].1.contains(r#"Bearer error=\"invalid_token\""#), "{}", answers[0].1);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(world.send(&layer, request(Some(&good_token), Some("acme.example.com"))).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_that_names_no_tenant_is_refused_or_let_through_without_one() {
    let world = World::new(Mode::Warm).await;
    let nameless = || outsider("example.com");
    let first = || FirstOf::new(host()).then(jwt());
    let (status, answer) = world.refused(&world.layer(first()), nameless()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(answer.contains(r#""www-authenticate": "Bearer""#), "{answer}");
    assert_eq!(world.refused(&world.layer(host()), nameless()).await, not_found(&world).await);

    let optional = world.layer(first()).optional();
    assert_eq!(world.send(&optional, nameless()).await.body(), "nobody");
    assert_eq!(world.refused(&optional, outsider("nobody.example.com")).await, not_found(&world).await);
    assert_eq!(world.refused(&optional, request(Some("x"), None)).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.send(&optional, outsider("acme.example.com")).await.body(), "acme visitor {}");

    // A token is missing, or the host that it is for.
    let all = world.layer(AllAgree::new(jwt()).and(host())).optional();
    assert_eq!(world.refused(&all, outsider("acme.example.com")).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.refused(&all, request(Some(&token("acme")), None)).await, not_found(&world).await);
    assert_eq!(world.send(&all, nameless()).await.body(), "nobody");
}

#[tokio::test]
async fn layers_agree() {
    let world = World::new(Mode::Warm).await;
    let inner = service_fn(|request: Request<()>| {
        let cx = request.extensions().get::<TenantContext>().map(|cx| cx.tenant().slug.to_string());
        std::future::ready(Ok::<_, Infallible>(Response::new(cx.unwrap_or_default())))
    });
    let by_path = world.layer(PathResolver::new("/t").expect("prefix"));
    let nested = world.layer(host()).layer(by_path.layer(inner));
    let send = |path: &str| Request::get(path).header("host", "acme.example.com").body(()).expect("request");
    let Ok(same) = nested.clone().oneshot(send("/t/acme")).await;
    assert_eq!(same.body(), "acme");
    let Ok(other) = nested.oneshot(send("/t/beta")).await;
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_catalog_that_is_away_is_a_503() {
    let world = World::new(Mode::Away).await;
    let (status, answer) = world.refused(&world.layer(host()), outsider("acme.example.com")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.contains(r#""retry-after": "1""#), "{answer}");
}

/// A service that must be polled ready before each call; a clone is not ready.
#[derive(Default)]
struct NeedsReady {
    ready: bool,
}

impl Clone for NeedsReady {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request<()>> for NeedsReady {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        std::future::ready(Ok(Response::new("served".to_owned())))
    }
}

#[tokio::test]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    for mode in [Mode::Warm, Mode::Cold] {
        let world = World::new(mode).await;
        let mut service = world.layer(host()).layer(NeedsReady::default());
        for _ in 0..3 {
            let Ok(ready) = service.ready().await;
            let Ok(response) = ready.call(outsider("acme.example.com")).await;
            assert_eq!(response.body(), "served");
        }
    }
}

#[test]
#[should_panic(expected = "called without being ready")]
fn a_clone_of_a_ready_service_is_not_ready() {
    let mut service = NeedsReady { ready: true };
    drop(service.clone().call(outsider("acme.example.com")));
    drop(service.call(outsider("acme.example.com")));
}

mod handlers {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use http_body_util::BodyExt as _;
    use tenancy_tower::axum::{CurrentTenant, Problem};

    use super::*;

    async fn name(CurrentTenant(cx): CurrentTenant) -> String {
        cx.tenant().slug.to_string()
    }

    async fn perhaps(tenant: Option<CurrentTenant>) -> String {
        tenant.map_or("nobody".to_owned(), |CurrentTenant(cx)| cx.tenant().slug.to_string())
    }

    async fn admins(CurrentTenant(cx): CurrentTenant) -> Result<&'static str, Problem> {
        cx.require(Role::Admin)?;
        Ok("welcome")
    }

    fn routes() -> Router {
        Router::new().route("/name", get(name)).route("/perhaps", get(perhaps)).route("/admins", get(admins))
    }

    async fn send(router: &Router, path: &str, host: &str, token: Option<&str>) -> (StatusCode, String) {
        let mut request = Request::get(path).header("host", host);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let Ok(response) = router.clone().oneshot(request.body(Body::empty()).expect("request")).await;
        let status = response.status();
        let body = response.into_body().collect().await.expect("body").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn handlers_get_the_context() {
        let world = World::new(Mode::Cold).await;
        let resolver = FirstOf::new(jwt()).then(host());
        let router = routes().layer(world.layer(resolver).optional());
        let ok = |text: &str| (StatusCode::OK, text.to_owned());
        assert_eq!(send(&router, "/name", "acme.example.com", None).await, ok("acme"));
        assert_eq!(send(&router, "/perhaps", "acme.example.com", None).await, ok("acme"));
        assert_eq!(send(&router, "/perhaps", "example.com", None).await, ok("nobody"));
        let (status, body) = send(&router, "/name", "example.com", None).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.contains("urn:tenancy:problem:unauthenticated"), "{body}");
        assert_eq!(send(&router, "/name", "nobody.example.com", None).await.0, StatusCode::NOT_FOUND);
        // The token's role is a member's.
        assert_eq!(send(&router, "/admins", "acme.example.com", Some(&token("acme"))).await.0, StatusCode::FORBIDDEN);
        assert_eq!(send(&router, "/admins", "acme.example.com", None).await.0, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn a_route_without_the_layer_fails_instead_of_serving_nobody() {
        for path in ["/name", "/perhaps"] {
            let (status, body) = send(&routes(), path, "acme.example.com", None).await;
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
            assert!(!body.contains("ResolveTenantLayer"), "{body}");
        }
    }
}
