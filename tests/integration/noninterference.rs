//! What a tenant is told does not depend on what others do: the same steps are taken alone and among others, and the two transcripts
//! must be the same, once ids are numbered by their order of appearance and times are left out.
//!
//! A seed decides every step. `TENANCY_NONINTERFERENCE_SEEDS` and `TENANCY_NONINTERFERENCE_STEPS` say how many there are;
//! `TENANCY_NONINTERFERENCE_FIRST` is the first seed, to run one again that failed.
//!
//! In seeds with an even number the tests' own tables are in a sealed database.
//!
//! Left out, because a shared database can't hide it (see docs/security.md): how long things take, EXPLAIN's estimates, the numbers of
//! transactions and the places of rows, the order of rows without ORDER BY, and SERIALIZABLE's false conflicts.

mod api;
mod others;
mod player;
mod sql;
mod transcript;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use harness::app::TestApp;
use harness::{Kit, MIGRATIONS};
use rand::SeedableRng;
use rand::rngs::StdRng;
use sqlx::{AssertSqlSafe, Executor};
use tenancy_core::{ErrorKind, Principal, Role, TenantCatalog, TenantContext};
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Isolation, Roles, Schema, SealKey, TenantDb};
use tokio::sync::Semaphore;
use uuid::Uuid;

use others::{Deeds, trouble};
use player::{Board, Player};
use transcript::{Difference, Transcript};

const KEY: SealKey = SealKey::new([7; 32]);
/// On a busy machine nobody is told that the database is.
const PATIENCE: Duration = Duration::from_secs(60);
const OTHERS: usize = 3;
/// Steps of the others for each of the subject's.
const PACE: usize = 2;

/// What is switched off in a world, alone as among others.
#[derive(Debug, Clone, Copy, Default)]
struct Sabotage {
    /// SQL of a superuser, on the server's database.
    server: &'static str,
    /// SQL of a superuser, on the database of the tests' own tables.
    kit: &'static str,
    /// Connections go back to the pool dirty.
    without_scrub: bool,
}

/// Fields are dropped in their order: who uses a database goes first.
struct World {
    kit: TenantDb,
    server: TenantDb,
    app: TestApp,
    database: TestDatabase,
    board: Arc<Board>,
}

impl World {
    async fn start(sealed: bool, sabotage: Sabotage) -> Self {
        let mut app = TestApp::with(|config| {
            config.max_attachment = 4_096;
            config.max_body = 4_096;
        })
        .await;
        let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("a test database");
        let mut options = database.options().with_max_connections(6).with_acquire_timeout(PATIENCE);
        let mut schema = Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect");
        // Servers before PostgreSQL 15 can't be sealed.
        if sealed && schema.seal(&KEY).await.is_ok() {
            options = options.with_seal_key(KEY);
        }
        if sabotage.without_scrub {
            options = options.danger_without_scrub();
        }
        let kit = TenantDb::open(options).await.expect("open");
        let server = TenantDb::open(app.database.options().with_max_connections(4).with_acquire_timeout(PATIENCE)).await.expect("open");
        for (sql, mut superuser) in [(sabotage.server, app.db_eye().await), (sabotage.kit, database.superuser().await.expect("superuser"))]
        {
            if !sql.is_empty() {
                app.will_not_balance("it was sabotaged");
                superuser.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("sabotage");
            }
        }
        Self { kit, server, app, database, board: Arc::default() }
    }

    /// A new tenant of both databases.
    async fn player(&self, me: usize, slug: &str, seed: u64) -> Player {
        let member = self.app.tenant(slug).await;
        let found = self.server.catalog().find(&slug.parse().expect("a slug")).await.expect("the catalog").expect("the tenant");
        let owner = Principal::Member { subject: "owner".parse().expect("a subject"), role: Role::Owner };
        Player {
            rng: StdRng::seed_from_u64(seed),
            member,
            operator: self.app.operator(),
            stranger: self.app.stranger(),
            server: self.server.clone(),
            server_cx: TenantContext::establish(found.into_active().expect("active"), owner),
            kit: self.kit.clone(),
            kit_cx: self.database.tenant(&self.kit, slug).await.expect("a tenant"),
            strangers: vec![],
            projects: vec![],
            documents: vec![],
            pages: vec![],
            me,
            board: Arc::clone(&self.board),
            fresh: 0,
        }
    }
}

/// What the subject was told, and what the others did meanwhile.
async fn run(seed: u64, steps: usize, others: usize, sabotage: Sabotage) -> (Transcript, Arc<Deeds>) {
    let world = World::start(seed.is_multiple_of(2), sabotage).await;
    let mut subject = world.player(0, "subject", seed).await;
    let mut crowd = Vec::new();
    for other in 1..=others {
        // The first of them takes the same steps as the subject: it sends the same keys, names and ids.
        let theirs = if other == 1 { seed } else { seed.wrapping_mul(1_000_003).wrapping_add(other as u64) };
        crowd.push(world.player(other, &format!("other-{other}"), theirs).await);
    }
    let mut ids: Vec<Uuid> = crowd.iter().map(|other| other.kit_cx.tenant_id().as_uuid()).collect();
    ids.resize_with(OTHERS, Uuid::new_v4);
    subject.strangers = ids;
    let (pace, deeds) = (Arc::new(Semaphore::new(20 * others)), Arc::<Deeds>::default());
    let mut tasks = tokio::task::JoinSet::new();
    for mut other in crowd {
        other.strangers = vec![subject.kit_cx.tenant_id().as_uuid()];
        tasks.spawn(trouble(other, Arc::clone(&pace), Arc::clone(&deeds)));
    }
    let mut transcript = Transcript::default();
    for _ in 0..steps {
        transcript.push(&subject.step().await);
        // Who can't keep up is not waited for, and does not run away either.
        if pace.available_permits() < 30 {
            pace.add_permits(PACE * others.min(1));
        }
    }
    transcript.push(&subject.everything().await);
    pace.close();
    while let Some(done) = tasks.join_next().await {
        done.expect("the others only do what they may");
    }
    subject.server.close().await;
    subject.kit.close().await;
    (transcript, deeds)
}

/// Where a seed's two transcripts differ.
struct Found {
    seed: u64,
    difference: Difference,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.difference)
    }
}

/// Runs a seed alone and among others, at the same time.
async fn compare(seed: u64, steps: usize, sabotage: Sabotage) -> (Option<Found>, Transcript, Arc<Deeds>) {
    let alone = tokio::spawn(run(seed, steps, 0, sabotage));
    let among_others = tokio::spawn(run(seed, steps, OTHERS, sabotage));
    let told = |done: Result<_, tokio::task::JoinError>| done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let ((alone, _), (among_others, deeds)) = (told(alone.await), told(among_others.await));
    let found = Difference::first(&alone, &among_others).map(|difference| Found { seed, difference });
    (found, alone, deeds)
}

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let Ok(value) = std::env::var(format!("TENANCY_NONINTERFERENCE_{name}")) else { return default };
    value.parse().unwrap_or_else(|_| panic!("TENANCY_NONINTERFERENCE_{name} must be a number"))
}

/// What a long enough run must have met, so that it is no walk in the park.
const MET: &[&str] = &[
    "HTTP/1.1 200",
    "HTTP/1.1 201",
    "HTTP/1.1 204",
    "HTTP/1.1 304",
    "HTTP/1.1 400",
    "HTTP/1.1 401",
    "HTTP/1.1 403",
    "HTTP/1.1 404",
    "HTTP/1.1 405",
    "HTTP/1.1 409",
    "HTTP/1.1 412",
    "HTTP/1.1 413",
    "HTTP/1.1 415",
    "idempotency-replayed: true",
    "tenant-inactive",
    "<cursor p <id",
    "23505 ",
    "23503 ",
    "23514 ",
    "23502 ",
    "22012 ",
    "42501 ",
    "25P02 ",
    "25006 ",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_alone_is_told_the_same_as_among_others() {
    let (first, seeds, steps) = (setting("FIRST", 1_u64), setting("SEEDS", 3_u64), setting("STEPS", 150_usize));
    let (started, mut met, total) = (Instant::now(), vec![false; MET.len()], Deeds::default());
    let runs = (first..first + seeds).map(|seed| compare(seed, steps, Sabotage::default()));
    let mut runs = futures_util::stream::iter(runs).buffer_unordered(2);
    while let Some((found, transcript, deeds)) = runs.next().await {
        assert!(found.is_none(), "{} (TENANCY_NONINTERFERENCE_STEPS={steps})", found.map(|found| found.to_string()).unwrap_or_default());
        println!("another seed after {:?}", started.elapsed());
        for (met, what) in met.iter_mut().zip(MET) {
            *met = *met || transcript.steps.iter().any(|step| step.contains(what));
        }
        for (sum, one) in [
            (&total.steps, &deeds.steps),
            (&total.cancelled, &deeds.cancelled),
            (&total.suspensions, &deeds.suspensions),
            (&total.killed, &deeds.killed),
            (&total.made, &deeds.made),
        ] {
            sum.fetch_add(one.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
    let subject = seeds * steps as u64;
    println!("{seeds} seeds of {steps} steps in {:?}; the others: {total:?}", started.elapsed());
    if subject >= 450 {
        let missed: Vec<_> = MET.iter().zip(&met).filter(|(_, met)| !**met).map(|(what, _)| what).collect();
        assert!(missed.is_empty(), "the subject never met {missed:?}");
        let all = [&total.cancelled, &total.suspensions, &total.killed, &total.made];
        assert!(total.steps.load(Ordering::Relaxed) >= subject, "the others did too little: {total:?}");
        assert!(all.iter().all(|deed| deed.load(Ordering::Relaxed) > 0), "the others were too good: {total:?}");
    }
}

/// Both databases are made unsafe in the same way, so that alone the subject notices nothing.
async fn control(sabotage: Sabotage, expected: &str) {
    for seed in 1..=5 {
        if let (Some(found), _, _) = compare(seed, 150, sabotage).await {
            let text = found.to_string();
            assert!(text.contains(expected), "another difference than expected: {text}");
            return;
        }
    }
    panic!("five seeds noticed nothing of {sabotage:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_without_row_level_security_on_one_table_it_differs() {
    control(Sabotage { kit: "alter table notes disable row level security", ..Sabotage::default() }, "notes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_a_unique_key_without_the_tenant_makes_it_differ() {
    control(Sabotage { kit: "create unique index everybodys_notes on notes (id)", ..Sabotage::default() }, "notes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_a_memory_of_keys_without_the_tenant_makes_it_differ() {
    let server = "alter table idempotency_keys disable row level security;
                  alter table idempotency_keys drop constraint idempotency_keys_pkey;
                  alter table idempotency_keys add constraint idempotency_keys_pkey primary key (actor, key)";
    control(Sabotage { server, ..Sabotage::default() }, "key").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_an_immutable_current_tenant_makes_it_differ() {
    control(Sabotage { kit: "alter function tenancy.current_tenant() immutable", ..Sabotage::default() }, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_dirty_connections_make_it_differ() {
    // What a dirty connection keeps locked is waited for by others: for a second, not for ever.
    let kit = "do $$ begin execute format('alter database %I set lock_timeout = %L', current_database(), '1s'); end $$";
    control(Sabotage { without_scrub: true, kit, ..Sabotage::default() }, "").await;
}

/// What no policy hides, so that nobody promises it: each line has its counterpart in docs/security.md.
#[tokio::test]
async fn what_is_not_closed_others_move_places_and_fail_serializable_transactions() {
    let place = "insert into notes (body) values ('mine') returning ctid::text";
    let mut places = Vec::new();
    for others_write in [false, true] {
        let kit = Kit::new().await;
        if others_write {
            kit.note(&kit.globex, "globex's").await;
        }
        let mut tx = kit.db.begin(&kit.acme).await.expect("begin");
        places.push(sqlx::query_scalar::<_, String>(place).fetch_one(&mut tx).await.expect("insert"));
        tx.commit().await.expect("commit");
    }
    assert_ne!(places[0], places[1], "if places are the tenant's own now, the documentation is too modest");

    let kit = Kit::new().await;
    let mut ours = kit.db.begin_with(&kit.acme, Isolation::Serializable).await.expect("begin");
    let mut theirs = kit.db.begin_with(&kit.globex, Isolation::Serializable).await.expect("begin");
    for tx in [&mut ours, &mut theirs] {
        sqlx::query("select count(*) from notes").execute(&mut *tx).await.expect("select");
    }
    for tx in [&mut ours, &mut theirs] {
        sqlx::query("insert into notes (body) values ('x')").execute(&mut *tx).await.expect("insert");
    }
    theirs.commit().await.expect("the first of them");
    let error = ours.commit().await.expect_err("if it is kept, the documentation is too modest");
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
}
