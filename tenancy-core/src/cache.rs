//! A cache that is apart per tenant (feature `cache`).
//!
//! [`TenantCache`] has two levels: an outer cache of tenants, and for each tenant an inner [moka](https://docs.rs/moka) cache of its
//! own. So tenants are apart by structure, not by the shape of a key:
//!
//! - A key can only be reached through [`TenantCache::scope`], which needs a [`TenantContext`]. Two tenants' equal keys never meet.
//! - Each tenant has its own bound, its own admission and its own coalescing: a hot tenant evicts nothing but its own entries.
//! - [`TenantCache::purge`] forgets one tenant by taking one entry out of the outer cache, however much it held.
//! - A scope can clear its own tenant and no other.
//!
//! What is the same for all tenants lives in a [`GlobalCache`], a type of its own whose constructor says so.
//!
//! ```
//! use tenancy_core::TenantContext;
//! use tenancy_core::cache::TenantCache;
//!
//! # use std::sync::Arc;
//! # fn context(slug: &str) -> TenantContext {
//! #     let now = std::time::SystemTime::UNIX_EPOCH.into();
//! #     let tenant = tenancy_core::Tenant::new(tenancy_core::NewTenant::new(slug.parse().unwrap(), slug).active(), now).unwrap();
//! #     TenantContext::establish(Arc::new(tenant).into_active().unwrap(), tenancy_core::Principal::Visitor)
//! # }
//! // 1 000 tenants at once, 10 000 entries for each of them.
//! let titles: TenantCache<u64, String> = TenantCache::new(1_000, 10_000).with_time_to_live(std::time::Duration::from_secs(60));
//!
//! let (acme, globex) = (context("acme"), context("globex"));
//! let title = titles.scope(&acme).get_or_insert_with(7, || "read from acme's database".to_owned());
//! assert_eq!(title, "read from acme's database");
//! assert_eq!(titles.scope(&globex).get(&7), None);
//!
//! titles.purge(acme.tenant_id());
//! assert_eq!(titles.scope(&acme).get(&7), None);
//! ```
//!
//! # After a purge
//! A purge also cuts off the scopes that were taken before it. A scope belongs to one *generation* of its tenant, and looks on each
//! call whether that is still the one in the outer cache. If not (the tenant was purged, or evicted as the least recently used), the
//! scope finds nothing, keeps nothing, and runs loaders without keeping what they return. So a request that read the database before
//! a purge can't put what it read back afterwards. Hence: take the scope *before* reading what is to be cached, and take one per
//! request; once [`TenantCache::purge`] has returned, no scope serves a value from before.
//!
//! Hosts purge a tenant when it is suspended, archived, erased, restored or moved, after that is committed.
//!
//! # Costs
//! A call costs two look-ups instead of one, 0.24 µs instead of 0.12 µs, and taking the scope one more. A tenant in the cache costs
//! 32 kB before its first entry (moka's buffers), so bound `max_tenants` by memory: 1 000 tenants are 32 MB. A tenant whose entries
//! have all expired is dropped whole, if a time to live or idle is set; otherwise it stays until `max_tenants` are exceeded.
//!
//! Loaders are synchronous, and block the threads that wait for the same key. Where the loader is asynchronous, `get`, load and
//! `insert`; concurrent misses then each load.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::{TenantContext, TenantId};

/// How each inner cache is built.
struct Settings<K, V> {
    capacity: u64,
    time_to_live: Option<Duration>,
    time_to_idle: Option<Duration>,
    weigher: Option<Weigher<K, V>>,
}

type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

impl<K, V> Settings<K, V> {
    const fn new(capacity: u64) -> Self {
        Self { capacity, time_to_live: None, time_to_idle: None, weigher: None }
    }

    fn fmt_into(&self, out: &mut fmt::DebugStruct<'_, '_>) {
        out.field("capacity", &self.capacity).field("time_to_live", &self.time_to_live).field("time_to_idle", &self.time_to_idle);
    }
}

impl<K, V> Settings<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn build(&self) -> Cache<K, V> {
        let mut builder = Cache::builder().max_capacity(self.capacity);
        if let Some(duration) = self.time_to_live {
            builder = builder.time_to_live(duration);
        }
        if let Some(duration) = self.time_to_idle {
            builder = builder.time_to_idle(duration);
        }
        if let Some(weigher) = self.weigher.clone() {
            builder = builder.weigher(move |key, value| weigher(key, value));
        }
        builder.build()
    }
}

impl<K, V> Clone for Settings<K, V> {
    fn clone(&self) -> Self {
        Self { weigher: self.weigher.clone(), ..*self }
    }
}

/// One generation of one tenant's entries.
type Entries<K, V> = Arc<Cache<K, V>>;

/// A cache whose every tenant has a bounded cache of its own. See the [module](self).
///
/// A clone is another handle to the same cache.
pub struct TenantCache<K, V> {
    tenants: Cache<TenantId, Entries<K, V>>,
    max_tenants: u64,
    settings: Settings<K, V>,
}

impl<K, V> TenantCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache for `max_tenants` tenants with `max_entries` entries each. Past the first, the tenant that was used least recently is
    /// dropped whole; past the second, a tenant loses entries of its own.
    pub fn new(max_tenants: u64, max_entries: u64) -> Self {
        Self::build(max_tenants, Settings::new(max_entries))
    }

    /// Lets entries live for `duration` after they were inserted.
    ///
    /// # Panics
    /// If `duration` is longer than 1 000 years.
    #[must_use]
    pub fn with_time_to_live(mut self, duration: Duration) -> Self {
        self.settings.time_to_live = Some(duration);
        Self::build(self.max_tenants, self.settings)
    }

    /// Lets entries live for `duration` after they were last used.
    ///
    /// # Panics
    /// If `duration` is longer than 1 000 years.
    #[must_use]
    pub fn with_time_to_idle(mut self, duration: Duration) -> Self {
        self.settings.time_to_idle = Some(duration);
        Self::build(self.max_tenants, self.settings)
    }

    /// Counts each entry as `weigher` says, such as its bytes: the bound of each tenant is then a sum of weights.
    #[must_use]
    pub fn with_weigher(mut self, weigher: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.settings.weigher = Some(Arc::new(weigher));
        Self::build(self.max_tenants, self.settings)
    }

    fn build(max_tenants: u64, settings: Settings<K, V>) -> Self {
        // Not moka's default policy: it refuses newcomers, and a tenant's first request has to be admitted.
        let mut builder = Cache::builder().max_capacity(max_tenants).eviction_policy(EvictionPolicy::lru());
        // A tenant that nobody has used for so long has only expired entries, which nothing else would free.
        if let Some(duration) = settings.time_to_live.into_iter().chain(settings.time_to_idle).min() {
            builder = builder.time_to_idle(duration);
        }
        Self { tenants: builder.build(), max_tenants, settings }
    }

    /// The entries of the context's tenant: the only way to a key. Cheap; take one per request, before reading what is to be cached.
    pub fn scope(&self, cx: &TenantContext) -> ScopedCache<'_, K, V> {
        let tenant_id = cx.tenant_id();
        let entries = self.tenants.get_with(tenant_id, || Arc::new(self.settings.build()));
        ScopedCache { cache: self, tenant_id, entries }
    }

    /// Forgets all entries of one tenant, in constant time; other tenants notice nothing.
    ///
    /// Once it returns, no scope serves a value from before. The memory is given back when the last scope of that generation is dropped.
    pub fn purge(&self, tenant_id: TenantId) {
        self.tenants.invalidate(&tenant_id);
        // Lets go of the removed generation now, instead of at some later write.
        self.tenants.run_pending_tasks();
    }

    /// How many tenants have a cache now.
    pub fn tenants(&self) -> u64 {
        self.tenants.run_pending_tasks();
        self.tenants.entry_count()
    }
}

impl<K, V> Clone for TenantCache<K, V> {
    fn clone(&self) -> Self {
        Self { tenants: self.tenants.clone(), max_tenants: self.max_tenants, settings: self.settings.clone() }
    }
}

impl<K, V> fmt::Debug for TenantCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("TenantCache");
        out.field("max_tenants", &self.max_tenants);
        self.settings.fmt_into(&mut out);
        out.finish_non_exhaustive()
    }
}

/// One tenant's part of a [`TenantCache`], for as long as a request needs it.
#[must_use = "a scope does nothing by itself"]
pub struct ScopedCache<'a, K, V> {
    cache: &'a TenantCache<K, V>,
    tenant_id: TenantId,
    entries: Entries<K, V>,
}

impl<K, V> ScopedCache<'_, K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The entries, if this generation is still the tenant's.
    fn live(&self) -> Option<&Cache<K, V>> {
        let current = self.cache.tenants.get(&self.tenant_id)?;
        Arc::ptr_eq(&current, &self.entries).then_some(&*self.entries)
    }

    /// The value of `key`, if this tenant has it.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.live()?.get(key)
    }

    /// Keeps `value` under `key`. Does nothing if the tenant was purged since this scope was taken.
    pub fn insert(&self, key: K, value: V) {
        if let Some(entries) = self.live() {
            entries.insert(key, value);
        }
    }

    /// The value of `key`, or else what `load` returns. Of callers that ask for the same key at once, one loads and the others wait.
    pub fn get_or_insert_with(&self, key: K, load: impl FnOnce() -> V) -> V {
        match self.live() {
            Some(entries) => entries.get_with(key, load),
            None => load(),
        }
    }

    /// Like [`get_or_insert_with`](Self::get_or_insert_with) for a `load` that can fail; a failure is kept for nobody.
    ///
    /// # Errors
    /// What `load` says, for all callers that waited for it.
    pub fn try_get_or_insert_with<E>(&self, key: K, load: impl FnOnce() -> Result<V, E>) -> Result<V, Arc<E>>
    where
        E: Send + Sync + 'static,
    {
        match self.live() {
            Some(entries) => entries.try_get_with(key, load),
            None => load().map_err(Arc::new),
        }
    }

    /// Forgets `key`, for all scopes of this tenant. A load in progress is not cut off: [`purge`](Self::purge) does that.
    pub fn invalidate<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        // By the tenant, not by this generation: who forgets a key means it for the newer one too.
        if let Some(entries) = self.cache.tenants.get(&self.tenant_id) {
            entries.invalidate(key);
        }
    }

    /// How many entries this tenant has, after expired ones were removed.
    pub fn len(&self) -> u64 {
        self.live().map_or(0, |entries| {
            entries.run_pending_tasks();
            entries.entry_count()
        })
    }

    /// Whether this tenant has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all entries of this tenant, as [`TenantCache::purge`] does; this scope too is cut off.
    pub fn purge(&self) {
        self.cache.purge(self.tenant_id);
    }
}

impl<K, V> fmt::Debug for ScopedCache<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedCache").field("tenant_id", &self.tenant_id).finish_non_exhaustive()
    }
}

/// A cache of what is the same for every tenant: plans, public keys, exchange rates.
///
/// # Security
/// Nothing in a key or value may come from one tenant's data. What does belongs in a [`TenantCache`].
///
/// A clone is another handle to the same cache.
pub struct GlobalCache<K, V> {
    entries: Cache<K, V>,
    settings: Settings<K, V>,
}

impl<K, V> GlobalCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache of at most `max_entries` entries that every tenant's requests see.
    pub fn shared_by_all_tenants(max_entries: u64) -> Self {
        Self::build(Settings::new(max_entries))
    }

    /// Lets entries live for `duration` after they were inserted.
    ///
    /// # Panics
    /// If `duration` is longer than 1 000 years.
    #[must_use]
    pub fn with_time_to_live(mut self, duration: Duration) -> Self {
        self.settings.time_to_live = Some(duration);
        Self::build(self.settings)
    }

    /// Lets entries live for `duration` after they were last used.
    ///
    /// # Panics
    /// If `duration` is longer than 1 000 years.
    #[must_use]
    pub fn with_time_to_idle(mut self, duration: Duration) -> Self {
        self.settings.time_to_idle = Some(duration);
        Self::build(self.settings)
    }

    /// Counts each entry as `weigher` says, such as its bytes: the bound is then a sum of weights.
    #[must_use]
    pub fn with_weigher(mut self, weigher: impl Fn(&K, &V) -> u32 + Send + Sync + 'static) -> Self {
        self.settings.weigher = Some(Arc::new(weigher));
        Self::build(self.settings)
    }

    fn build(settings: Settings<K, V>) -> Self {
        Self { entries: settings.build(), settings }
    }

    /// The value of `key`.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.get(key)
    }

    /// Keeps `value` under `key`.
    pub fn insert(&self, key: K, value: V) {
        self.entries.insert(key, value);
    }

    /// The value of `key`, or else what `load` returns. Of callers that ask for the same key at once, one loads and the others wait.
    pub fn get_or_insert_with(&self, key: K, load: impl FnOnce() -> V) -> V {
        self.entries.get_with(key, load)
    }

    /// Like [`get_or_insert_with`](Self::get_or_insert_with) for a `load` that can fail; a failure is kept for nobody.
    ///
    /// # Errors
    /// What `load` says, for all callers that waited for it.
    pub fn try_get_or_insert_with<E>(&self, key: K, load: impl FnOnce() -> Result<V, E>) -> Result<V, Arc<E>>
    where
        E: Send + Sync + 'static,
    {
        self.entries.try_get_with(key, load)
    }

    /// Forgets `key`.
    pub fn invalidate<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.invalidate(key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.entries.invalidate_all();
    }

    /// How many entries there are, after expired ones were removed.
    pub fn len(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K, V> Clone for GlobalCache<K, V> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), settings: self.settings.clone() }
    }
}

impl<K, V> fmt::Debug for GlobalCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("GlobalCache");
        self.settings.fmt_into(&mut out);
        out.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{NewTenant, Principal, Tenant};

    fn context(slug: &str) -> TenantContext {
        let new = NewTenant::new(slug.parse().unwrap(), slug).active();
        let tenant = Tenant::new(new, std::time::SystemTime::UNIX_EPOCH.into()).unwrap();
        TenantContext::establish(Arc::new(tenant).into_active().unwrap(), Principal::Visitor)
    }

    fn cache() -> TenantCache<u64, String> {
        TenantCache::new(100, 1_000)
    }

    #[test]
    fn equal_keys_of_two_tenants_are_apart() {
        let (cache, a, b) = (cache(), context("acme"), context("globex"));
        cache.scope(&a).insert(1, "a".into());
        assert_eq!(cache.scope(&b).get(&1), None);
        cache.scope(&b).insert(1, "b".into());
        cache.scope(&b).invalidate(&2);
        assert_eq!(cache.scope(&a).get(&1).as_deref(), Some("a"));
        cache.scope(&b).invalidate(&1);
        assert_eq!(cache.scope(&a).get(&1).as_deref(), Some("a"));
        assert_eq!((cache.scope(&a).len(), cache.scope(&b).len()), (1, 0));
    }

    /// A quiet tenant keeps 100 entries while another uses 100 000 keys, each three times. How many of the 100 are left?
    fn left_of_the_quiet(insert: impl Fn(bool, u64), get: impl Fn(bool, u64) -> bool) -> usize {
        (0..100).for_each(|key| insert(false, key));
        for key in 0..100_000 {
            insert(true, key);
            get(true, key);
            get(true, key);
        }
        (0..100).filter(|key| get(false, *key)).count()
    }

    #[test]
    fn a_hot_tenant_evicts_nothing_of_a_quiet_one() {
        let (quiet, hot) = (context("quiet"), context("hot-one"));
        let cache = cache();
        let scope = |is_hot| cache.scope(if is_hot { &hot } else { &quiet });
        assert_eq!(left_of_the_quiet(|t, key| scope(t).insert(key, "v".into()), |t, key| scope(t).get(&key).is_some()), 100);
        assert!(scope(true).len() <= 1_000, "the hot tenant keeps to its own bound");

        // Negative control: one flat cache of the same total size, with tenants as a part of the key, does evict.
        let flat = Cache::<(bool, u64), String>::builder().max_capacity(2_000).eviction_policy(EvictionPolicy::lru()).build();
        let left = left_of_the_quiet(|t, key| flat.insert((t, key), "v".into()), |t, key| flat.get(&(t, key)).is_some());
        assert!(left < 10, "{left} entries were left: the detector is blind");
    }

    #[test]
    fn a_purge_forgets_one_tenant_and_leaves_the_other() {
        let (cache, a, b) = (cache(), context("acme"), context("globex"));
        for key in 0..1_000 {
            cache.scope(&a).insert(key, "a".into());
            cache.scope(&b).insert(key, "b".into());
        }
        let live_b = cache.scope(&b);
        cache.purge(a.tenant_id());
        assert_eq!(cache.scope(&a).len(), 0);
        assert_eq!((cache.scope(&b).len(), live_b.len()), (1_000, 1_000));
        live_b.purge();
        assert_eq!(cache.scope(&b).len(), 0);
    }

    #[test]
    fn a_scope_from_before_a_purge_neither_serves_nor_brings_back() {
        let (cache, cx) = (cache(), context("acme"));
        let old = cache.scope(&cx);
        old.insert(1, "old".into());
        cache.purge(cx.tenant_id());

        assert_eq!(old.get(&1), None);
        old.insert(1, "old".into());
        assert_eq!(old.get_or_insert_with(2, || "old".into()), "old");
        assert_eq!(old.try_get_or_insert_with(3, || Ok::<_, ()>("old".into())).unwrap(), "old");
        assert!(old.is_empty());
        assert!((1..=3).all(|key| cache.scope(&cx).get(&key).is_none()));

        // Also once the tenant has a new generation, whose keys the old scope can still forget.
        cache.scope(&cx).insert(1, "new".into());
        assert_eq!(old.get(&1), None);
        old.invalidate(&1);
        assert_eq!(cache.scope(&cx).get(&1), None);
    }

    #[test]
    fn a_purge_cuts_off_a_load_that_began_before() {
        let (cache, cx) = (cache(), context("acme"));
        let loaded = cache.scope(&cx).get_or_insert_with(1, || {
            cache.purge(cx.tenant_id());
            "read before the purge".into()
        });
        assert_eq!(loaded, "read before the purge");
        assert_eq!(cache.scope(&cx).get(&1), None);
    }

    #[test]
    fn a_purge_gives_the_memory_back() {
        let (cache, cx) = (TenantCache::<u64, Arc<str>>::new(10, 10), context("acme"));
        let value: Arc<str> = "v".into();
        let weak = Arc::downgrade(&value);
        cache.scope(&cx).insert(1, value);
        cache.purge(cx.tenant_id());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while weak.upgrade().is_some() {
            assert!(std::time::Instant::now() < deadline, "the purged value is still in memory");
            // Freed by the collector of moka's table, which other use of it drives.
            let _ = cache.tenants();
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_tenant_used_least_recently_is_dropped_whole() {
        let cache = TenantCache::<u64, String>::new(2, 10);
        let [a, b, c] = ["acme", "globex", "initech"].map(context);
        for cx in [&a, &b] {
            cache.scope(cx).insert(1, "v".into());
        }
        let of_b = cache.scope(&b);
        assert!(cache.scope(&a).get(&1).is_some());
        assert_eq!(cache.tenants(), 2);
        // However often the others were used, a newcomer is admitted.
        (0..100).for_each(|_| assert!(of_b.get(&1).is_some() && cache.tenants() == 2));
        cache.scope(&a).insert(2, "v".into());
        cache.scope(&c).insert(1, "v".into());
        assert_eq!(cache.tenants(), 2);
        assert_eq!((cache.scope(&a).len(), cache.scope(&c).len()), (2, 1));
        assert_eq!(of_b.get(&1), None);
    }

    #[test]
    fn concurrent_misses_of_one_key_load_once() {
        let (cache, a, b) = (cache(), context("acme"), context("globex"));
        let (loads, start) = (AtomicUsize::new(0), Barrier::new(8));
        std::thread::scope(|threads| {
            for n in 0..8 {
                let (cache, cx, loads, start) = (&cache, if n % 2 == 0 { &a } else { &b }, &loads, &start);
                threads.spawn(move || {
                    start.wait();
                    cache.scope(cx).get_or_insert_with(1, || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        cx.tenant().slug.to_string()
                    })
                });
            }
        });
        assert_eq!(loads.into_inner(), 2, "one for each tenant");
        assert_eq!(cache.scope(&a).get(&1).as_deref(), Some("acme"));
        assert_eq!(cache.scope(&b).get(&1).as_deref(), Some("globex"));
    }

    #[test]
    fn a_failed_load_is_not_kept() {
        let (cache, cx) = (cache(), context("acme"));
        assert_eq!(*cache.scope(&cx).try_get_or_insert_with(1, || Err("away")).unwrap_err(), "away");
        assert_eq!(cache.scope(&cx).try_get_or_insert_with(1, || Ok::<_, ()>("back".into())).unwrap(), "back");
    }

    #[test]
    fn entries_expire_and_are_weighed() {
        let cx = context("acme");
        let cache = cache().with_time_to_live(Duration::from_millis(300));
        cache.scope(&cx).insert(1, "v".into());
        assert!(cache.scope(&cx).get(&1).is_some());
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(cache.tenants(), 0, "a tenant whose entries have all expired is dropped");
        assert_eq!(cache.scope(&cx).get(&1), None);

        let cache = cache.with_weigher(|_, value: &String| value.len() as u32);
        cache.scope(&cx).insert(1, "v".repeat(1_001));
        assert!(cache.scope(&cx).is_empty(), "heavier than the tenant's bound");
        cache.scope(&cx).insert(1, "v".repeat(1_000));
        assert_eq!(cache.scope(&cx).len(), 1);
    }

    #[test]
    fn debug_shows_no_values() {
        let (cache, cx) = (cache(), context("acme"));
        cache.scope(&cx).insert(1, "secret".into());
        let global = GlobalCache::shared_by_all_tenants(10);
        global.insert("plan", "secret");
        for text in [format!("{cache:?}"), format!("{:?}", cache.scope(&cx)), format!("{global:?}")] {
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn the_global_cache_is_one_for_all() {
        let cache = GlobalCache::<&str, u32>::shared_by_all_tenants(10).with_time_to_idle(Duration::from_secs(60));
        assert_eq!(cache.get_or_insert_with("a", || 1), 1);
        assert_eq!(cache.try_get_or_insert_with("a", || Err(())), Ok(1));
        assert_eq!((cache.clone().get("a"), cache.len()), (Some(1), 1));
        cache.invalidate("a");
        assert_eq!(cache.get("a"), None);
        cache.insert("b", 2);
        cache.clear();
        assert!(cache.is_empty());
    }
}
