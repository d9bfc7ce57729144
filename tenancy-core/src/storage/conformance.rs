//! What every [`TenantCatalog`] must do, as named functions that any implementation can run (feature `conformance`).
//!
//! ```no_run
//! # async fn run() {
//! let catalog = tenancy_core::storage::memory::MemoryCatalog::new();
//! tenancy_core::storage::conformance::tenant_catalog(&catalog).await;
//! # }
//! ```
//!
//! Each function panics where the contract is broken, and needs a catalog that nobody else writes to. Slugs are fresh in each call, so
//! one catalog can run them all.

use std::sync::Arc;

use crate::storage::{TenantCatalog, TenantQuery};
use crate::{Actor, ErrorKind, NewTenant, Tenant, TenantChange, TenantHint, TenantId, TenantSlug, TenantStatus};

/// Runs all of them.
pub async fn tenant_catalog(catalog: &dyn TenantCatalog) {
    finds_what_was_created(catalog).await;
    absent_is_none(catalog).await;
    refuses_a_taken_slug_and_id(catalog).await;
    refuses_what_the_rules_refuse(catalog).await;
    updates_count_and_stale_ones_lose(catalog).await;
    a_renamed_tenant_is_found_by_its_new_slug_only(catalog).await;
    the_lifecycle_is_kept(catalog).await;
    reads_go_on_where_it_was_said(catalog).await;
    an_erased_tenant_is_absent_and_its_slug_is_free(catalog).await;
    lists_by_pages_newest_first(catalog).await;
    searches_literally(catalog).await;
    objects_come_back_as_they_went(catalog).await;
}

fn fresh_slug() -> TenantSlug {
    let id = TenantId::new().as_uuid().simple().to_string();
    format!("t-{id}").parse().expect("a slug")
}

async fn create(catalog: &dyn TenantCatalog) -> Arc<Tenant> {
    catalog.create(NewTenant::new(fresh_slug(), "Conformance").active(), &Actor::System).await.expect("create")
}

async fn find(catalog: &dyn TenantCatalog, hint: impl Into<TenantHint>) -> Option<Arc<Tenant>> {
    catalog.find(&hint.into()).await.expect("find")
}

async fn set(catalog: &dyn TenantCatalog, id: TenantId, change: TenantChange) -> Arc<Tenant> {
    catalog.update(id, change, None, &Actor::System).await.expect("update")
}

/// `create` returns what `find` returns, by id and by slug.
pub async fn finds_what_was_created(catalog: &dyn TenantCatalog) {
    let made = create(catalog).await;
    assert_eq!(made.version, 1);
    assert_eq!(find(catalog, made.id).await, Some(Arc::clone(&made)), "by id");
    assert_eq!(find(catalog, made.slug.clone()).await, Some(made), "by slug");
}

/// An unknown id or slug is `None`, not an error; changing it is `NotFound`.
pub async fn absent_is_none(catalog: &dyn TenantCatalog) {
    assert_eq!(find(catalog, TenantId::new()).await, None);
    assert_eq!(find(catalog, fresh_slug()).await, None);
    let error = catalog.update(TenantId::new(), TenantChange::default(), None, &Actor::System).await.expect_err("absent");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// A second tenant with the same slug or id is a `Conflict`, and changes nothing.
pub async fn refuses_a_taken_slug_and_id(catalog: &dyn TenantCatalog) {
    let first = create(catalog).await;
    let same_slug = catalog.create(NewTenant::new(first.slug.clone(), "Other"), &Actor::System).await.expect_err("slug taken");
    assert_eq!(same_slug.kind(), ErrorKind::Conflict);
    let mut new = NewTenant::new(fresh_slug(), "Other");
    new.id = first.id;
    let same_id = catalog.create(new, &Actor::System).await.expect_err("id taken");
    assert_eq!(same_id.kind(), ErrorKind::Conflict);
    let second = create(catalog).await;
    let change = TenantChange { slug: Some(first.slug.clone()), ..TenantChange::default() };
    let renamed = catalog.update(second.id, change, None, &Actor::System).await.expect_err("slug taken");
    assert_eq!(renamed.kind(), ErrorKind::Conflict);
    assert_eq!(find(catalog, first.slug.clone()).await, Some(first), "untouched");
    assert_eq!(find(catalog, second.id).await, Some(second), "untouched");
}

/// The pure rules apply: a bad name is `Invalid` with its field, and nothing is written.
pub async fn refuses_what_the_rules_refuse(catalog: &dyn TenantCatalog) {
    let slug = fresh_slug();
    let error = catalog.create(NewTenant::new(slug.clone(), ""), &Actor::System).await.expect_err("no name");
    assert_eq!((error.kind(), error.field()), (ErrorKind::Invalid, Some("name")));
    assert_eq!(find(catalog, slug).await, None);
}

/// Versions count from 1 by 1; a caller that read an older version loses.
pub async fn updates_count_and_stale_ones_lose(catalog: &dyn TenantCatalog) {
    let one = create(catalog).await;
    let rename = |name: &str| TenantChange { name: Some(name.into()), ..TenantChange::default() };
    let two = catalog.update(one.id, rename("Two"), Some(1), &Actor::System).await.expect("current");
    assert_eq!((two.version, two.name.as_str()), (2, "Two"));
    let stale = catalog.update(one.id, rename("Three"), Some(1), &Actor::System).await.expect_err("stale");
    assert_eq!(stale.kind(), ErrorKind::VersionMismatch);
    assert_eq!(find(catalog, one.id).await, Some(two));
}

/// A new slug replaces the old one.
pub async fn a_renamed_tenant_is_found_by_its_new_slug_only(catalog: &dyn TenantCatalog) {
    let before = create(catalog).await;
    let slug = fresh_slug();
    let after = set(catalog, before.id, TenantChange { slug: Some(slug.clone()), ..TenantChange::default() }).await;
    assert_eq!(find(catalog, before.slug.clone()).await, None, "the old slug");
    assert_eq!(find(catalog, slug).await, Some(after), "the new slug");
}

/// Illegal edges are `Conflict`, and legal ones are seen by the next `find`.
pub async fn the_lifecycle_is_kept(catalog: &dyn TenantCatalog) {
    let tenant = create(catalog).await;
    let jump = catalog.update(tenant.id, TenantChange::status(TenantStatus::Erased), None, &Actor::System).await.expect_err("no such edge");
    assert_eq!(jump.kind(), ErrorKind::Conflict);
    for status in [TenantStatus::Suspended, TenantStatus::Active, TenantStatus::Moving, TenantStatus::Active, TenantStatus::Archived] {
        set(catalog, tenant.id, TenantChange::status(status)).await;
        assert_eq!(find(catalog, tenant.id).await.map(|t| t.status), Some(status));
    }
}

/// That reads go on is kept, found, listed, and over with the state.
pub async fn reads_go_on_where_it_was_said(catalog: &dyn TenantCatalog) {
    let tenant = create(catalog).await;
    let early = catalog.update(tenant.id, TenantChange::default().with_reads(true), None, &Actor::System).await.expect_err("it is active");
    assert_eq!((early.kind(), early.field()), (ErrorKind::Invalid, Some("reads")));
    let moving = TenantChange::status(TenantStatus::Moving).with_reads(true);
    for (change, status, reads) in [
        (moving.clone(), TenantStatus::Moving, true),
        (TenantChange { name: Some("Renamed".to_owned()), ..TenantChange::default() }, TenantStatus::Moving, true),
        (TenantChange::default().with_reads(false), TenantStatus::Moving, false),
        (TenantChange::default().with_reads(true), TenantStatus::Moving, true),
        (TenantChange::status(TenantStatus::Active), TenantStatus::Active, false),
        (TenantChange::status(TenantStatus::Restoring), TenantStatus::Restoring, false),
        (TenantChange::status(TenantStatus::Suspended), TenantStatus::Suspended, false),
    ] {
        let changed = set(catalog, tenant.id, change).await;
        assert_eq!((changed.status, changed.reads), (status, reads));
        assert_eq!(find(catalog, tenant.id).await, Some(Arc::clone(&changed)), "by id");
        assert_eq!(find(catalog, tenant.slug.clone()).await, Some(Arc::clone(&changed)), "by slug");
        let query = TenantQuery { search: Some(tenant.slug.to_string()), ..TenantQuery::default() };
        assert_eq!(catalog.list(&query, &Actor::System).await.expect("list").tenants, [changed], "in a list");
    }
}

/// Erasing leaves no row to find, and frees the slug.
pub async fn an_erased_tenant_is_absent_and_its_slug_is_free(catalog: &dyn TenantCatalog) {
    let tenant = create(catalog).await;
    set(catalog, tenant.id, TenantChange::status(TenantStatus::Archived)).await;
    set(catalog, tenant.id, TenantChange::status(TenantStatus::Erased)).await;
    assert_eq!(find(catalog, tenant.id).await, None, "by id");
    assert_eq!(find(catalog, tenant.slug.clone()).await, None, "by slug");
    let again = catalog.update(tenant.id, TenantChange::status(TenantStatus::Active), None, &Actor::System).await.expect_err("erased");
    assert_eq!(again.kind(), ErrorKind::NotFound);
    let heir = catalog.create(NewTenant::new(tenant.slug.clone(), "Heir"), &Actor::System).await.expect("the slug is free");
    assert_ne!(heir.id, tenant.id);
}

/// Pages are complete, disjoint, newest first, and leave archived tenants out unless asked for.
pub async fn lists_by_pages_newest_first(catalog: &dyn TenantCatalog) {
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(create(catalog).await.id);
    }
    let archived = made[2];
    set(catalog, archived, TenantChange::status(TenantStatus::Archived)).await;
    let mut seen = Vec::new();
    let mut query = TenantQuery { limit: 2, ..TenantQuery::default() };
    loop {
        let page = catalog.list(&query, &Actor::System).await.expect("list");
        assert!(page.tenants.len() <= 2);
        seen.extend(page.tenants.iter().map(|t| t.id));
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first, none twice");
    let expected: Vec<_> = made.iter().rev().copied().filter(|id| *id != archived).collect();
    assert_eq!(seen.iter().copied().filter(|id| made.contains(id)).collect::<Vec<_>>(), expected);
    let query = TenantQuery { status: Some(TenantStatus::Archived), limit: TenantQuery::MAX_LIMIT, ..TenantQuery::default() };
    let page = catalog.list(&query, &Actor::System).await.expect("list archived");
    assert!(page.tenants.iter().any(|t| t.id == archived) && page.tenants.iter().all(|t| t.status == TenantStatus::Archived));
    for limit in [0, TenantQuery::MAX_LIMIT + 1] {
        let error = catalog.list(&TenantQuery { limit, ..TenantQuery::default() }, &Actor::System).await.expect_err("out of bounds");
        assert_eq!(error.field(), Some("limit"));
    }
}

/// Search ignores case, looks at slug and name, and takes `%` and `_` literally.
pub async fn searches_literally(catalog: &dyn TenantCatalog) {
    let needle = TenantId::new().as_uuid().simple().to_string();
    let name = format!("Ünïque 100%_{needle}\\");
    let tenant = catalog.create(NewTenant::new(fresh_slug(), name.clone()).active(), &Actor::System).await.expect("create");
    let search = async |text: &str| {
        let query = TenantQuery { search: Some(text.to_owned()), ..TenantQuery::default() };
        catalog.list(&query, &Actor::System).await.expect("list").tenants.iter().map(|t| t.id).collect::<Vec<_>>()
    };
    for text in [&name, &needle.to_uppercase(), &format!("100%_{needle}\\"), &tenant.slug.as_str()[2..]] {
        assert_eq!(search(text).await, [tenant.id], "{text}");
    }
    for text in [format!("100__{needle}"), format!("1%{needle}"), format!("' or '{needle}'='")] {
        assert!(search(&text).await.is_empty(), "{text}");
    }
}

/// Branding and flags are kept to the last value.
pub async fn objects_come_back_as_they_went(catalog: &dyn TenantCatalog) {
    let mut new = NewTenant::new(fresh_slug(), "Objects");
    new.branding.insert("theme".into(), serde_json::json!({ "primary": "#123456", "näme": ["a", 1, null, 1.5, true] }));
    new.flags.insert("beta".into(), true.into());
    new.plan = "gold".into();
    let made = catalog.create(new.clone(), &Actor::System).await.expect("create");
    let found = find(catalog, made.id).await.expect("found");
    assert_eq!((&found.branding, &found.flags, &found.plan), (&new.branding, &new.flags, &new.plan));
    let change = TenantChange { flags: Some(serde_json::Map::new()), ..TenantChange::default() };
    let changed = set(catalog, made.id, change).await;
    assert!(changed.flags.is_empty());
    assert_eq!(changed.branding, new.branding, "what was not named stays");
}
