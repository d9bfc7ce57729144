//! Not a byte of another tenant's in a backup, in any form that it is kept in.

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use serde_json::Value;
use tenancy_core::{TenantContext, TenantId};
use tenancy_sqlx::backup::archive::{ArchiveReader, Blobs, Expect};
use uuid::Uuid;

use crate::backup::{World, archive_of, hard_world, keys, run};

/// Puts the words everywhere that a tenant can have any.
async fn mark(world: &World, cx: &TenantContext, word: &str) {
    let statements = [
        format!("insert into notes (body) values ('note {word}')"),
        format!("insert into comments (note_id, body) select id, 'comment {word}' from notes limit 1"),
        format!(
            "insert into things (name, nick, doc, raw) values ('thing {word}', 'n {}', '{{\"doc {word}\": 1}}', '[\"raw {word}\"]')",
            &word[..8]
        ),
        format!("insert into bare (word) values ('bare {word}')"),
        format!("insert into \"Odd Name\" values (default, 'odd {word}')"),
        format!("insert into fired (what) values ('fired {word}')"),
    ];
    run(&world.kit, cx, &statements.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.put(cx, &format!("path-{word}/file"), format!("content {word}")).await;
    let mut eye = world.kit.superuser().await;
    for sql in [
        "insert into tenancy.tenant_configs (tenant_id, key, value, version) values ($1, 'site.greeting', to_jsonb('setting ' || $2), 1)",
        "update tenancy.tenants set name = 'name ' || $2, branding = jsonb_build_object('x', 'branding ' || $2), flags = jsonb_build_object('flag ' || $2, true), version = version + 1 where id = $1",
    ] {
        sqlx::query(sql).bind(cx.tenant_id().as_uuid()).bind(word).execute(&mut eye).await.expect(sql);
    }
}

/// All that is kept of a backup, as it lies there and as it is read: each with where it was found.
async fn pieces(world: &World, tenant: TenantId, backup: Uuid) -> Vec<(String, Vec<u8>)> {
    let mut pieces = Vec::new();
    let files: Vec<_> = world.store.list(Some(&Path::from("backups"))).map_ok(|meta| meta.location).try_collect().await.expect("listed");
    for at in files {
        pieces.push((format!("file {at}"), world.store.get(&at).await.expect("there").bytes().await.expect("read").to_vec()));
    }
    let mut tx = world.kit.db.dangerous().begin_system("a test reads a backup").await.expect("system");
    let key = keys().current_key(&mut tx, tenant).await.expect("a key");
    let of = tx.backup(tenant, backup).await.expect("the backup");
    tx.commit().await.expect("commit");
    let expect = Expect { tenant, backup, bytes: of.bytes.cast_unsigned(), hash: of.hash };
    let archive = ArchiveReader::open(world.store.clone(), archive_of(world, backup).await, expect, &key).await.expect("opened");
    pieces.push(("details".to_owned(), archive.details().to_string().into_bytes()));
    let blobs = Blobs::new(world.store.clone(), Path::from("backups")).without_encryption();
    for segment in archive.segments() {
        let bytes = archive.segment(&segment.name).expect("there").try_collect::<Vec<_>>().await.expect("read").concat();
        if segment.name == "objects" {
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let listed: Value = serde_json::from_slice(line).expect("a line");
                let blob = serde_json::from_value(listed["blob"].clone()).expect("a content");
                let content = blobs
                    .get(tenant, &key, &blob)
                    .await
                    .expect("there")
                    .map(|piece| piece.expect("read"))
                    .collect::<Vec<_>>()
                    .await
                    .concat();
                pieces.push((format!("content of {}", listed["path"]), content));
            }
        }
        pieces.push((format!("segment {}", segment.name), bytes));
    }
    pieces
}

fn places<'p>(pieces: &'p [(String, Vec<u8>)], needle: &[u8]) -> Vec<&'p str> {
    pieces.iter().filter(|(_, bytes)| bytes.windows(needle.len()).any(|window| window == needle)).map(|(at, _)| at.as_str()).collect()
}

#[tokio::test]
async fn a_backup_has_no_byte_of_another_tenant() {
    let mut world = hard_world().await;
    world.backups = world.backups.clone().without_encryption();
    let (acme, globex) = (world.kit.acme.clone(), world.kit.globex.clone());
    mark(&world, &acme, "OURSCANARYx1").await;
    mark(&world, &globex, "THEIRCANARY2").await;
    let backup = world.back_up(&acme).await;
    let pieces = pieces(&world, acme.tenant_id(), backup).await;
    for needle in [
        b"THEIRCANARY2".as_slice(),
        b"THEIRCAN",
        globex.tenant_id().to_string().as_bytes(),
        globex.tenant_id().as_uuid().as_bytes(),
        b"globex",
    ] {
        assert_eq!(places(&pieces, needle), [""; 0], "{}", String::from_utf8_lossy(needle));
    }
    // The control: this way what is there is found, in each place.
    let ours = places(&pieces, b"OURSCANARYx1");
    for place in [
        "details",
        "segment objects",
        "public.notes",
        "public.comments",
        "public.things",
        "public.bare",
        "Odd Name",
        "public.fired",
        "content of",
    ] {
        assert!(ours.iter().any(|at| at.contains(place)), "{place}: {ours:?}");
    }
    let details = String::from_utf8(pieces.iter().find(|(at, _)| at == "details").expect("details").1.clone()).expect("JSON");
    for word in ["setting OURS", "name OURS", "branding OURS", "flag OURS"] {
        assert!(details.contains(word), "{word}");
    }
    // And the other tenant's backup has it.
    let theirs = world.back_up(&globex).await;
    assert!(places(&self::pieces(&world, globex.tenant_id(), theirs).await, b"THEIRCANARY2").len() > 8, "the control");
}
