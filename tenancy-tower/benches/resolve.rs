//! What the layer costs a request, in one run: `cargo bench -p tenancy-tower --features jwt`.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use async_trait::async_trait;
use http::{Request, Response};
use tenancy_core::storage::memory::MemoryCatalog;
use tenancy_core::{
    Actor, Clock as _, NewTenant, Result, SystemClock, Tenant, TenantCatalog, TenantChange, TenantContext, TenantHint, TenantId,
    TenantPage, TenantQuery,
};
use tenancy_tower::{Algorithm, FirstOf, HeaderResolver, HostResolver, JwtResolver, KeySet, ResolveTenantLayer};
use tower::{Layer, Service};

const ROUNDS: u32 = 200_000;
const REPEATS: usize = 5;
const SECRET: &[u8] = b"a secret for a benchmark, public";

/// A catalog whose warm path is one hash lookup, as a cache's is.
#[derive(Debug)]
struct Cached {
    store: MemoryCatalog,
    warm: RwLock<HashMap<TenantHint, Arc<Tenant>>>,
}

#[async_trait]
impl TenantCatalog for Cached {
    fn peek(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        self.warm.read().unwrap_or_else(PoisonError::into_inner).get(hint).cloned()
    }

    async fn find(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>> {
        self.store.find(hint).await
    }

    async fn list(&self, query: &TenantQuery, by: &Actor) -> Result<TenantPage> {
        self.store.list(query, by).await
    }

    async fn create(&self, new: NewTenant, by: &Actor) -> Result<Arc<Tenant>> {
        let tenant = self.store.create(new, by).await?;
        let mut warm = self.warm.write().unwrap_or_else(PoisonError::into_inner);
        warm.insert(tenant.slug.clone().into(), Arc::clone(&tenant));
        warm.insert(tenant.id.into(), Arc::clone(&tenant));
        Ok(tenant)
    }

    async fn update(&self, id: TenantId, change: TenantChange, expected: Option<u64>, by: &Actor) -> Result<Arc<Tenant>> {
        self.store.update(id, change, expected, by).await
    }
}

/// Runs a future that never waits.
fn now<F: Future>(future: F) -> F::Output {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("everything here is warm"),
    }
}

/// Nanoseconds per request, the best of some repeats.
fn measure<S>(mut service: S, token: &str) -> f64
where
    S: Service<Request<()>, Response = Response<String>, Error = Infallible>,
{
    let mut request = || {
        let request = Request::get("/projects").header("host", "tenant-500.example.com").header("x-tenant", "tenant-500");
        let request = request.header("authorization", token).body(()).expect("request");
        let Ok(response) = now(service.call(request));
        assert!(response.status().is_success(), "{response:?}");
        black_box(response);
    };
    let run = |_| {
        let start = Instant::now();
        (0..ROUNDS).for_each(|_| request());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
    };
    (0..REPEATS).map(run).fold(f64::INFINITY, f64::min)
}

fn main() -> Result<()> {
    let catalog = Arc::new(Cached { store: MemoryCatalog::new(), warm: RwLock::default() });
    for at in 0..1000 {
        now(catalog.create(NewTenant::new(format!("tenant-{at}").parse()?, "T").active(), &Actor::System))?;
    }
    let exp = SystemClock.now().timestamp() + 3600;
    let claims = serde_json::json!({"iss": "i", "aud": "a", "sub": "u", "exp": exp, "tenant_id": "tenant-500", "role": "member"});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signed");
    let token = format!("Bearer {token}");

    let host = || HostResolver::new("example.com");
    let header = || {
        let name = http::HeaderName::from_static("x-tenant");
        HeaderResolver::new(name, &["127.0.0.0/8"], |_| Some(std::net::Ipv4Addr::LOCALHOST.into()))
    };
    let jwt = || JwtResolver::new(KeySet::from_secret(SECRET)?, &[Algorithm::Hs256], "i", "a");
    let inner = || {
        tower::service_fn(|request: Request<()>| {
            black_box(request.extensions().get::<TenantContext>());
            std::future::ready(Ok::<_, Infallible>(Response::new(String::new())))
        })
    };
    macro_rules! behind {
        ($resolver:expr) => {
            measure(ResolveTenantLayer::new(Arc::clone(&catalog) as Arc<dyn TenantCatalog>, $resolver).layer(inner()), &token)
        };
    }

    let bare = measure(inner(), &token);
    println!("{:<28}{:>10}{:>12}{:>8}", "service", "ns/request", "layer adds", "ratio");
    println!("{:<28}{bare:>10.0}{:>12}{:>8}", "bare (makes the request)", "-", "1.00");
    for (name, ns) in [
        ("host", behind!(host()?)),
        ("header", behind!(header()?)),
        ("first of header, host", behind!(FirstOf::new(header()?).then(host()?))),
        ("token, HS256", behind!(jwt()?)),
        ("first of token, host", behind!(FirstOf::new(jwt()?).then(host()?))),
    ] {
        println!("{name:<28}{ns:>10.0}{:>12.0}{:>8.2}", ns - bare, ns / bare);
    }
    Ok(())
}
