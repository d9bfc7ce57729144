//! Exports: all of one tenant, as it was at one moment, and nothing of another.

use std::collections::BTreeMap;
use std::sync::Arc;

use harness::Kit;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::Executor as _;
use tenancy_core::objects::TenantObjects;
use tenancy_core::{Actor, ErrorKind, NewTenant, Result, TenantCatalog as _, TenantChange, TenantContext, TenantId, TenantStatus};
use tenancy_sqlx::erase::{CertificateKey, Erase};
use tenancy_sqlx::export::{Export, Exports};
use tenancy_sqlx::operations::{Operation, Operations};
use uuid::Uuid;

struct World {
    kit: Kit,
    store: Arc<InMemory>,
    objects: TenantObjects,
    exports: Exports,
}

impl World {
    async fn new() -> Self {
        let store = Arc::new(InMemory::new());
        let objects = TenantObjects::prefixed(store.clone(), Path::from("tenants")).expect("objects");
        Self { kit: Kit::new().await, exports: Exports::new(store.clone(), Path::from("exports")), store, objects }
    }

    async fn request(&self, tenant: TenantId) -> Result<Operation> {
        let mut tx = self.kit.db.dangerous().begin_system("a test exports a tenant").await?;
        let queued = tx.request_export(tenant, None).await?;
        tx.commit().await?;
        Ok(queued)
    }

    fn worker(&self) -> Operations {
        Operations::new(&self.kit.db).with(Export::KIND, Export::new(&self.kit.db, self.exports.clone()).with_objects(self.objects.clone()))
    }

    async fn operation(&self, id: Uuid) -> Operation {
        self.kit.db.dangerous().begin_system("a test looks").await.expect("system").operation(id).await.expect("the operation")
    }

    async fn export(&self, tenant: TenantId) -> Operation {
        let queued = self.request(tenant).await.expect("queued");
        self.worker().run_next().await.expect("it runs");
        let done = self.operation(queued.id).await;
        assert_eq!((done.state.as_str(), &done.error), ("done", &None));
        done
    }

    async fn file(&self, of: &Operation, file: &str) -> Vec<u8> {
        self.exports.file(of, file).await.expect(file).bytes().await.expect(file).to_vec()
    }

    /// Everything that was written for the tenant.
    async fn all(&self, tenant: TenantId) -> String {
        let mut all = Vec::new();
        let below = Path::from("exports").join(tenant.to_string());
        for meta in futures_util::TryStreamExt::try_collect::<Vec<_>>(self.store.list(Some(&below))).await.expect("listed") {
            all.extend_from_slice(&self.store.get(&meta.location).await.expect("there").bytes().await.expect("read"));
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    std::str::from_utf8(bytes).expect("UTF-8").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

async fn fill(world: &World, cx: &TenantContext, whose: &str) {
    for n in 0..3 {
        world.kit.note(cx, &format!("{whose} note {n}")).await;
    }
    let objects = world.objects.scope(cx).expect("scope");
    objects.put(&Path::from("a/b.txt"), format!("{whose} object").into()).await.expect("put");
    objects.put(&Path::from("large"), vec![b'x'; 9_000_000].into()).await.expect("put"); // takes two parts
}

#[tokio::test]
async fn an_export_has_all_of_one_tenant_and_nothing_of_another() {
    let world = World::new().await;
    let kit = &world.kit;
    kit.superuser()
        .await
        .execute("create table public.secrets (tenant_id uuid not null, word text); alter table public.secrets enable row level security")
        .await
        .expect("a table that the application may not read");
    fill(&world, &kit.acme, "acme's").await;
    fill(&world, &kit.globex, "globex's").await;
    let done = world.export(kit.acme.tenant_id()).await;
    let manifest: Value = serde_json::from_slice(&world.file(&done, "manifest.json").await).expect("JSON");
    assert_eq!(manifest["tenant_id"], kit.acme.tenant_id().to_string());

    let mut rows = BTreeMap::new();
    for table in manifest["tables"].as_array().expect("tables") {
        let bytes = world.file(&done, table["file"].as_str().expect("a name")).await;
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((table["sha256"].as_str(), table["bytes"].as_u64()), (Some(sha256.as_str()), Some(bytes.len() as u64)), "{table}");
        let lines = lines(&bytes);
        assert_eq!(table["rows"].as_u64(), Some(lines.len() as u64));
        assert!(lines.iter().all(|row| row["tenant_id"] == kit.acme.tenant_id().to_string()), "{table}");
        rows.insert(table["table"].as_str().expect("a name").to_owned(), lines);
    }
    let mut notes: Vec<&str> = rows["public.notes"].iter().filter_map(|row| row["body"].as_str()).collect();
    notes.sort_unstable();
    assert_eq!(notes, ["acme's note 0", "acme's note 1", "acme's note 2"]);
    assert!(manifest["not_read"].to_string().contains("public.secrets"), "{manifest}");

    let objects = lines(&world.file(&done, "objects.ndjson").await);
    assert_eq!((manifest["objects"]["objects"].as_u64(), objects.len()), (Some(2), 2));
    for object in &objects {
        let bytes = world.file(&done, object["file"].as_str().expect("a name")).await;
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((object["sha256"].as_str(), object["bytes"].as_u64()), (Some(sha256.as_str()), Some(bytes.len() as u64)));
    }
    assert_eq!(world.file(&done, "objects/a/b.txt").await, b"acme's object");

    let all = world.all(kit.acme.tenant_id()).await;
    assert!(all.contains("acme's note 1") && !all.contains("globex"), "nothing of the other one");
    world.export(kit.globex.tenant_id()).await;
    assert!(world.all(kit.globex.tenant_id()).await.contains("globex's note 1"), "control: it would be found");

    for absent in ["../1/manifest.json", "nothing", "", "objects/../manifest.json", "/manifest.json"] {
        assert_eq!(world.exports.file(&done, absent).await.expect_err(absent).kind(), ErrorKind::NotFound, "{absent}");
    }
}

/// A row that is committed while the export waits for its table comes too late for it.
#[tokio::test]
async fn all_rows_are_of_one_moment() {
    let world = World::new().await;
    fill(&world, &world.kit.acme, "acme's").await;
    let queued = world.request(world.kit.acme.tenant_id()).await.expect("queued");
    let mut eye = world.kit.superuser().await;
    eye.execute("begin; lock table notes in access exclusive mode").await.expect("locked");
    let worker = world.worker();
    let work = tokio::spawn(async move { worker.run_next().await });
    let waiting = "select count(*) from pg_locks where not granted and relation = 'notes'::regclass";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut eye).await.expect("locks") == 0 {
        assert!(!work.is_finished(), "it did not wait");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let late = sqlx::query("insert into notes (tenant_id, body) values ($1, 'late')").bind(world.kit.acme.tenant_id().as_uuid());
    late.execute(&mut eye).await.expect("inserted");
    eye.execute("commit").await.expect("commit");
    work.await.expect("no panic").expect("it runs");
    let done = world.operation(queued.id).await;
    assert_eq!(done.state, "done", "{:?}", done.error);
    let all = world.all(world.kit.acme.tenant_id()).await;
    assert!(all.contains("acme's note 2") && !all.contains("late"));
    assert_eq!(world.kit.notes(&world.kit.acme).await.len(), 4, "control: it is there");
}

#[tokio::test]
async fn an_export_that_was_stopped_is_made_anew_and_leaves_no_other_files() {
    let world = World::new().await;
    fill(&world, &world.kit.acme, "acme's").await;
    let tenant = world.kit.acme.tenant_id();
    let queued = world.request(tenant).await.expect("queued");
    // A node wrote a part of the files, and was killed.
    let stale = Path::from(format!("exports/{tenant}/{}/1/0-public.notes.ndjson", queued.id));
    world.store.put(&stale, "stale".into()).await.expect("put");
    let mut eye = world.kit.superuser().await;
    let sql = "update tenancy.operations set state = 'running', attempts = 1, claimed_until = now() - interval '1 second'";
    eye.execute(sql).await.expect("given up");
    world.worker().run_next().await.expect("it runs");
    let done = world.operation(queued.id).await;
    assert_eq!((done.state.as_str(), &done.result.as_ref().expect("a result")["attempt"]), ("done", &Value::from(2)));
    assert!(world.store.get(&stale).await.is_err());
    assert!(world.all(tenant).await.contains("acme's note 2"));
}

#[tokio::test]
async fn tenants_that_do_not_serve_are_exported_and_an_erasure_takes_the_exports_with_it() {
    let world = World::new().await;
    let kit = &world.kit;
    fill(&world, &kit.acme, "acme's").await;
    let acme = kit.acme.tenant_id();
    for status in [TenantStatus::Suspended, TenantStatus::Archived] {
        kit.db.catalog().update(acme, TenantChange::status(status), None, &Actor::System).await.expect("changed");
        let done = world.export(acme).await;
        assert_eq!(done.result.expect("a result")["rows"].as_u64().map(|rows| rows >= 3), Some(true));
    }
    let made = kit.db.catalog().create(NewTenant::new("newco".parse().expect("a slug"), "newco"), &Actor::System).await.expect("made");
    assert_eq!(world.request(made.id).await.expect_err("half made").kind(), ErrorKind::Conflict);
    assert_eq!(world.request(TenantId::new()).await.expect_err("nobody").kind(), ErrorKind::NotFound);
    let globex = world.export(kit.globex.tenant_id()).await;

    let mut tx = kit.db.dangerous().begin_system("a test erases a tenant").await.expect("system");
    let queued = tx.request_erasure(acme, "the contract ended", None).await.expect("queued");
    tx.commit().await.expect("commit");
    assert!(!world.all(acme).await.is_empty(), "control: they are there");
    let erase = Erase::new(&kit.db, CertificateKey::new([7; 32])).with_objects((world.objects.clone(), world.exports.clone()));
    Operations::new(&kit.db).with(Erase::KIND, erase).run_next().await.expect("it runs");
    assert_eq!(world.operation(queued.id).await.state, "done");
    assert!(world.all(acme).await.is_empty());
    world.file(&globex, "manifest.json").await;
}
