//! A catalog in memory: for tests, demonstrations and tools. Nothing is kept when the process ends, and there is no audit log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::storage::{TenantCatalog, TenantPage, TenantQuery};
use crate::{Actor, Clock, Error, ErrorKind, NewTenant, Result, SystemClock, Tenant, TenantChange, TenantHint, TenantId, TenantStatus};

/// A [`TenantCatalog`] in memory.
#[derive(Debug)]
pub struct MemoryCatalog {
    tenants: Mutex<BTreeMap<TenantId, Arc<Tenant>>>,
    clock: Arc<dyn Clock>,
}

impl MemoryCatalog {
    /// An empty catalog.
    pub fn new() -> Self {
        Self::with_clock(SystemClock)
    }

    /// An empty catalog whose rows are dated by `clock`.
    pub fn with_clock(clock: impl Clock) -> Self {
        Self { tenants: Mutex::default(), clock: Arc::new(clock) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TenantId, Arc<Tenant>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryCatalog {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts `tenant` in, unless another has its slug.
fn put(tenants: &mut BTreeMap<TenantId, Arc<Tenant>>, tenant: Tenant) -> Result<Arc<Tenant>> {
    let clash = |other: &Arc<Tenant>| other.slug == tenant.slug && other.id != tenant.id && other.status != TenantStatus::Erased;
    if tenant.status != TenantStatus::Erased && tenants.values().any(clash) {
        return Err(Error::new(ErrorKind::Conflict, "the slug is taken: choose another"));
    }
    let tenant = Arc::new(tenant);
    tenants.insert(tenant.id, Arc::clone(&tenant));
    Ok(tenant)
}

#[async_trait]
impl TenantCatalog for MemoryCatalog {
    fn peek(&self, hint: &TenantHint) -> Option<Arc<Tenant>> {
        let tenants = self.lock();
        let found = match hint {
            TenantHint::Id(id) => tenants.get(id),
            TenantHint::Slug(_) | TenantHint::Domain(_) => {
                tenants.values().find(|tenant| tenant.status != TenantStatus::Erased && tenant.is(hint))
            }
        };
        found.filter(|tenant| tenant.status != TenantStatus::Erased).cloned()
    }

    async fn find(&self, hint: &TenantHint) -> Result<Option<Arc<Tenant>>> {
        Ok(self.peek(hint))
    }

    async fn list(&self, query: &TenantQuery, _by: &Actor) -> Result<TenantPage> {
        query.check()?;
        let search = query.search.as_deref().map(str::to_lowercase);
        let wanted = |tenant: &Tenant| {
            let in_state = match query.status {
                Some(status) => tenant.status == status,
                None => tenant.status != TenantStatus::Archived,
            };
            let found = |text: &str| tenant.slug.as_str().contains(text) || tenant.name.to_lowercase().contains(text);
            in_state
                && tenant.status != TenantStatus::Erased
                && query.after.is_none_or(|after| tenant.id < after)
                && search.as_deref().is_none_or(found)
        };
        let tenants = self.lock();
        let page = tenants.values().rev().filter(|tenant| wanted(tenant)).take(query.limit + 1).cloned().collect();
        Ok(TenantPage::from_one_more(page, query.limit))
    }

    async fn create(&self, new: NewTenant, _by: &Actor) -> Result<Arc<Tenant>> {
        let tenant = Tenant::new(new, self.clock.now())?;
        let mut tenants = self.lock();
        if tenants.contains_key(&tenant.id) {
            return Err(Error::new(ErrorKind::Conflict, "the id is taken"));
        }
        put(&mut tenants, tenant)
    }

    async fn update(&self, id: TenantId, change: TenantChange, expected: Option<u64>, _by: &Actor) -> Result<Arc<Tenant>> {
        let mut tenants = self.lock();
        let tenant = tenants.get(&id).ok_or_else(Error::not_found)?;
        let next = tenant.changed(change, expected, self.clock.now())?;
        put(&mut tenants, next)
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::storage::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::tenant_catalog(&MemoryCatalog::new()).await;
        conformance::tenant_catalog(&Arc::new(MemoryCatalog::new())).await;
    }
}
