//! Keys of tenants' backups: whose they are, how they change, and that what they sealed can't be read once their tenant is erased.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use harness::Kit;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde_json::json;
use tenancy_core::{Actor, ErrorKind, Result, TenantCatalog as _, TenantChange, TenantContext, TenantId, TenantStatus};
use tenancy_sqlx::backup::BackupKeys;
use tenancy_sqlx::backup::archive::{ArchiveKey, ArchiveReader, ArchiveWriter, Expect, Header, Kind};
use tenancy_sqlx::erase::{CertificateKey, Erase};
use tenancy_sqlx::operations::Operations;
use uuid::Uuid;

async fn current(kit: &Kit, keys: &BackupKeys, tenant: TenantId) -> Result<ArchiveKey> {
    let mut tx = kit.db.dangerous().begin_system("a test backs up").await?;
    let key = keys.current_key(&mut tx, tenant).await?;
    tx.commit().await?;
    Ok(key)
}

async fn rotate(kit: &Kit, keys: &BackupKeys, tenant: TenantId) -> Result<ArchiveKey> {
    let mut tx = kit.db.dangerous().begin_system("a test rotates").await?;
    let key = keys.rotate_tenant_key(&mut tx, tenant).await?;
    tx.commit().await?;
    Ok(key)
}

/// A copy of an archive, in a store that nobody erases.
struct Copy {
    store: Arc<dyn ObjectStore>,
    expect: Expect,
}

async fn archive(tenant: TenantId, key: &ArchiveKey) -> Copy {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let backup = Uuid::now_v7();
    let header = Header::new(tenant, backup, key, true, chrono::DateTime::UNIX_EPOCH);
    let mut archive = ArchiveWriter::create(store.clone(), Path::from("a"), header, key).await.expect("created");
    archive.begin(Kind::Rows, "public.notes").expect("begun");
    archive.write(b"a note").await.expect("written");
    archive.end(1).await.expect("ended");
    let done = archive.finish(json!({})).await.expect("finished");
    Copy { store, expect: Expect { tenant, backup, bytes: done.bytes, hash: done.hash } }
}

async fn read(copy: &Copy, key: &ArchiveKey) -> Result<Vec<u8>> {
    let archive = ArchiveReader::open(copy.store.clone(), Path::from("a"), copy.expect.clone(), key).await?;
    Ok(archive.segment("public.notes")?.try_collect::<Vec<_>>().await?.concat())
}

async fn count(kit: &Kit, sql: &str, of: &TenantContext) -> i64 {
    let mut eye = kit.superuser().await;
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).bind(of.tenant_id().as_uuid()).fetch_one(&mut eye).await.expect("a count")
}

#[tokio::test]
async fn each_tenant_has_keys_of_its_own_and_what_was_sealed_before_a_rotation_can_be_read() {
    let kit = Kit::new().await;
    let keys = BackupKeys::new([7; 32]);
    let (acme, globex) = (kit.acme.tenant_id(), kit.globex.tenant_id());
    let first = current(&kit, &keys, acme).await.expect("a key");
    assert_eq!(current(&kit, &keys, acme).await.expect("a key").id(), first.id(), "it is made once");
    let copy = archive(acme, &first).await;
    let again = keys.tenant_key(&kit.db, acme, first.id()).await.expect("it is found again");
    assert_eq!(read(&copy, &again).await.expect("read"), b"a note");

    let theirs = current(&kit, &keys, globex).await.expect("a key");
    assert_ne!(theirs.id(), first.id());
    let error = keys.tenant_key(&kit.db, globex, first.id()).await.expect_err("another tenant's");
    let none = keys.tenant_key(&kit.db, globex, Uuid::now_v7()).await.expect_err("there is none");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::NotFound, none.to_string()), "the one looks like the other");
    assert!(read(&copy, &theirs).await.is_err());

    let second = rotate(&kit, &keys, acme).await.expect("rotated");
    assert_ne!(second.id(), first.id());
    assert_eq!(current(&kit, &keys, acme).await.expect("a key").id(), second.id());
    assert_eq!(current(&kit, &keys, globex).await.expect("a key").id(), theirs.id(), "nobody else's changes");
    let old = keys.tenant_key(&kit.db, acme, first.id()).await.expect("what was sealed before");
    assert_eq!(read(&copy, &old).await.expect("read"), b"a note");
    let told = "select count(*) from tenancy.audit_events where tenant_id = $1 and action in ('backup_key.create', 'backup_key.rotate')";
    assert_eq!(count(&kit, told, &kit.acme).await, 2);
    assert_eq!(current(&kit, &keys, TenantId::new()).await.expect_err("no tenant").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn of_many_that_want_a_first_key_one_makes_it() {
    let kit = Kit::new().await;
    let keys = BackupKeys::new([7; 32]);
    let made = futures_util::future::join_all((0..6).map(|_| current(&kit, &keys, kit.acme.tenant_id()))).await;
    let ids: std::collections::BTreeSet<Uuid> = made.into_iter().map(|key| key.expect("a key").id()).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_master_key_is_replaced_without_a_backup_lost() {
    let kit = Kit::new().await;
    let old = BackupKeys::new([1; 32]);
    let (acme, globex) = (kit.acme.tenant_id(), kit.globex.tenant_id());
    let first = current(&kit, &old, acme).await.expect("a key");
    let copy = archive(acme, &first).await;
    rotate(&kit, &old, acme).await.expect("rotated");
    current(&kit, &old, globex).await.expect("a key");

    let alone = BackupKeys::new([2; 32]);
    let error = alone.tenant_key(&kit.db, acme, first.id()).await.expect_err("its master key is not there");
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert_eq!(alone.rewrap(&kit.db).await.expect_err("neither can it be sealed again").kind(), ErrorKind::Misconfigured);
    let both = alone.clone().with_older([1; 32]);
    assert_eq!(both.tenant_key(&kit.db, acme, first.id()).await.expect("both are").id(), first.id());
    assert_eq!(both.rewrap(&kit.db).await.expect("sealed again"), 3);
    assert_eq!(both.rewrap(&kit.db).await.expect("sealed again"), 0);

    let key = alone.tenant_key(&kit.db, acme, first.id()).await.expect("the new one is enough");
    assert_eq!(read(&copy, &key).await.expect("read"), b"a note");
    assert_eq!(old.tenant_key(&kit.db, acme, first.id()).await.expect_err("the old one is of no use").kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_row_that_was_put_in_anothers_place_opens_nothing() {
    let kit = Kit::new().await;
    let keys = BackupKeys::new([7; 32]);
    let (mine, theirs) = (kit.acme.tenant_id(), kit.globex.tenant_id());
    let (first, other) = (current(&kit, &keys, mine).await.expect("a key"), current(&kit, &keys, theirs).await.expect("a key"));
    let mut eye = kit.superuser().await;
    let swap = "update tenancy.backup_keys k set wrapped = (select o.wrapped from tenancy.backup_keys o where o.tenant_id = $2) where k.tenant_id = $1";
    sqlx::query(swap).bind(mine.as_uuid()).bind(theirs.as_uuid()).execute(&mut eye).await.expect("swapped");
    assert_eq!(keys.tenant_key(&kit.db, mine, first.id()).await.expect_err("refused").kind(), ErrorKind::Internal);
    assert!(keys.tenant_key(&kit.db, theirs, other.id()).await.is_ok(), "the one in its own place does");
}

#[tokio::test]
async fn the_applications_role_can_neither_see_nor_make_keys() {
    let kit = Kit::new().await;
    let keys = BackupKeys::new([7; 32]);
    current(&kit, &keys, kit.acme.tenant_id()).await.expect("a key");
    for sql in [
        "select wrapped from tenancy.backup_keys",
        "select count(*) from tenancy.backup_keys",
        "update tenancy.backup_keys set retired_at = now()",
        "delete from tenancy.backup_keys",
        "insert into tenancy.backup_keys (tenant_id, id, master_id, wrapped) select gen_random_uuid(), gen_random_uuid(), repeat('0', 16), ''",
    ] {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let error = sqlx::query(sql).execute(&mut tx).await.expect_err(sql);
        assert_eq!(error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(), Some("42501"), "{sql}");
    }
    // The control: who may see them does.
    let mut tx = kit.db.dangerous().begin_system("a test looks").await.expect("system");
    let seen: i64 = sqlx::query_scalar("select count(*) from tenancy.backup_keys").fetch_one(&mut tx).await.expect("a count");
    assert_eq!(seen, 1);
}

#[tokio::test]
async fn what_was_sealed_for_a_tenant_can_not_be_read_once_it_is_erased() {
    let kit = Kit::new().await;
    let keys = BackupKeys::new([7; 32]);
    let (acme, globex) = (kit.acme.tenant_id(), kit.globex.tenant_id());
    let (first, theirs) = (current(&kit, &keys, acme).await.expect("a key"), current(&kit, &keys, globex).await.expect("a key"));
    rotate(&kit, &keys, acme).await.expect("rotated");
    let (copy, control) = (archive(acme, &first).await, archive(globex, &theirs).await);
    let of = "select count(*) from tenancy.backup_keys where tenant_id = $1";
    assert_eq!(count(&kit, of, &kit.acme).await, 2);
    assert_eq!(read(&copy, &keys.tenant_key(&kit.db, acme, first.id()).await.expect("a key")).await.expect("read"), b"a note");

    kit.db.catalog().update(acme, TenantChange::status(TenantStatus::Archived), None, &Actor::System).await.expect("archived");
    let mut tx = kit.db.dangerous().begin_system("a test erases a tenant").await.expect("system");
    let queued = tx.request_erasure(acme, "the contract ended", None).await.expect("queued");
    tx.commit().await.expect("commit");
    Operations::new(&kit.db).with(Erase::KIND, Erase::new(&kit.db, CertificateKey::new([7; 32]))).run_next().await.expect("it runs");
    let mut tx = kit.db.dangerous().begin_system("a test looks").await.expect("system");
    assert_eq!(tx.operation(queued.id).await.expect("the operation").state, "done");
    tx.rollback().await.expect("rollback");

    assert_eq!(count(&kit, of, &kit.acme).await, 0, "its keys are gone");
    assert_eq!(keys.tenant_key(&kit.db, acme, first.id()).await.expect_err("gone").kind(), ErrorKind::NotFound);
    assert_eq!(current(&kit, &keys, acme).await.expect_err("nor is there a new one").kind(), ErrorKind::NotFound);
    assert!(read(&copy, &theirs).await.is_err(), "a copy of the archive is of no use");
    let theirs = keys.tenant_key(&kit.db, globex, theirs.id()).await.expect("another tenant's is as it was");
    assert_eq!(read(&control, &theirs).await.expect("read"), b"a note");
}
