//! The checker: every defect is found by its own rule, and a clean schema has no finding.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use harness::MIGRATIONS;
use harness::defects::{self, Defect, PROVEN_OTHERWISE};
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Executor};
use tenancy_sqlx::isolation::{Finding, RULES, Rule, inspect};
use tenancy_sqlx::testing::TestDatabase;
use tenancy_sqlx::{Roles, Schema, SealKey};

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

/// The kit's own additions don't trip its own checker.
#[tokio::test]
async fn a_sealed_and_guarded_schema_has_no_finding() {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let mut schema = Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect");
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&mut database.superuser().await.expect("superuser"))
        .await
        .expect("version");
    if version >= 150_000 {
        schema.seal(&SealKey::new([7; 32])).await.expect("seal");
    }
    schema.install_guard().await.expect("guard");
    assert_eq!(findings(&database, "tenancy_app").await, []);
}

#[tokio::test]
async fn a_schema_with_shareable_tables_has_no_finding() {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let mut schema = Schema::connect(&database.admin_url(), Roles::default()).await.expect("connect");
    schema.install_guard().await.expect("guard");
    let mut eye = database.superuser().await.expect("superuser");
    let shareable = "set role tenancy_owner; call tenancy.share_table('notes', 'note', updatable => '{body}'); call tenancy.share_table('comments', parent => 'notes')";
    eye.execute(shareable).await.expect("shareable");
    assert_eq!(findings(&database, "tenancy_app").await, []);
}

/// What is found where `defect` was made.
async fn found(defect: &Defect) -> Vec<Finding> {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    let mut eye = database.superuser().await.expect("superuser");
    let tenant = "018f3b1c-0000-7000-8000-000000000001";
    let insert = "insert into tenancy.tenants values ($1, 'acme', 'Acme', 'active', '{}', '{}', 'standard', now(), now(), 1)";
    sqlx::query(insert).bind(tenant.parse::<uuid::Uuid>().expect("an id")).execute(&mut eye).await.expect("a tenant");
    let made = defect.make(&mut eye).await;
    let found = findings(&database, &made.app).await;
    mends(&database, &made.app, defect, &found).await;
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&mut eye).await.expect("name");
    let found = found.into_iter().map(|finding| made.anonymous(finding, &[(&database, "app")])).collect();
    made.undo(&mut eye).await;
    found
}

/// The SQL that mends a finding does; where a reader must fill in something, it has a "…".
async fn mends(database: &TestDatabase, app: &str, defect: &Defect, found: &[Finding]) {
    let Some(finding) = found.iter().find(|finding| finding.rule == defect.rule && !finding.mend.contains('…')) else { return };
    let mut eye = database.superuser().await.expect("superuser");
    if let Err(error) = eye.execute(AssertSqlSafe(finding.mend.as_str())).await {
        panic!("{}: {error}", finding.mend);
    }
    let left = findings(database, app).await;
    let mended = !left.iter().any(|left| left.rule == finding.rule && left.object == finding.object);
    assert!(mended, "{} does not mend {}", finding.mend, defect.rule);
}

/// Also writes the pages, with `TENANCY_WRITE_PAGES=1`: each shows a finding that was really made.
#[tokio::test]
async fn every_defect_is_found_by_its_rule_and_told_by_its_page() {
    let write = std::env::var_os("TENANCY_WRITE_PAGES").is_some();
    let mut told = BTreeSet::new();
    let (mut missed, mut stale) = (Vec::new(), Vec::new());
    let mut found = futures_util::stream::iter(defects::all()).map(|defect| async move { (defect, found(defect).await) }).buffered(4);
    while let Some((defect, found)) = found.next().await {
        let Some(finding) = found.iter().find(|finding| finding.rule == defect.rule) else {
            missed.push((defect, found.iter().map(|finding| finding.rule).collect::<Vec<_>>()));
            continue;
        };
        if told.insert(defect.rule) {
            let (path, page) = (page_path(defect.rule), page(defect, finding));
            if write {
                std::fs::write(&path, &page).expect("write the page");
            } else if std::fs::read_to_string(&path).unwrap_or_default() != page {
                stale.push(defect.rule);
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
    assert!(stale.is_empty(), "TENANCY_WRITE_PAGES=1 cargo test -p tenancy-tests checker: {stale:?}");
}

fn page_path(rule: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/isolation/{rule}.md"))
}

fn page(defect: &Defect, finding: &Finding) -> String {
    let rule = rules().find(|rule| rule.id == defect.rule).expect("the rule");
    let lines = defect.sql.replace("{app}", "tenancy_app").replace("{other}", "other_login");
    let sql = lines.split(';').map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|line| !line.is_empty());
    let sql = sql.collect::<Vec<_>>().join(";\n");
    let sql = if defect.sql.contains("$$") { lines.split('\n').map(str::trim).collect::<Vec<_>>().join("\n") } else { sql };
    format!(
        "# {}\n\n**{}**: {}.\n\n## What leaks\n\n{}.\n\nThis was found after\n\n```sql\n{sql};\n```\n\n## How to see it\n\n```sql\n{}\n```\n\n## How to mend it\n\n```sql\n{}\n```\n",
        rule.id,
        rule.severity,
        rule.summary,
        capitalised(&finding.explanation),
        finding.demonstrate,
        finding.mend
    )
}

fn capitalised(text: &str) -> String {
    if text.split(' ').next().is_some_and(|word| word.contains(['_', '.', '('])) {
        return text.to_owned(); // a name
    }
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The role that the defects of roles are made on has no finding before: it stands in for the application's.
#[tokio::test]
async fn control_the_stand_in_is_clean() {
    assert_eq!(found(&Defect { rule: "", sql: "select '{app}'", shown: false }).await, []);
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
    eye.execute("drop schema tenancy, tenancy_views cascade").await.expect("drop");
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
    let path = docs.join("README.md");
    let text = std::fs::read_to_string(&path).expect("the index");
    let (before, after) = text.split_once(INDEX).expect("the index has its place");
    if std::env::var_os("TENANCY_WRITE_PAGES").is_some() {
        std::fs::write(&path, format!("{before}{INDEX}{}", index())).expect("write the index");
    } else {
        assert_eq!(after, index(), "TENANCY_WRITE_PAGES=1 cargo test -p tenancy-tests checker");
    }
    for rule in rules() {
        let page = std::fs::read_to_string(docs.join(format!("{}.md", rule.id))).unwrap_or_default();
        for part in [&format!("# {}", rule.id), "## What leaks", "## How to see it", "## How to mend it"] {
            assert!(page.contains(part), "docs/isolation/{}.md: no {part}", rule.id);
        }
        assert!(page.contains(rule.severity.as_str()), "docs/isolation/{}.md: severity", rule.id);
    }
    let pages = std::fs::read_dir(docs).expect("docs").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let known = |page: &String| {
        ids.contains(page.trim_end_matches(".md"))
            || ["README.md", "probe.md", "allow-expired.md", "allow-unused.md"].contains(&page.as_str())
    };
    assert_eq!(pages.filter(|page| !known(page)).collect::<Vec<_>>(), Vec::<String>::new(), "pages of no rule");
}

const INDEX: &str = "<!-- rules -->\n";

fn index() -> String {
    let mut text = "\n| severity | rule | what is wrong |\n|---|---|---|\n".to_owned();
    for rule in rules() {
        text += &format!("| {} | [{1}]({1}.md) | {2} |\n", rule.severity, rule.id, rule.summary);
    }
    text
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
