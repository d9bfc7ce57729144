//! From a request to the tenant it acts for.
//!
//! A resolver reads a request's head and says whom it names; the layer looks that tenant up and establishes a
//! [`TenantContext`](tenancy_core::TenantContext) in the request's extensions, or answers a problem document. The inner service is
//! never called for a refused request.
//!
//! # Rules
//! 1. *Deny by default.* A request that names no tenant is refused: 401 if a resolver [authenticates](ResolveTenant::authenticates),
//!    else 404. Only [`optional`](ResolveTenantLayer::optional) lets it through, without a context. There is no default tenant.
//! 2. *A proof wins.* Where a signed token and something else both name a tenant, the token's is the one that is looked up.
//! 3. *A disagreeing hint is refused, never ignored.* Every hint that any resolver finds must point at the established tenant. The
//!    tenant that another hint points at is not looked up, so the refusal says nothing of it.
//! 4. *To outsiders all tenants that don't serve are alike.* Without a proof, unknown, suspended, archived and erased tenants, malformed
//!    hosts and paths, and rule 3 have one answer, byte for byte. With a proof, an inactive tenant answers 403 `tenant-inactive`.
//! 5. *A bad proof is a refusal*, even where the host alone would do: 401, in the same words whatever was wrong. The reason is logged
//!    at debug level.
//! 6. *A host, path or header proves nothing.* It gives the principal [`Visitor`](tenancy_core::Principal::Visitor), which no role or
//!    scope check passes.
//! 7. *Only active tenants serve*, as of the catalog's answer for this request. Where reads of one go on while it is moved or restored, safe
//!    methods are served under a read-only context.
//! 8. *Layers agree.* A second layer that resolves to another tenant than the first one refuses the request.
//!
//! # Deployment caveat
//! What silently weakens these rules:
//! - A proxy in front that forwards `Host`, or the header that [`HeaderResolver`] reads, as the client sent it.
//! - A handler that reads the tenant from a host, path or header by itself instead of from the context.
//! - A token's tenant or role that has been withdrawn: a token is believed until it expires. Keep lifetimes short, and check
//!   memberships in the handler where that is too long.
//! - A catalog that caches: rule 7 lags by its staleness. Unknown tenants also take longer to answer than known ones.
//! - A `CorsLayer` inside this one: a preflight request has no token. Put it outside.

use std::collections::BTreeSet;

use http::request::Parts;
use tenancy_core::{Principal, Result, TenantHint};

mod compose;
mod extension;
mod future;
mod header;
mod host;
#[cfg(feature = "jwt")]
mod jwks;
#[cfg(feature = "jwt")]
mod jwt;
mod layer;
mod path;
mod service;

pub use compose::{AllAgree, FirstOf};
pub use extension::ExtensionResolver;
pub use future::ResponseFuture;
pub use header::HeaderResolver;
pub use host::HostResolver;
#[cfg(feature = "jwt")]
pub use jwks::{Algorithm, KeySet, Keys};
#[cfg(feature = "jwt")]
pub use jwt::JwtResolver;
pub use layer::ResolveTenantLayer;
pub use path::PathResolver;
pub use service::ResolveTenantService;

#[cfg(feature = "axum")]
pub(crate) use service::Unresolved;

/// Says which tenant a request is for. A closure will do:
///
/// ```
/// use http::request::Parts;
/// use tenancy_tower::{FirstOf, HostResolver, Identified};
///
/// /// `?tenant=acme`, for links in mails.
/// let query = |request: &Parts| {
///     let named = request.uri.query().and_then(|query| query.strip_prefix("tenant="));
///     named.map(|slug| Ok(Identified::claimed(slug.parse()?))).transpose()
/// };
/// let resolver = FirstOf::new(HostResolver::new("example.com")?).then(query);
/// # Ok::<_, tenancy_core::Error>(())
/// ```
///
/// # Contract
/// - `resolve` does not block and does no I/O: it runs on the request's path.
/// - What it returns depends on the request alone (and on keys or settings), never on an earlier request.
/// - Something that is present and can't be accepted is an error, never `None`: an ignored hint is a bypass.
/// - [`Identified::proven`] is only for what the request proves, by a signature or a secret.
pub trait ResolveTenant: Send + Sync + 'static {
    /// Whom the request names; `None` if it has nothing that this resolver reads.
    ///
    /// # Errors
    /// The answer to the client. For a malformed host or path use [`Error::tenant_not_found`](tenancy_core::Error::tenant_not_found),
    /// for a credential [`invalid_token`](crate::response::invalid_token).
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>>;

    /// Whether this resolver reads credentials: a request without any is then asked to sign in (401) instead of told 404.
    fn authenticates(&self) -> bool {
        false
    }
}

impl<F> ResolveTenant for F
where
    F: Fn(&Parts) -> Result<Option<Identified>> + Send + Sync + 'static,
{
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        self(request)
    }
}

/// What a resolver found: which tenant a request names, and who is proven to ask.
#[derive(Debug, Clone)]
pub struct Identified {
    hint: TenantHint,
    principal: Principal,
    scopes: BTreeSet<String>,
    /// Further hints of the request, which must point at the same tenant.
    others: Vec<TenantHint>,
    /// Whether nothing may be changed for it.
    read_only: bool,
}

impl Identified {
    /// The request names this tenant and proves nothing.
    pub fn claimed(hint: TenantHint) -> Self {
        Self::proven(hint, Principal::Visitor)
    }

    /// The request proves that `principal` acts for this tenant.
    ///
    /// # Security
    /// Only for what was verified: the tenant's data is open to the principal from here on.
    pub fn proven(hint: TenantHint, principal: Principal) -> Self {
        Self { hint, principal, scopes: BTreeSet::new(), others: Vec::new(), read_only: false }
    }

    /// What the proof allows.
    #[must_use]
    pub fn with_scopes(mut self, scopes: BTreeSet<String>) -> Self {
        self.scopes = scopes;
        self
    }

    /// The context becomes [read-only](tenancy_core::TenantContext::read_only).
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Which tenant.
    pub fn hint(&self) -> &TenantHint {
        &self.hint
    }

    /// Who asks.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What the proof allows.
    pub fn scopes(&self) -> &BTreeSet<String> {
        &self.scopes
    }

    /// Whether anything was proven.
    pub fn is_proven(&self) -> bool {
        self.principal != Principal::Visitor
    }

    /// Both, on the condition that they turn out to be one tenant: the proven one leads, else the first.
    fn and(self, other: Self) -> Self {
        let (mut lead, rest) = if other.is_proven() && !self.is_proven() { (other, self) } else { (self, other) };
        let further = std::iter::once(rest.hint).chain(rest.others).filter(|hint| *hint != lead.hint);
        lead.others.extend(further);
        lead.read_only |= rest.read_only;
        lead
    }
}

#[cfg(test)]
mod tests {
    use tenancy_core::TenantId;

    use super::*;

    #[test]
    fn the_proven_one_leads_and_the_others_are_kept_as_conditions() {
        let id = TenantHint::Id(TenantId::new());
        let slug: TenantHint = "acme".parse().expect("slug");
        let service = Principal::Service { subject: "robot".parse().expect("subject") };
        let proven = || Identified::proven(id.clone(), service.clone());
        for both in [Identified::claimed(slug.clone()).and(proven()), proven().and(Identified::claimed(slug.clone()))] {
            assert_eq!((both.hint(), &both.others), (&id, &vec![slug.clone()]));
            assert!(both.is_proven());
        }
        let same = Identified::claimed(slug.clone()).and(Identified::claimed(slug.clone()));
        assert!(same.others.is_empty() && !same.is_proven() && !same.read_only);
        // What one of them takes away, the other one does not give back.
        assert!(proven().and(Identified::claimed(slug.clone()).read_only()).read_only && proven().read_only().and(proven()).read_only);
    }
}
