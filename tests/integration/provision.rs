//! Provisioning: a tenant serves when everything of it is made, whatever is killed on the way, and each step has its effect once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use harness::Kit;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde_json::{Value, json};
use tenancy_core::objects::TenantObjects;
use tenancy_core::quota::{Metric, Plan, Plans, Quota};
use tenancy_core::{
    Actor, Clock as _, Error, ErrorKind, NewTenant, Principal, Result, SystemClock, Tenant, TenantCatalog as _, TenantChange,
    TenantContext, TenantId, TenantStatus,
};
use tenancy_sqlx::erase::{CertificateKey, Erase};
use tenancy_sqlx::operations::{Operation, Operations};
use tenancy_sqlx::provision::{Provision, ProvisionHook, ProvisionStep, Provisioning, WarmPool};
use tenancy_sqlx::{SystemTx, TenantTx, from_sqlx};
use tokio::sync::Semaphore;
use uuid::Uuid;

fn plans() -> Plans {
    Plans::new([Plan::new(Tenant::DEFAULT_PLAN).with(Quota::new(Metric::USERS, 7))]).expect("valid")
}

/// Adds a note, in the tenant's transaction.
struct Note(&'static str);

#[async_trait]
impl ProvisionHook for Note {
    fn name(&self) -> &'static str {
        self.0
    }

    async fn run(&self, of: &Provisioning<'_>, tx: &mut TenantTx) -> Result<Value> {
        assert_eq!((tx.tenant_id(), of.tenant.status), (of.tenant.id, TenantStatus::Provisioning));
        let note = sqlx::query("insert into notes (body) values ($1)").bind(format!("{} of {}", self.0, of.tenant.slug));
        note.execute(tx).await.map_err(from_sqlx)?;
        Ok(json!({ "input": of.input }))
    }
}

/// A step across tenants.
struct Told;

#[async_trait]
impl ProvisionStep for Told {
    fn name(&self) -> &'static str {
        "told"
    }

    async fn run(&self, of: &Provisioning<'_>, tx: &mut SystemTx) -> Result<Value> {
        let message = tenancy_core::outbox::Message::new("tenant.made", Uuid::new_v4().to_string(), json!({ "slug": of.tenant.slug }))?;
        tx.post(Some(of.tenant.id), &message).await.map(Value::from)
    }
}

fn provision(kit: &Kit) -> Provision {
    let objects = TenantObjects::prefixed(Arc::new(InMemory::new()), Path::from("tenants")).expect("objects");
    Provision::new(&kit.db, plans()).with_storage(objects).with_hook(Note("first")).with_step(Told).with_hook(Note("second"))
}

const STEPS: [&str; 6] = ["preflight", "quotas", "storage", "first", "told", "second"];

fn worker(kit: &Kit, provision: Provision) -> Operations {
    Operations::new(&kit.db).with(Provision::KIND, provision)
}

async fn create(kit: &Kit, slug: &str) -> TenantId {
    let new = NewTenant::new(slug.parse().expect("a slug"), slug);
    kit.db.catalog().create(new, &Actor::System).await.expect("created").id
}

async fn request(kit: &Kit, tenant: TenantId) -> Result<Operation> {
    let mut tx = kit.db.dangerous().begin_system("a test provisions a tenant").await?;
    let queued = tx.request_provisioning(tenant, &plans(), json!({ "owner": "ada" }), None).await?;
    tx.commit().await?;
    Ok(queued)
}

async fn operation(kit: &Kit, id: Uuid) -> Operation {
    let mut tx = kit.db.dangerous().begin_system("a test looks").await.expect("system");
    tx.operation(id).await.expect("the operation")
}

/// Works until the operation has ended.
async fn finish(kit: &Kit, id: Uuid, provision: Provision) -> Operation {
    let worker = worker(kit, provision);
    loop {
        worker.run_next().await.expect("it runs");
        let now = operation(kit, id).await;
        if now.state == "done" || now.state == "failed" {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn context(kit: &Kit, tenant: TenantId) -> Result<TenantContext> {
    kit.db.catalog().refresh().await?;
    let found = kit.db.catalog().find(&tenant.into()).await?.ok_or_else(Error::tenant_not_found)?;
    Ok(TenantContext::establish(found.into_active()?, Principal::Visitor))
}

async fn refused(kit: &Kit, tenant: TenantId) {
    assert_eq!(context(kit, tenant).await.expect_err("half made").kind(), ErrorKind::TenantInactive);
}

/// Runs a worker until it has finished `step`, and kills it there.
async fn kill_after(kit: &Kit, id: Uuid, provision: Provision, step: &'static str) {
    let before = operation(kit, id).await.attempts;
    let halting = worker(kit, provision.halting_after(step));
    let task = tokio::spawn(async move {
        loop {
            halting.run_next().await.expect("it runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    // It has claimed the operation, and stands still: its row stops changing, but for the claim.
    let mut last = None;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = operation(kit, id).await;
        assert!(now.state == "queued" || now.state == "running", "it did not halt after {step}: {now:?}");
        if now.attempts > before && last == Some(now.updated_at) {
            break;
        }
        last = Some(now.updated_at);
    }
    task.abort();
    let _ = task.await;
    give_up(kit).await;
}

/// Lets the claims of killed workers run out.
async fn give_up(kit: &Kit) {
    let sql = "update tenancy.operations set claimed_until = now() - interval '1 second' where claimed_until is not null";
    sqlx::query(sql).execute(&mut kit.superuser().await).await.expect("given up");
}

#[tokio::test]
async fn a_tenant_is_made_in_steps_and_serves_then() {
    let kit = Kit::new().await;
    let tenant = create(&kit, "newco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    assert_eq!((queued.kind.as_str(), queued.state.as_str()), ("provision", "queued"));
    refused(&kit, tenant).await;
    let done = finish(&kit, queued.id, provision(&kit)).await;
    assert_eq!((done.state.as_str(), &done.error), ("done", &None));
    assert_eq!(done.result.expect("a result")["steps"], json!(["preflight", "quotas", "storage", "first", "told", "second", "activate"]));
    let cx = context(&kit, tenant).await.expect("active");
    assert_eq!(kit.notes(&cx).await, ["first of newco", "second of newco"]);
    assert!(kit.notes(&kit.acme).await.is_empty(), "another tenant sees none of it");
    let mut eye = kit.superuser().await;
    let quota: i64 = sqlx::query_scalar("select count(*) from tenancy.quotas where tenant_id = $1 and metric = 'users'")
        .bind(tenant.as_uuid())
        .fetch_one(&mut eye)
        .await
        .expect("quotas");
    assert_eq!(quota, 1);
    let again = request(&kit, tenant).await.expect_err("it is made").to_string();
    assert_eq!(again, "a tenant that is active can't be provisioned");
}

#[tokio::test]
async fn killed_after_any_step_another_node_goes_on_and_each_has_its_effect_once() {
    let kit = Kit::new().await;
    let tenant = create(&kit, "newco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    for step in STEPS {
        kill_after(&kit, queued.id, provision(&kit), step).await;
        refused(&kit, tenant).await;
    }
    let done = finish(&kit, queued.id, provision(&kit)).await;
    assert_eq!((done.state.as_str(), done.attempts), ("done", 7), "{:?}", done.error);
    let cx = context(&kit, tenant).await.expect("active");
    assert_eq!(kit.notes(&cx).await, ["first of newco", "second of newco"]);
    let mut eye = kit.superuser().await;
    let told: i64 =
        sqlx::query_scalar("select count(*) from tenancy.outbox where topic = 'tenant.made'").fetch_one(&mut eye).await.expect("n");
    assert_eq!(told, 1);
}

#[tokio::test]
async fn control_without_the_memory_of_steps_rows_double() {
    let kit = Kit::new().await;
    let tenant = create(&kit, "newco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    kill_after(&kit, queued.id, provision(&kit).danger_without_memory(), "first").await;
    finish(&kit, queued.id, provision(&kit)).await;
    let cx = context(&kit, tenant).await.expect("active");
    assert_eq!(kit.notes(&cx).await, ["first of newco", "first of newco", "second of newco"]);
}

/// Adds a note, and waits before it is committed.
struct Gated(Arc<Semaphore>, Arc<Semaphore>);

#[async_trait]
impl ProvisionHook for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    async fn run(&self, of: &Provisioning<'_>, tx: &mut TenantTx) -> Result<Value> {
        Note("gated").run(of, tx).await?;
        self.0.add_permits(1);
        self.1.acquire().await.expect("open").forget();
        Ok(Value::Null)
    }
}

/// One is killed inside of a step's transaction; another one only seems dead, and comes too late.
#[tokio::test]
async fn of_two_nodes_in_the_same_step_one_keeps_its_rows() {
    let kit = Kit::new().await;
    let (at, shut, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(9)));
    let gated = |gate: &Arc<Semaphore>| Provision::new(&kit.db, plans()).with_hook(Gated(Arc::clone(&at), Arc::clone(gate)));
    let tenant = create(&kit, "newco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    // It renews so seldom that it hears of nothing.
    let slow = |gate| Operations::new(&kit.db).with(Provision::KIND, gated(gate)).with_lease(Duration::from_secs(600));

    let killed = slow(&shut);
    let task = tokio::spawn(async move { killed.run_next().await });
    at.acquire().await.expect("it is inside").forget();
    task.abort();
    let _ = task.await;

    give_up(&kit).await;
    let late = slow(&shut);
    let task = tokio::spawn(async move { late.run_next().await });
    at.acquire().await.expect("it is inside").forget();
    give_up(&kit).await;
    let done = finish(&kit, queued.id, gated(&open)).await;
    assert_eq!((done.state.as_str(), done.attempts), ("done", 3));
    shut.add_permits(9);
    task.await.expect("no panic").expect("it ends: the operation is another node's");
    let cx = context(&kit, tenant).await.expect("active");
    assert_eq!(kit.notes(&cx).await, ["gated of newco"]);
}

#[tokio::test]
async fn nodes_share_the_work_and_make_each_tenant_once() {
    let kit = Kit::new().await;
    let mut made = Vec::new();
    for n in 0..6 {
        let tenant = create(&kit, &format!("newco-{n}")).await;
        made.push((tenant, request(&kit, tenant).await.expect("queued").id));
    }
    join_all(made.iter().take(3).map(|(_, id)| finish(&kit, *id, provision(&kit)))).await;
    for (tenant, id) in made {
        let done = finish(&kit, id, provision(&kit)).await;
        assert_eq!((done.state.as_str(), done.attempts), ("done", 1), "{:?}", done.error);
        assert_eq!(kit.notes(&context(&kit, tenant).await.expect("active")).await.len(), 2);
    }
}

#[tokio::test]
async fn of_many_requests_one_is_taken() {
    let kit = Kit::new().await;
    let tenant = create(&kit, "newco").await;
    let asked = join_all((0..3).map(|_| request(&kit, tenant))).await;
    assert_eq!(asked.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(asked.iter().filter_map(|result| result.as_ref().err()).all(|error| error.kind() == ErrorKind::Conflict), "{asked:?}");
}

/// Fails for good.
struct Failing;

#[async_trait]
impl ProvisionHook for Failing {
    fn name(&self) -> &'static str {
        "second"
    }

    async fn run(&self, of: &Provisioning<'_>, tx: &mut TenantTx) -> Result<Value> {
        Note("lost").run(of, tx).await?;
        Err(Error::new(ErrorKind::Conflict, "the template is gone"))
    }
}

#[tokio::test]
async fn a_run_that_fails_leaves_a_tenant_that_can_be_provisioned_again_or_erased() {
    let kit = Kit::new().await;
    let failing = || Provision::new(&kit.db, plans()).with_hook(Note("first")).with_hook(Failing);
    let tenant = create(&kit, "newco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    let failed = finish(&kit, queued.id, failing()).await;
    assert_eq!((failed.state.as_str(), failed.error.as_deref()), ("failed", Some("the template is gone")));
    refused(&kit, tenant).await;
    let half = kit.db.catalog().update(tenant, TenantChange::status(TenantStatus::Active), None, &Actor::System).await;
    assert_eq!(half.expect_err("half made").to_string(), "the tenant is not provisioned yet");

    let again = request(&kit, tenant).await.expect("queued again");
    let done = finish(&kit, again.id, provision(&kit)).await;
    assert_eq!(done.state, "done", "{:?}", done.error);
    assert_eq!(kit.notes(&context(&kit, tenant).await.expect("active")).await, ["first of newco", "second of newco"]);

    let tenant = create(&kit, "oldco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    finish(&kit, queued.id, failing()).await;
    let mut tx = kit.db.dangerous().begin_system("a test erases a tenant").await.expect("system");
    let erasure = tx.request_erasure(tenant, "never made", None).await.expect("queued");
    tx.commit().await.expect("commit");
    let erase = Operations::new(&kit.db).with(Erase::KIND, Erase::new(&kit.db, CertificateKey::new([7; 32])));
    erase.run_next().await.expect("it runs");
    let erased = operation(&kit, erasure.id).await;
    assert_eq!(erased.state, "done", "{:?}", erased.error);
    assert_eq!(erased.result.expect("a certificate")["certificate"]["tables"]["public.notes"], 1);

    // Where nothing was begun, a host activates by its own means.
    let plain = create(&kit, "plainco").await;
    kit.db.catalog().update(plain, TenantChange::status(TenantStatus::Active), None, &Actor::System).await.expect("control: active");
}

#[tokio::test]
async fn what_cannot_be_provisioned_is_refused_first() {
    let kit = Kit::new().await;
    let mut new = NewTenant::new("newco".parse().expect("a slug"), "newco");
    new.plan = "gold".to_owned();
    let tenant = kit.db.catalog().create(new, &Actor::System).await.expect("created").id;
    let refused = request(&kit, tenant).await.expect_err("no such plan");
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::Invalid, Some("plan")));
    assert_eq!(request(&kit, TenantId::new()).await.expect_err("nobody").kind(), ErrorKind::NotFound);

    // Two steps of a name would share a memory.
    let tenant = create(&kit, "twins").await;
    for twins in [Provision::new(&kit.db, plans()).with_hook(Note("a")).with_hook(Note("a")), provision(&kit).with_hook(Note("quotas"))] {
        let queued = request(&kit, tenant).await.expect("queued");
        let failed = finish(&kit, queued.id, twins).await;
        assert!(failed.error.as_deref().is_some_and(|error| error.starts_with("two steps have the name")), "{failed:?}");
    }
}

#[tokio::test]
async fn a_database_that_leaks_makes_no_tenant() {
    let kit = Kit::new().await;
    let tenant = create(&kit, "newco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    let mut eye = kit.superuser().await;
    sqlx::raw_sql("alter table notes disable row level security").execute(&mut eye).await.expect("leaking");
    let failed = finish(&kit, queued.id, provision(&kit)).await;
    assert!(failed.state == "failed" && failed.error.as_deref().is_some_and(|error| error.contains("public.notes")), "{failed:?}");
}

#[tokio::test]
async fn a_tenant_can_not_finish_steps_of_another() {
    let kit = Kit::new().await;
    let tenant = create(&kit, "newco").await;
    let queued = request(&kit, tenant).await.expect("queued");
    kill_after(&kit, queued.id, provision(&kit), "quotas").await;
    let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
    let sql = "select tenancy.provision_finish($1, 1, 'first', '{}')";
    let kept: bool = sqlx::query_scalar(sql).bind(queued.id).fetch_one(&mut tx).await.expect("asked");
    assert!(!kept);
    tx.commit().await.expect("commit");
    finish(&kit, queued.id, provision(&kit)).await;
    assert_eq!(kit.notes(&context(&kit, tenant).await.expect("active")).await.len(), 2);
}

fn named(slug: &str) -> NewTenant {
    NewTenant::new(slug.parse().expect("a slug"), slug)
}

#[tokio::test]
async fn tenants_that_are_made_ahead_serve_nobody_until_each_is_taken_once() {
    let kit = Kit::new().await;
    let pool = WarmPool::new(&kit.db, plans(), 2);
    let filled = join_all([pool.fill(), pool.fill(), pool.fill()]).await;
    let added: u32 = filled.into_iter().map(|added| added.expect("filled")).sum();
    assert_eq!((added, pool.fill().await.expect("full")), (2, 0));
    let worker = worker(&kit, provision(&kit));
    let system = async || kit.db.dangerous().begin_system("a test takes a tenant").await.expect("system");
    let now = || SystemClock.now();
    assert!(system().await.take_warm(named("early"), &plans(), now()).await.expect("asked").is_none(), "none is made yet");
    while worker.run_next().await.expect("it runs").is_some() {}
    let warm: Vec<TenantId> = {
        let ids: Vec<Uuid> = sqlx::query_scalar("select id from tenancy.tenants where status = 'provisioning' and slug like 'warm-%'")
            .fetch_all(&mut kit.superuser().await)
            .await
            .expect("ids");
        ids.into_iter().map(|id| TenantId::from_uuid(id).expect("an id")).collect()
    };
    assert_eq!(warm.len(), 2);
    for tenant in &warm {
        refused(&kit, *tenant).await;
    }

    let (mut one, mut two, mut three) = (system().await, system().await, system().await);
    let taken = one.take_warm(named("newco"), &plans(), now()).await.expect("taken").expect("one is there");
    assert_eq!((taken.slug.as_str(), taken.status), ("newco", TenantStatus::Active));
    let other = two.take_warm(named("otherco"), &plans(), now()).await.expect("taken").expect("another one is there");
    assert_ne!(taken.id, other.id);
    assert!(three.take_warm(named("lateco"), &plans(), now()).await.expect("asked").is_none(), "and no third one");
    two.rollback().await.expect("given back");
    let clash = three.take_warm(named("acme"), &plans(), now()).await.expect_err("acme has its slug");
    assert_eq!(clash.kind(), ErrorKind::Conflict);
    three.rollback().await.expect("given back");
    one.commit().await.expect("commit");
    let cx = context(&kit, taken.id).await.expect("active at once");
    assert_eq!(kit.notes(&cx).await.len(), 2);
    refused(&kit, other.id).await;

    assert_eq!(pool.fill().await.expect("filled"), 1, "what was taken is made anew");
    // What can't be made keeps its place.
    let failing = Operations::new(&kit.db).with(Provision::KIND, Provision::new(&kit.db, plans()).with_hook(Failing));
    failing.run_next().await.expect("it runs");
    assert_eq!(pool.fill().await.expect("full"), 0);
}
