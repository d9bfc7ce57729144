//! The checker: every defect is found by its own rule, and a clean schema has no finding.

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::StreamExt as _;
use harness::MIGRATIONS;
use harness::defects::{self, Defect, PROVEN_OTHERWISE};
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Executor};
use tenancy_sqlx::Roles;
use tenancy_sqlx::isolation::{Finding, RULES, Rule, inspect};
use tenancy_sqlx::testing::TestDatabase;

async fn findings(database: &TestDatabase, app: &str) -> Vec<Finding> {
    let mut eye = database.superuser().await.expect("superuser");
    let found = inspect(&mut eye, &Roles::default(), app).await.expect("inspect");
    // An old server has its own finding, whatever the schema.
    found.into_iter().filter(|finding| finding.rule != "server-version").collect()
}

fn rules() -> impl Iterator<Item = &'static Rule> {
    RULES.iter().flat_map(|theme| theme.iter())
}

async fn nothing_is_found(migrations: &Migrator) {
    let database = TestDatabase::with_migrations(migrations).await.expect("database");
    assert_eq!(findings(&database, "tenancy_app").await, []);
}

#[tokio::test]
async fn a_clean_schema_has_no_finding() {
    nothing_is_found(&MIGRATIONS).await;
}

#[tokio::test]
async fn the_servers_schema_has_no_finding() {
    nothing_is_found(&tenancy_server::MIGRATIONS).await;
}

/// The rules that found it.
async fn found(defect: &'static Defect) -> BTreeSet<&'static str> {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let db = database.open().await.expect("open");
    database.tenant(&db, "acme").await.expect("a tenant");
    let mut eye = database.superuser().await.expect("superuser");
    let made = defect.make(&mut eye).await;
    let found = findings(&database, &made.app).await;
    db.close().await;
    made.undo(&mut eye).await;
    found.into_iter().map(|finding| finding.rule).collect()
}

#[tokio::test]
async fn every_defect_is_found_by_its_rule() {
    let missed: Vec<_> = futures_util::stream::iter(defects::all())
        .map(|defect| async move { (defect, found(defect).await) })
        .buffer_unordered(4)
        .filter(|(defect, found)| std::future::ready(!found.contains(defect.rule)))
        .map(|(defect, found)| format!("{}: {} (found: {found:?})", defect.rule, defect.sql))
        .collect()
        .await;
    assert!(missed.is_empty(), "{missed:#?}");
}

/// The role that the defects of roles are made on has no finding before: it stands in for the application's.
#[tokio::test]
async fn control_the_stand_in_is_clean() {
    assert_eq!(found(&Defect { rule: "", sql: "select '{app}'", shown: false }).await, BTreeSet::new());
}

#[tokio::test]
async fn a_role_that_is_missing_is_found() {
    let database = TestDatabase::new().await.expect("database");
    let found = findings(&database, "nobody_here").await;
    assert_eq!(found.iter().map(|finding| finding.rule).collect::<Vec<_>>(), ["app-missing"]);
}

#[tokio::test]
async fn a_database_without_the_kit_is_refused_with_a_reason() {
    let database = TestDatabase::new().await.expect("database");
    let mut eye = database.superuser().await.expect("superuser");
    eye.execute("drop schema tenancy cascade").await.expect("drop");
    let error = inspect(&mut eye, &Roles::default(), "tenancy_app").await.expect_err("no schema");
    assert_eq!(error.kind(), tenancy_core::ErrorKind::Misconfigured);
    assert!(error.to_string().contains("migrate"), "{error}");
}

#[test]
fn every_rule_has_a_defect_a_page_and_a_line_in_the_index() {
    let proven: BTreeSet<&str> = defects::all().map(|defect| defect.rule).chain(PROVEN_OTHERWISE.iter().copied()).collect();
    let ids: BTreeSet<&str> = rules().map(|rule| rule.id).collect();
    assert_eq!(ids.len(), rules().count(), "two rules have one id");
    assert_eq!(
        proven.symmetric_difference(&ids).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "rules without a defect, or the other way round"
    );
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/isolation");
    let index = std::fs::read_to_string(docs.join("README.md")).expect("the index");
    for rule in rules() {
        let page = std::fs::read_to_string(docs.join(format!("{}.md", rule.id))).unwrap_or_default();
        for part in [&format!("# {}", rule.id), "## What leaks", "## How to see it", "## How to mend it"] {
            assert!(page.contains(part), "docs/isolation/{}.md: no {part}", rule.id);
        }
        assert!(page.contains(rule.severity.as_str()), "docs/isolation/{}.md: severity", rule.id);
        assert!(index.contains(&format!("[{0}]({0}.md)", rule.id)), "no line for {}", rule.id);
    }
    let pages = std::fs::read_dir(docs).expect("docs").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let known = |page: &String| {
        ids.contains(page.trim_end_matches(".md"))
            || ["README.md", "probe.md", "allow-expired.md", "allow-unused.md"].contains(&page.as_str())
    };
    assert_eq!(pages.filter(|page| !known(page)).collect::<Vec<_>>(), Vec::<String>::new(), "pages of no rule");
}

/// What each rule tells: an explanation, the SQL that mends it, the SQL that shows it, about the object that has it.
#[tokio::test]
async fn a_finding_says_what_to_do() {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    database.superuser().await.expect("superuser").execute("alter table notes disable row level security").await.expect("defect");
    let found = findings(&database, "tenancy_app").await;
    let off = found.iter().find(|finding| finding.rule == "rls-off").expect("rls-off");
    assert_eq!((off.schema.as_deref(), off.object.as_str()), (Some("public"), "notes"));
    // Its own mend mends it.
    let mut eye = database.superuser().await.expect("superuser");
    eye.execute(AssertSqlSafe(off.mend.as_str())).await.expect("mend");
    assert_eq!(findings(&database, "tenancy_app").await, []);
}
