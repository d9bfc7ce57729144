//! The checker: every defect is found by its own rule, and a clean schema has no finding.

use harness::{MIGRATIONS, defects};
use sqlx::{AssertSqlSafe, Executor};
use tenancy_sqlx::Roles;
use tenancy_sqlx::isolation::{Finding, inspect};
use tenancy_sqlx::testing::TestDatabase;

async fn findings(database: &TestDatabase) -> Vec<Finding> {
    let roles = Roles::default();
    inspect(&mut database.superuser().await.expect("superuser"), &roles, &roles.app()).await.expect("inspect")
}

#[tokio::test]
async fn a_clean_schema_has_no_finding() {
    let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
    assert_eq!(findings(&database).await, []);
}

#[tokio::test]
async fn every_defect_is_found_by_its_rule() {
    let mut missed = Vec::new();
    for defect in defects::all() {
        let database = TestDatabase::with_migrations(&MIGRATIONS).await.expect("database");
        let mut eye = database.superuser().await.expect("superuser");
        eye.execute(AssertSqlSafe(defect.sql)).await.expect(defect.sql);
        let found = findings(&database).await;
        eye.execute(AssertSqlSafe(defect.undo)).await.expect(defect.undo);
        if !found.iter().any(|finding| finding.rule == defect.rule) {
            missed.push((defect.rule, defect.sql, found.iter().map(|finding| finding.rule).collect::<Vec<_>>()));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
