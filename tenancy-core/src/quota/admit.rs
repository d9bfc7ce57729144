//! The port between what admits (a tower layer) and what knows (a meter).

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Denial, Priority};
use crate::context::TenantContext;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ask {
    /// In units of the metered counter.
    pub cost: u64,
    /// Which work goes first.
    pub priority: Priority,
}

impl Default for Ask {
    /// One unit, of normal priority.
    fn default() -> Self {
        Self { cost: 1, priority: Priority::Normal }
    }
}

impl Ask {
    /// `cost` units.
    pub fn cost(cost: u64) -> Self {
        Self { cost, ..Self::default() }
    }

    /// Which work goes first.
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
}

/// Admits requests of tenants, or denies them.
///
/// # Contract
/// - A denial has consumed nothing.
/// - Over all nodes and any crash, no more units are admitted in a period than the quota's ceiling.
/// - `try_admit` neither blocks nor does I/O; it says `None` where `admit` must ask a store.
#[async_trait]
pub trait Admit: Send + Sync + 'static {
    /// The decision, if it can be made at once.
    fn try_admit(&self, cx: &TenantContext, ask: Ask) -> Option<Result<Admitted, Denial>>;

    /// The decision.
    ///
    /// # Errors
    /// The [`Denial`].
    ///
    /// # Cancel safety
    /// Safe: a dropped future has consumed nothing.
    async fn admit(&self, cx: &TenantContext, ask: Ask) -> Result<Admitted, Denial>;
}

#[async_trait]
impl<T: Admit + ?Sized> Admit for Arc<T> {
    fn try_admit(&self, cx: &TenantContext, ask: Ask) -> Option<Result<Admitted, Denial>> {
        (**self).try_admit(cx, ask)
    }

    async fn admit(&self, cx: &TenantContext, ask: Ask) -> Result<Admitted, Denial> {
        (**self).admit(cx, ask).await
    }
}

/// Where something was admitted.
pub trait Place: Send + Sync + 'static {
    /// Ends what was admitted.
    fn release(&self);

    /// How the tenant stands with its counter, if that is known.
    fn standing(&self) -> Option<Standing> {
        None
    }
}

/// A tenant's place, given back when dropped: keep it until the response's body has ended.
#[must_use = "dropping it ends what was admitted"]
pub struct Admitted {
    place: Arc<dyn Place>,
}

/// How a tenant stands with its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// The name of the metric.
    pub metric: &'static str,
    /// Units per window.
    pub limit: u64,
    /// The window in seconds, nominally.
    pub window: Option<u64>,
    /// Units left, as far as this node knows.
    pub remaining: u64,
    /// Seconds until the period ends.
    pub reset: Option<u64>,
}

impl Standing {
    /// Where the tenant stands.
    pub const fn new(metric: &'static str, limit: u64, window: Option<u64>, remaining: u64, reset: Option<u64>) -> Self {
        Self { metric, limit, window, remaining, reset }
    }
}

impl Admitted {
    /// For what was admitted at `place`.
    pub fn new(place: Arc<dyn Place>) -> Self {
        Self { place }
    }

    /// How the tenant stands, if that is known.
    pub fn standing(&self) -> Option<Standing> {
        self.place.standing()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.place.release();
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").field("standing", &self.standing()).finish_non_exhaustive()
    }
}
