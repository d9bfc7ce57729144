//! The storage ports: what the kit needs a store to remember.
//!
//! [`TenantCatalog`] has two implementations, [`memory::MemoryCatalog`] here and `PgCatalog` in tenancy-sqlx. A third proves itself
//! by running the [`conformance`] suite (feature `conformance`).

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{Actor, Error, NewTenant, Result, Tenant, TenantChange, TenantHint, TenantId, TenantStatus};

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod memory;

/// Which tenants there are.
///
/// # Contract
/// - `find` and `list` never return an erased tenant; its slug is free for another.
/// - Two tenants that are not erased never have the same slug or id, however many callers race.
/// - `update` is atomic: of two callers that expect the same version, one wins.
/// - What `create` and `update` return is what a `find` that begins afterwards sees. A catalog that caches says by how much another
///   node may lag.
/// - Every mutation is audited in the same transaction, where the store has an audit log.
/// - Values are checked by [`Tenant::new`] and [`Tenant::changed`]; an implementation adds no rules of its own.
#[async_trait]
pub trait TenantCatalog: Debug + Send + Sync + 'static {
    /// What [`find`](TenantCatalog::find) would say, if it can be known without waiting: the warm path of a cache.
    ///
    /// `None` means "ask `find`", never "there is none".
    fn peek(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        let _ = hint;
        None
    }

    /// The tenant that `hint` points at, in whatever state it is.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store is away.
    async fn find(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>>;

    /// One page of tenants, the newest first.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if the store is away.
    async fn list(&self, query: &TenantQuery, by: &Actor) -> Result<TenantPage>;

    /// Adds a tenant.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid); [`Conflict`](crate::ErrorKind::Conflict) if the slug or id is taken.
    async fn create(&self, new: NewTenant, by: &Actor) -> Result<Arc<Tenant>>;

    /// Changes a tenant; `expected` is the version that the caller has read.
    ///
    /// # Errors
    /// Those of [`Tenant::changed`]; [`NotFound`](crate::ErrorKind::NotFound); [`Conflict`](crate::ErrorKind::Conflict) if the new slug
    /// is taken.
    async fn update(&self, id: TenantId, change: TenantChange, expected: Option<u64>, by: &Actor) -> Result<Arc<Tenant>>;
}

#[async_trait]
impl<T: TenantCatalog + ?Sized> TenantCatalog for Arc<T> {
    fn peek(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        (**self).peek(hint)
    }

    async fn find(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>> {
        (**self).find(hint).await
    }

    async fn list(&self, query: &TenantQuery, by: &Actor) -> Result<TenantPage> {
        (**self).list(query, by).await
    }

    async fn create(&self, new: NewTenant, by: &Actor) -> Result<Arc<Tenant>> {
        (**self).create(new, by).await
    }

    async fn update(&self, id: TenantId, change: TenantChange, expected: Option<u64>, by: &Actor) -> Result<Arc<Tenant>> {
        (**self).update(id, change, expected, by).await
    }
}

/// Which tenants to list.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TenantQuery {
    /// Only those whose slug or name contains this text, whatever the case; at most 100 characters.
    pub search: Option<String>,
    /// Only those in this state; otherwise all but the archived ones.
    pub status: Option<TenantStatus>,
    /// Only those after this one: the `next` of the page before.
    pub after: Option<TenantId>,
    /// How many: 1 to [`TenantQuery::MAX_LIMIT`].
    pub limit: usize,
}

impl TenantQuery {
    /// The most tenants of one page.
    pub const MAX_LIMIT: usize = 200;

    /// Whether the bounds are kept.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the field.
    pub fn check(&self) -> Result<()> {
        if !(1..=Self::MAX_LIMIT).contains(&self.limit) {
            return Err(Error::invalid("limit", "must be 1 to 200"));
        }
        if self.search.as_ref().is_some_and(|text| text.chars().count() > 100 || text.contains('\0')) {
            return Err(Error::invalid("search", "must have at most 100 characters, and not U+0000"));
        }
        Ok(())
    }
}

impl Default for TenantQuery {
    /// The 50 newest, archived ones left out.
    fn default() -> Self {
        Self { search: None, status: None, after: None, limit: 50 }
    }
}

/// One page of tenants.
#[derive(Debug, Clone)]
pub struct TenantPage {
    /// The newest first.
    pub tenants: Vec<Arc<Tenant>>,
    /// Where the next page starts, if there is one.
    pub next: Option<TenantId>,
}

impl TenantPage {
    /// A page of at most `limit` from `tenants`, which has one more if there is a next page.
    pub fn from_one_more(mut tenants: Vec<Arc<Tenant>>, limit: usize) -> Self {
        let more = tenants.len() > limit;
        tenants.truncate(limit);
        let next = tenants.last().filter(|_| more).map(|tenant| tenant.id);
        Self { tenants, next }
    }
}
