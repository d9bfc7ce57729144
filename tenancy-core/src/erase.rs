//! What a host gives an erasure, where a tenant has more than rows.

use async_trait::async_trait;
use serde::Serialize;

use crate::{Result, TenantId};

/// How much of a tenant a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Stored {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Stored {
    /// This much.
    pub const fn new(objects: u64, bytes: u64) -> Self {
        Self { objects, bytes }
    }
}

/// A store whose objects of one tenant can be erased: `objects::TenantObjects` is one.
#[async_trait]
pub trait Erasable: Send + Sync + 'static {
    /// What it holds of the tenant.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    async fn measure(&self, tenant: TenantId) -> Result<Stored>;

    /// Deletes every object of the tenant. Safe to do again, and to stop at any point.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable): some objects may be left.
    async fn erase(&self, tenant: TenantId) -> Result<()>;
}

/// Both of them: a tenant's objects, and its exports, say.
#[async_trait]
impl<A: Erasable, B: Erasable> Erasable for (A, B) {
    async fn measure(&self, tenant: TenantId) -> Result<Stored> {
        let (one, two) = (self.0.measure(tenant).await?, self.1.measure(tenant).await?);
        Ok(Stored::new(one.objects + two.objects, one.bytes.saturating_add(two.bytes)))
    }

    async fn erase(&self, tenant: TenantId) -> Result<()> {
        self.0.erase(tenant).await?;
        self.1.erase(tenant).await
    }
}
