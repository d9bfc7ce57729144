//! The layer: what to resolve by, and against which catalog.

use std::fmt;
use std::sync::Arc;

use tenancy_core::TenantCatalog;
use tower_layer::Layer;

use super::ResolveTenantService;

/// Establishes the tenant of each request, or refuses it: see the [module's rules](super).
pub struct ResolveTenantLayer<R> {
    pub(super) catalog: Arc<dyn TenantCatalog>,
    pub(super) resolver: Arc<R>,
    pub(super) optional: bool,
}

impl<R> ResolveTenantLayer<R> {
    /// Requests are resolved by `resolver` and looked up in `catalog`.
    pub fn new(catalog: Arc<dyn TenantCatalog>, resolver: R) -> Self {
        Self { catalog, resolver: Arc::new(resolver), optional: false }
    }

    /// Lets a request that names no tenant through, without a context. One that names a tenant and is refused stays refused.
    ///
    /// # Security
    /// The inner service then serves nobody's requests: it must ask for the context and not assume one.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

impl<R> Clone for ResolveTenantLayer<R> {
    fn clone(&self) -> Self {
        Self { catalog: Arc::clone(&self.catalog), resolver: Arc::clone(&self.resolver), optional: self.optional }
    }
}

impl<R> fmt::Debug for ResolveTenantLayer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolveTenantLayer").field("catalog", &self.catalog).field("optional", &self.optional).finish_non_exhaustive()
    }
}

impl<S, R> Layer<S> for ResolveTenantLayer<R> {
    type Service = ResolveTenantService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        ResolveTenantService { inner, layer: self.clone() }
    }
}
