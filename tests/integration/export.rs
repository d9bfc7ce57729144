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
use tenancy_sqlx::export::{Export, Exports, Format, NewExport};
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
        self.ask(tenant, &NewExport::default()).await
    }

    async fn ask(&self, tenant: TenantId, export: &NewExport) -> Result<Operation> {
        let mut tx = self.kit.db.dangerous().begin_system("a test exports a tenant").await?;
        let queued = tx.request_export(tenant, export, None).await?;
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
        self.done(queued).await
    }

    async fn done(&self, queued: Operation) -> Operation {
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

const KINDS: &str = "
    create type hue as enum ('red', 'dark, blue');
    create type pair as (n int, word text);
    create domain short as varchar(40);
    create domain numbers as int[];
    create table kinds (
      tenant_id uuid not null, id int not null, at timestamptz not null default '2026-01-02 03:04:05.678901+05', word text, fixed char(6), nick short, amount numeric, ratio float8, small real, yes boolean,
      blob bytea, day date, local timestamp, hour time, pause interval, net inet, span int4range, hue hue, raw json, doc jsonb, numbers numbers, words text[], times timestamptz[], pair pair, pairs pair[],
      twice int generated always as (id * 2) stored, \"odd \"\"name\"\", =x\" text, primary key (tenant_id, at, id));
    call tenancy.protect_table('kinds');
    set timezone = 'America/Lima'";
/// The same, with JSON where the file has JSON.
const BACK: &str = "
    create table back (
      tenant_id uuid, id int, at timestamptz, word text, fixed char(6), nick short, amount numeric, ratio float8, small real, yes boolean, blob bytea, day date, local timestamp, hour time, pause interval,
      net inet, span int4range, hue hue, raw json, doc jsonb, numbers jsonb, words jsonb, times jsonb, pair jsonb, pairs jsonb, twice int, \"odd \"\"name\"\", =x\" text)";

async fn kinds(eye: &mut sqlx::PgConnection, from: &str, tenant: TenantId) -> Vec<String> {
    let sql = format!(
        "select row(id, at, word, fixed, nick, amount, ratio, small, yes, blob, day, local, hour, pause, net, span, hue, raw, doc, to_jsonb(numbers), to_jsonb(words), to_jsonb(times), to_jsonb(pair),
                    to_jsonb(pairs), twice, \"odd \"\"name\"\", =x\")::text from {from} where tenant_id = $1 order by at, id"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(tenant.as_uuid()).fetch_all(eye).await.expect("rows")
}

#[tokio::test]
async fn csv_is_read_back_to_the_last_bit_and_says_what_is_null() {
    let world = World::new().await;
    let kit = &world.kit;
    fill(&world, &kit.acme, "acme's").await;
    let mut eye = kit.superuser().await;
    eye.execute("set role tenancy_owner").await.expect("owner");
    eye.execute(KINDS).await.expect("a table");
    eye.execute("reset role; set timezone = 'UTC'").await.expect("reset");
    for cx in [&kit.acme, &kit.globex] {
        let mut tx = kit.db.begin(cx).await.expect("begin");
        let whose = if cx.tenant_id() == kit.acme.tenant_id() { "acme's" } else { "globex's" };
        for values in [
            "(id, word, fixed, nick, amount, ratio, small, yes, blob, day, local, hour, pause, net, span, hue, raw, doc, numbers, words, times, pair, pairs, \"odd \"\"name\"\", =x\") values
               (1, E'a \"word\", and\\r\\nanother\\nline', 'ab ', 'É', 1.50, 0.1, 1e-7, true, '\\x00ff', '0044-03-15 BC', '2026-01-02 03:04:05', '03:04:05.5', '1 mon -2 days 00:00:01.5', '10.0.0.0/8', '[1,5)',
                'dark, blue', '{\"b\" :  1.0,\n \"b\": \"x\"}', '{\"a\": [1, null, 1.50]}', '{1,NULL,3}', '{\"a,b\",\"\\\"\",NULL,\"\"}', '{2026-01-02 03:04:05+05,infinity}', '(1,\"a \"\"b\"\"\")', '{\"(1,a)\",NULL}', '=1+1')",
            "(id, word, fixed, nick, amount, ratio, yes, blob, doc, raw, numbers, words, pair, \"odd \"\"name\"\", =x\") values (2, '', '', '', 'NaN', '-0', false, '', 'null', 'null', '{}', '{}', '(,)', '@SUM(A1)')",
            "(id) values (3)",
            "(id, word, ratio, at, day, local, span, numbers) values (4, '\\.', 'infinity', '-infinity', 'infinity', 'infinity', 'empty', '[2:3]={7,8}'), (5, 'NULL', 'NaN', '0001-01-01 BC', '1999-12-31', '0001-01-01 BC', '(,)', '{{1,2},{3,4}}')",
            "(id, word) values (6, '\\N'), (7, ' x '), (8, ','), (9, '\"'), (10, E'\\r'), (11, E'\\n'), (12, '-1'), (13, E'\\t日本'), (14, '\\x')",
        ] {
            sqlx::query(sqlx::AssertSqlSafe(format!("insert into kinds {values}"))).execute(&mut tx).await.expect(values);
        }
        sqlx::query("insert into kinds (id, word) values (99, $1)").bind(whose).execute(&mut tx).await.expect("inserted");
        tx.commit().await.expect("commit");
    }
    let acme = kit.acme.tenant_id();
    let queued = world.ask(acme, &NewExport::default().with_format(Format::Csv)).await.expect("queued");
    let done = world.done(queued).await;
    let manifest: Value = serde_json::from_slice(&world.file(&done, "manifest.json").await).expect("JSON");
    assert_eq!(manifest["format"], "csv");
    let table = manifest["tables"].as_array().expect("tables").iter().find(|table| table["table"] == "public.kinds").expect("it").clone();
    let name = table["file"].as_str().expect("a name");
    let file = world.file(&done, name).await;
    let sha256: String = Sha256::digest(&file).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((&table["rows"], table["sha256"].as_str(), name.ends_with(".csv")), (&Value::from(15), Some(sha256.as_str()), true));

    let text = String::from_utf8(file).expect("UTF-8");
    let header = "tenant_id,id,at,word,fixed,nick,amount,ratio,small,yes,blob,day,local,hour,pause,net,span,hue,raw,doc,numbers,words,times,pair,pairs,twice,\"odd \"\"name\"\", =x\"\r\n";
    assert!(text.starts_with(header), "{text}");
    for line in [
        format!("{acme},3,2026-01-01T22:04:05.678901+00:00,,,,,,,,,,,,,,,,,,,,,,,6,\r\n"),
        format!(
            "{acme},2,2026-01-01T22:04:05.678901+00:00,\"\",      ,\"\",NaN,-0,,false,\\x,,,,,,,,null,null,[],[],,\"{{\"\"n\"\":null,\"\"word\"\":null}}\",,4,@SUM(A1)\r\n"
        ),
        format!("{acme},14,2026-01-01T22:04:05.678901+00:00,\\x,"),
    ] {
        assert!(text.contains(&line), "{line}{text}");
    }
    for value in [
        ",P1M-2DT1.5S,",
        ",\\x00ff,",
        ",1.50,0.1,1e-07,true,",
        ",2026-01-02T03:04:05,",
        "\"[1,null,3]\",\"[\"\"a,b\"\",\"\"\\\"\"\"\",null,\"\"\"\"]\"",
        "=1+1\r\n",
    ] {
        assert!(text.contains(value), "{value}: {text}");
    }
    assert!(text.contains("acme's") && !text.contains("globex's"));

    // PostgreSQL itself reads what was written, and finds the same values; and another one if a single one is another.
    let rows = kinds(&mut eye, "kinds", acme).await;
    let mut read = async |text: &str| {
        eye.execute("drop table if exists back").await.expect("dropped");
        eye.execute(BACK).await.expect("made");
        let mut copy = eye.copy_in_raw("copy back from stdin (format csv, header)").await.expect("a copy");
        copy.send(text.as_bytes()).await.expect("sent");
        copy.finish().await.expect("read");
        kinds(&mut eye, "back", acme).await
    };
    assert_eq!(read(&text).await, rows);
    for (from, to) in [
        (",1.50,", ",1.5,"),
        (",\"\",      ,", ",,      ,"),
        ("=1+1", "=1+2"),
        ("\\x00ff", "\\x00fe"),
        (".678901+00:00,,,,,,,", ".678901+00:00,\"\",,,,,,"),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        assert_ne!(read(&text.replace(from, to)).await, rows, "the control: {to}");
    }
}
