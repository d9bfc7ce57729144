//! The layer: who admits, and what a request asks for.

use std::fmt;
use std::sync::Arc;

use http::{Method, Uri};
use tenancy_core::quota::{Admit, Ask};
use tower_layer::Layer;

use super::AdmitService;

type Asks = dyn Fn(&Method, &Uri) -> Ask + Send + Sync;

/// Admits each request of a tenant, or answers it: see the [module's rules](super).
///
/// ```
/// use std::sync::Arc;
/// use http::Method;
/// use tenancy_core::quota::{Admit, Ask, Priority};
/// use tenancy_tower::AdmitLayer;
///
/// # fn layers(meter: Arc<dyn Admit>) {
/// // Writes cost five, and the export goes last.
/// let layer = AdmitLayer::new(Arc::clone(&meter)).asking(|method, uri| {
///     let ask = Ask::cost(if *method == Method::GET { 1 } else { 5 });
///     if uri.path() == "/export" { ask.with_priority(Priority::Background) } else { ask }
/// });
/// # }
/// ```
pub struct AdmitLayer<A> {
    pub(super) admit: Arc<A>,
    pub(super) asks: Option<Arc<Asks>>,
    pub(super) tenantless: bool,
}

impl<A: Admit> AdmitLayer<A> {
    /// Requests are admitted by `admit`; each asks for one unit, of normal priority.
    pub fn new(admit: A) -> Self {
        Self { admit: Arc::new(admit), asks: None, tenantless: false }
    }

    /// What each request asks for: the cost of its route, its priority.
    #[must_use]
    pub fn asking(mut self, asks: impl Fn(&Method, &Uri) -> Ask + Send + Sync + 'static) -> Self {
        self.asks = Some(Arc::new(asks));
        self
    }

    /// Lets requests without a tenant through, unmetered.
    #[must_use]
    pub fn tenantless(mut self) -> Self {
        self.tenantless = true;
        self
    }
}

impl<A> Clone for AdmitLayer<A> {
    fn clone(&self) -> Self {
        Self { admit: Arc::clone(&self.admit), asks: self.asks.clone(), tenantless: self.tenantless }
    }
}

impl<A> fmt::Debug for AdmitLayer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmitLayer").field("tenantless", &self.tenantless).finish_non_exhaustive()
    }
}

impl<S, A> Layer<S> for AdmitLayer<A> {
    type Service = AdmitService<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmitService { inner, layer: self.clone() }
    }
}
