//! What sharing costs: lists with and without it, opening a share, and a neighbour who shares very much.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor, Row};
use tenancy_core::{Principal, TenantContext};
use tenancy_sqlx::sharing::own_and_shared;
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Options, TenantDb};
use uuid::Uuid;

use super::{Case, print, proxy, timed};

const TENANTS: usize = 1000;
const ROWS: usize = 1000;
const SHARES: usize = 100_000;
const ROUNDS: usize = 1_500;

/// The newest 20 of one's own.
const STRICT: &str = "select id, at, body from items where tenant_id = $1 order by at desc, id desc limit 20";

/// A list's time per statement, by tenants in turn; `shared` lists by the kit's own text.
async fn list(db: &TenantDb, cx: &TenantContext, sql: &str, shared: bool) -> Result<(Duration, usize), Box<dyn std::error::Error>> {
    let mut tx = db.read_with_shares(cx).await?;
    (&mut tx).execute("select").await?; // the first statement of a transaction pays for waking up
    let query = sqlx::query(AssertSqlSafe(sql));
    let query = if shared {
        query.bind(20_i64).bind(chrono::DateTime::<chrono::Utc>::MAX_UTC - chrono::Duration::days(365 * 250_000)).bind(Uuid::max())
    } else {
        query.bind(cx.tenant_id().as_uuid())
    };
    let start = Instant::now();
    let rows = query.fetch_all(&mut tx).await?;
    let took = start.elapsed();
    let shown = if shared { rows.iter().filter(|row| row.get::<Option<Uuid>, _>("share_id").is_some()).count() } else { 0 };
    assert_eq!(rows.len(), 20);
    Ok((took, shown))
}

pub(super) async fn sharing() -> Result<(), Box<dyn std::error::Error>> {
    let database = TestDatabase::new().await?;
    let mut eye = database.superuser().await?;
    eye.execute(
        "set role tenancy_owner;
         create table items (tenant_id uuid not null, id uuid not null, at timestamptz not null, body text not null, primary key (tenant_id, id));
         create index on items (tenant_id, at desc, id desc);
         call tenancy.protect_table('items'); reset role",
    )
    .await?;
    let db = database.open().await?;
    let mut tenants = Vec::new();
    for n in 0..TENANTS {
        let cx = database.tenant(&db, &format!("tenant-{n}")).await?;
        let subject = format!("member-{n}").parse()?;
        tenants.push(TenantContext::establish(cx.tenant().clone(), Principal::Member { subject, role: tenancy_core::Role::Admin }));
    }
    let fill = format!(
        "insert into items select t.id, gen_random_uuid(), now() - g * interval '1 minute', repeat(md5(g::text), 4) from tenancy.tenants t, generate_series(1, {ROWS}) g order by g, t.id;
         analyze items"
    );
    eye.execute(AssertSqlSafe(fill)).await?;

    let mut cases = ["strict, before sharing", "strict, with sharing", "**own and shared**"].map(Case::new);
    for round in 0..ROUNDS {
        cases[0].samples.push(list(&db, &tenants[1 + round * 7 % (TENANTS - 1)], STRICT, false).await?.0);
    }
    // Each tenant but the first has ten rows of ten others; the first shares a hundred rows with each of the last half.
    eye.execute(AssertSqlSafe(format!(
        "set role tenancy_owner; call tenancy.share_table('items', 'item'); reset role;
         update tenancy.sharing_platform set enabled = true;
         insert into tenancy.sharing_policies (tenant_id, offers, accepts, types) select id, true, true, '{{item}}' from tenancy.tenants;
         create temp table numbered as select id, row_number() over (order by id) - 1 as n from tenancy.tenants;
         insert into tenancy.cross_tenant_shares (id, owner_tenant_id, target_tenant_id, resource_type, resource_id, perms, state, offered_by)
           select gen_random_uuid(), o.id, t.id, 'item', i.id, 'read', 'active', 'bench' from numbered o join numbered t on t.n <> 0 and o.n <> 0 and o.n <> t.n and (o.n - t.n + {TENANTS}) % {TENANTS} <= 10
             join lateral (select id from items where tenant_id = o.id order by at desc limit 1) i on true;
         with few as (select id from items where tenant_id = (select id from numbered where n = 0) limit {})
         insert into tenancy.cross_tenant_shares (id, owner_tenant_id, target_tenant_id, resource_type, resource_id, perms, state, offered_by)
           select gen_random_uuid(), o.id, t.id, 'item', f.id, 'read', 'active', 'bench' from numbered o, few f, numbered t where o.n = 0 and t.n > {TENANTS} / 2;
         analyze",
        SHARES / (TENANTS / 2)
    )))
    .await?;
    let shares: i64 = sqlx::query_scalar("select count(*) from tenancy.cross_tenant_shares").fetch_one(&mut eye).await?;
    let both = own_and_shared("items", "id, at, body", "at, id");
    let mut shown = 0;
    for round in 0..ROUNDS {
        let cx = &tenants[1 + round * 7 % (TENANTS / 2 - 1)];
        cases[1].samples.push(list(&db, cx, STRICT, false).await?.0);
        let (took, some) = list(&db, cx, &both, true).await?;
        cases[2].samples.push(took);
        shown += some;
    }
    assert!(shown > ROUNDS, "the lists show shared rows");
    for case in &mut cases {
        case.samples.drain(..200);
    }
    print(&format!("newest 20 of {ROWS} rows of each of {TENANTS} tenants, {shares} shares; one statement, local socket"), &mut cases, 0);
    let [before, strict, both_p50] = cases.each_mut().map(Case::p50);
    println!("\nstrict list with sharing / before: {:.2} (aim 1.02)", strict / before);
    println!("own and shared / strict: {:.2} (aim 1.3)", both_p50 / strict);

    let mut near = ["a target of ten shares", "a target of one owner's hundred more"].map(Case::new);
    for round in 0..ROUNDS {
        near[0].samples.push(list(&db, &tenants[1 + round * 7 % (TENANTS / 2 - 1)], &both, true).await?.0);
        near[1].samples.push(list(&db, &tenants[TENANTS / 2 + 1 + round * 7 % (TENANTS / 2 - 1)], &both, true).await?.0);
    }
    print("own and shared, by how much is shared with the tenant", &mut near, 0);

    let remote = TenantDb::open(Options::new(&proxy(&database.app_url())?)?.with_admin_url(&database.admin_url())?).await?;
    let (cx, share): (_, Uuid) = (
        &tenants[5],
        sqlx::query_scalar("select id from tenancy.cross_tenant_shares where target_tenant_id = $1 limit 1")
            .bind(tenants[5].tenant_id().as_uuid())
            .fetch_one(&mut eye)
            .await?,
    );
    let mut open = ["read, query, drop", "**read_shared, query, drop**"].map(Case::new);
    for _ in 0..500 {
        timed!(open[0], {
            let mut tx = remote.read(cx).await?;
            let rows =
                sqlx::query("select id from items where tenant_id = $1 limit 1").bind(cx.tenant_id().as_uuid()).fetch_all(&mut tx).await?;
            assert_eq!(rows.len(), 1);
        });
        timed!(open[1], {
            let (mut tx, granted) = remote.read_shared(cx, share).await?;
            let query = sqlx::query("select id from tenancy_views.items where id = $1").bind(granted.resource.id());
            assert_eq!(query.fetch_all(&mut tx).await?.len(), 1);
        });
    }
    for case in &mut open {
        case.samples.drain(..50);
    }
    print("opening a share at a round trip of 1 ms", &mut open, 0);
    let [plain, shared] = open.each_mut().map(Case::p50);
    println!("\nopening a share costs {:.2} round trips more (aim 1)", (shared - plain) / 1000.0);
    Ok(())
}
