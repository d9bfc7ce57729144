//! What a host gives a provisioning, where a tenant has more than rows.

use async_trait::async_trait;

use crate::{Result, TenantId};

/// A store that can say whether a tenant's objects can be kept there: `objects::TenantObjects` is one.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Writes, reads and deletes an object of the tenant. Safe to do again, and to stop at any point.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable), and what the store says.
    async fn probe(&self, tenant: TenantId) -> Result<()>;
}
