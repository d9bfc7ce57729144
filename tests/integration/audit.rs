//! The audit log's seals: every event once, whatever runs beside the sealer, and every kind of tampering found by a superuser's own hand.

use std::time::Duration;

use harness::Kit;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tenancy_core::{Actor, AuditEvent, ErrorKind, TenantContext};
use tenancy_sqlx::audit::{Finding, FindingKind, Head, Sealer, Verified};

fn event(target: impl Into<String>) -> AuditEvent {
    AuditEvent::new(Actor::Member("ada".parse().expect("a subject")), "note.write", target).with_detail(json!({ "size": 1 }))
}

async fn write(kit: &Kit, cx: &TenantContext, targets: impl IntoIterator<Item = String>) {
    for target in targets {
        let mut tx = kit.db.begin(cx).await.expect("begin");
        tx.audit(event(target)).await.expect("audit");
        tx.commit().await.expect("commit");
    }
}

/// Six events of each tenant, sealed: and the heads.
async fn sealed() -> (Kit, Vec<Head>) {
    let kit = Kit::new().await;
    for cx in [&kit.acme, &kit.globex] {
        write(&kit, cx, (1..=6).map(|n| n.to_string())).await;
    }
    let sealer = Sealer::new(&kit.db);
    seal_all(&kit, &sealer).await;
    let heads = sealer.heads().await.expect("heads");
    (kit, heads)
}

/// Seals until nothing is left: other databases' transactions, on the same server, may hold the bound back.
async fn seal_all(kit: &Kit, sealer: &Sealer) -> u64 {
    let (mut eye, mut done) = (kit.superuser().await, 0);
    for _ in 0..600 {
        done += sealer.seal().await.expect("seal").events;
        let left: i64 = scalar(
            &mut eye,
            "select count(*) from tenancy.audit_events e where not exists (select from tenancy.audit_seals s where s.event_id = e.id)",
        )
        .await;
        if left == 0 {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("events stay unsealed")
}

async fn scalar<T>(eye: &mut PgConnection, sql: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(eye).await.expect(sql)
}

async fn run(eye: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(eye).await.expect(sql);
}

async fn verify(kit: &Kit, anchors: &[Head]) -> Verified {
    let mut tx = kit.db.dangerous().begin_system("a test verifies the log").await.expect("system");
    tx.verify_audit(None, anchors).await.expect("verify")
}

/// The findings after `sql`, which a superuser runs and then undoes.
async fn after(kit: &Kit, anchors: &[Head], sql: &str) -> Vec<Finding> {
    let mut eye = kit.superuser().await;
    run(
        &mut eye,
        "create table public.kept_events as table tenancy.audit_events; create table public.kept_seals as table tenancy.audit_seals",
    )
    .await;
    run(&mut eye, sql).await;
    let findings = verify(kit, anchors).await.findings;
    run(
        &mut eye,
        "truncate tenancy.audit_events; insert into tenancy.audit_events select * from public.kept_events;
         truncate tenancy.audit_seals; insert into tenancy.audit_seals select * from public.kept_seals;
         drop table public.kept_events, public.kept_seals",
    )
    .await;
    findings
}

#[tokio::test]
async fn a_whole_log_holds_and_a_tenants_chain_stands_alone() {
    let (kit, heads) = sealed().await;
    let seen = verify(&kit, &heads).await;
    assert_eq!(seen.findings, []);
    assert_eq!(heads.len(), 3, "two tenants and the platform");
    assert_eq!(seen.heads, heads);
    let of = |cx: &TenantContext| heads.iter().find(|head| head.tenant_id == Some(cx.tenant_id().as_uuid())).expect("a head").n;
    assert_eq!((of(&kit.acme), of(&kit.globex)), (7, 7), "its creation, and six");
    assert!(
        Sealer::new(&kit.db).seal().await.expect("seal").heads.iter().all(|head| head.tenant_id.is_none()),
        "the tenants' have not moved"
    );

    let mut tx = kit.db.dangerous().begin_system("a test verifies one chain").await.expect("system");
    let seen = tx.verify_audit(Some(kit.acme.tenant_id()), &heads).await.expect("verify");
    assert_eq!((seen.events, seen.findings.len(), seen.heads.len()), (7, 0, 1));
}

#[tokio::test]
async fn each_edited_column_is_found_where_it_was_edited() {
    let (kit, heads) = sealed().await;
    let acme = kit.acme.tenant_id();
    let mut eye = kit.superuser().await;
    let fourth: uuid::Uuid =
        scalar(&mut eye, &format!("select event_id from tenancy.audit_seals where tenant_id = '{acme}' and n = 4")).await;
    let columns: Vec<String> = sqlx::query_scalar(
        "select attname::text from pg_attribute where attrelid = 'tenancy.audit_events'::regclass and attnum > 0 and not attisdropped",
    )
    .fetch_all(&mut eye)
    .await
    .expect("columns");
    assert_eq!(columns.len(), 13);
    for column in &columns {
        let value = match column.as_str() {
            "id" | "request_id" => "gen_random_uuid()".to_owned(),
            "tenant_id" => format!("'{}'", kit.globex.tenant_id()),
            "at" => "at - interval '1 us'".to_owned(),
            "xid" => "'3'".to_owned(),
            "detail" => "'{\"size\": 2}'".to_owned(),
            "salt" => "uuid_send(gen_random_uuid())".to_owned(),
            "outcome" => "'denied'".to_owned(),
            "action" => "'note.read'".to_owned(),
            _ => "'another'".to_owned(),
        };
        let findings = after(&kit, &heads, &format!("update tenancy.audit_events set {column} = {value} where id = '{fourth}'")).await;
        let first = findings.first().unwrap_or_else(|| panic!("{column} was edited and nothing found"));
        let kind = if column == "id" { FindingKind::Deleted } else { FindingKind::Edited };
        assert_eq!((first.kind, first.n, first.event_id), (kind, Some(4), Some(fourth)), "{column}");
    }
    for column in ["detail", "actor_id"] {
        let findings = after(&kit, &heads, &format!("update tenancy.audit_events set {column} = null where id = '{fourth}'")).await;
        assert_eq!(findings.first().map(|f| (f.kind, f.n)), Some((FindingKind::Edited, Some(4))), "{column} taken away");
    }
    // The control: what was undone is whole again.
    assert_eq!(verify(&kit, &heads).await.findings, []);
}

#[tokio::test]
async fn each_way_of_tampering_is_found_and_named() {
    let (kit, heads) = sealed().await;
    let acme = kit.acme.tenant_id();
    let mine = |n: i64| format!("(select event_id from tenancy.audit_seals where tenant_id = '{acme}' and n = {n})");
    let seal = |n: i64| format!("tenancy.audit_seals where tenant_id = '{acme}' and n = {n}");
    let swap = |column: &str| {
        format!(
            "create temporary table two as select n, {column} from tenancy.audit_seals where tenant_id = '{acme}' and n in (3, 4);
             alter table tenancy.audit_seals drop constraint audit_seals_event_id_key;
             update tenancy.audit_seals s set {column} = two.{column} from two where s.tenant_id = '{acme}' and s.n = 7 - two.n;
             alter table tenancy.audit_seals add constraint audit_seals_event_id_key unique (event_id)"
        )
    };
    for (what, sql, kind, n) in [
        ("an event", format!("delete from tenancy.audit_events where id = {}", mine(3)), FindingKind::Deleted, Some(3)),
        (
            "an event with its seal",
            format!("delete from tenancy.audit_events where id = {}; delete from {}", mine(3), seal(3)),
            FindingKind::Deleted,
            Some(3),
        ),
        (
            "an event with its seal, and the rest moved up",
            format!(
                "delete from tenancy.audit_events where id = {}; delete from {};
                 update tenancy.audit_seals set n = n + 100 where tenant_id = '{acme}' and n > 3;
                 update tenancy.audit_seals set n = n - 101 where tenant_id = '{acme}' and n > 100",
                mine(3),
                seal(3)
            ),
            FindingKind::Deleted,
            Some(3),
        ),
        ("two events changed places", swap("event_id"), FindingKind::Reordered, Some(3)),
        (
            "two seals changed places",
            format!(
                "update tenancy.audit_seals set n = 100 where tenant_id = '{acme}' and n = 3;
                 update tenancy.audit_seals set n = 3 where tenant_id = '{acme}' and n = 4;
                 update tenancy.audit_seals set n = 4 where tenant_id = '{acme}' and n = 100"
            ),
            FindingKind::Reordered,
            Some(3),
        ),
        (
            "a hash",
            format!("update tenancy.audit_seals set hash = sha256('x') where tenant_id = '{acme}' and n = 3"),
            FindingKind::Edited,
            Some(3),
        ),
        (
            "a prev",
            format!("update tenancy.audit_seals set prev = sha256('x') where tenant_id = '{acme}' and n = 3"),
            FindingKind::Edited,
            Some(3),
        ),
        (
            "an event dated back",
            format!(
                "insert into tenancy.audit_events (tenant_id, at, xid, actor_kind, action, target, outcome, detail)
                 select tenant_id, at, xid, 'system', 'note.write', 'x', 'done', '{{}}' from tenancy.audit_events where id = {}",
                mine(3)
            ),
            FindingKind::Inserted,
            None,
        ),
        (
            "the last event with its seal",
            format!("delete from tenancy.audit_events where id = {}; delete from {}", mine(7), seal(7)),
            FindingKind::Truncated,
            Some(7),
        ),
    ] {
        let findings = after(&kit, &heads, &sql).await;
        let first = findings.first().unwrap_or_else(|| panic!("{what}: nothing found"));
        assert_eq!((first.kind, first.n, first.tenant_id), (kind, n, Some(acme.as_uuid())), "{what}: {findings:?}");
    }
    assert_eq!(verify(&kit, &heads).await.findings, []);
}

#[tokio::test]
async fn control_without_an_anchor_a_log_cut_off_or_sealed_anew_looks_whole() {
    let (kit, heads) = sealed().await;
    let acme = kit.acme.tenant_id();
    let cut = format!(
        "delete from tenancy.audit_events where id = (select event_id from tenancy.audit_seals where tenant_id = '{acme}' and n = 7);
         delete from tenancy.audit_seals where tenant_id = '{acme}' and n = 7"
    );
    assert_eq!(after(&kit, &[], &cut).await, [], "nothing in the database tells it");

    let mut eye = kit.superuser().await;
    run(
        &mut eye,
        &format!(
            "update tenancy.audit_events set target = 'another' where tenant_id = '{acme}' and target = '3'; truncate tenancy.audit_seals;
             update tenancy.audit_sealed set xid = '0', at = '-infinity'"
        ),
    )
    .await;
    seal_all(&kit, &Sealer::new(&kit.db)).await;
    assert_eq!(verify(&kit, &[]).await.findings, []);
    let found = verify(&kit, &heads).await.findings;
    let anchored = heads.iter().find(|head| head.tenant_id == Some(acme.as_uuid())).expect("a head").n;
    assert!(
        found.iter().any(|f| (f.kind, f.tenant_id, f.n) == (FindingKind::Rewritten, Some(acme.as_uuid()), Some(anchored))),
        "{found:?}"
    );
}

#[tokio::test]
async fn every_event_is_sealed_once_beside_writers_and_a_long_transaction() {
    const WRITERS: usize = 8;
    const EACH: usize = 40;
    let kit = Kit::new().await;
    // It writes first and commits last.
    let mut long = kit.db.begin(&kit.acme).await.expect("begin");
    long.audit(event("long")).await.expect("audit");

    let writers = (0..WRITERS).map(|writer| {
        let (db, cx) = (kit.db.clone(), if writer % 2 == 0 { kit.acme.clone() } else { kit.globex.clone() });
        tokio::spawn(async move {
            for n in 0..EACH {
                let mut tx = db.begin(&cx).await.expect("begin");
                tx.audit(event(format!("{writer}:{n}"))).await.expect("audit");
                if n % 5 == 4 { tx.rollback().await } else { tx.commit().await }.expect("end");
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let sealers: Vec<_> = (0..2)
        .map(|_| {
            let sealer = Sealer::new(&kit.db);
            tokio::spawn(async move {
                for n in 0..60 {
                    // Some are cut off on the way.
                    let within = Duration::from_millis(if n % 3 == 0 { 1 } else { 60_000 });
                    if let Ok(sealed) = tokio::time::timeout(within, sealer.seal()).await {
                        sealed.expect("seal");
                    }
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(sealers) {
        task.await.expect("no panic");
    }
    let mut eye = kit.superuser().await;
    let long_sealed =
        "select count(*) from tenancy.audit_seals s join tenancy.audit_events e on e.id = s.event_id where e.target like '%:%'";
    assert_eq!(scalar::<i64>(&mut eye, long_sealed).await, 0, "nothing is sealed before what began earlier has ended");
    long.commit().await.expect("commit");
    seal_all(&kit, &Sealer::new(&kit.db)).await;

    let counts = sqlx::query(
        "select (select count(*) from tenancy.audit_events), (select count(*) from tenancy.audit_seals), (select count(distinct event_id) from tenancy.audit_seals),
                (select count(*) from tenancy.audit_events where target like '%:%'),
                (select count(*) from (select max(n) <> count(*) as gap from tenancy.audit_seals group by tenant_id) g where gap)",
    )
    .fetch_one(&mut eye)
    .await
    .expect("counts");
    let [events, seals, distinct, written, gaps] = [0, 1, 2, 3, 4].map(|at| counts.get::<i64, _>(at));
    assert_eq!((seals, distinct, gaps), (events, events, 0));
    assert_eq!(written, (WRITERS * EACH * 4 / 5) as i64);
    assert_eq!(verify(&kit, &[]).await.findings, []);
}

#[tokio::test]
async fn no_role_of_the_kit_can_change_what_was_written_or_sealed() {
    let (kit, _) = sealed().await;
    let forge = "insert into tenancy.audit_seals (tenant_id, n, event_id, prev, hash) select tenant_id, 100, gen_random_uuid(), sha256('x'), sha256('y') from tenancy.audit_events limit 1";
    let both = [
        "update tenancy.audit_events set target = 'x'",
        "update tenancy.audit_events set salt = 'x'",
        "delete from tenancy.audit_events",
        "insert into tenancy.audit_events (tenant_id, at, actor_kind, action, target, outcome) values (null, now(), 'system', 'a.b', 'x', 'done')",
        "insert into tenancy.audit_events (tenant_id, salt, actor_kind, action, target, outcome) values (null, 'x', 'system', 'a.b', 'x', 'done')",
        "update tenancy.audit_seals set hash = prev",
        "delete from tenancy.audit_seals",
        "truncate tenancy.audit_seals",
    ];
    for attempt in both.into_iter().chain([
        forge,
        "select * from tenancy.audit_seals",
        "select * from tenancy.audit_sealed",
        "update tenancy.audit_sealed set xid = '0'",
    ]) {
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        let refused = sqlx::query(AssertSqlSafe(attempt)).execute(&mut tx).await.map_err(tenancy_sqlx::from_sqlx);
        assert_eq!(refused.expect_err(attempt).kind(), ErrorKind::Forbidden, "{attempt}");
    }
    for attempt in both {
        let mut tx = kit.db.dangerous().begin_system("a test tries to rewrite the log").await.expect("system");
        let refused = sqlx::query(AssertSqlSafe(attempt)).execute(&mut tx).await.map_err(tenancy_sqlx::from_sqlx);
        assert_eq!(refused.expect_err(attempt).kind(), ErrorKind::Forbidden, "{attempt}");
    }
    // The control: the statement that forges a seal is sound where it is allowed, and verifying finds it.
    let mut tx = kit.db.dangerous().begin_system("a test forges a seal").await.expect("system");
    sqlx::query(forge).execute(&mut tx).await.expect("the administrator's role appends");
    tx.commit().await.expect("commit");
    assert_eq!(verify(&kit, &[]).await.findings.first().map(|f| f.kind), Some(FindingKind::Deleted));
}
