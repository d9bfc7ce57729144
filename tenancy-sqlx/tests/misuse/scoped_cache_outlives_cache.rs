//! A scope does not outlive its cache.

use tenancy_core::TenantContext;
use tenancy_core::cache::{ScopedCache, TenantCache};

fn keep(cx: &TenantContext) -> ScopedCache<'static, String, String> {
    let cache = TenantCache::new(10, 10);
    cache.scope(cx)
}

fn main() {}
