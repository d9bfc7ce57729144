//! What crossed, told as a finding of the rule that should have seen it coming.

use std::collections::BTreeSet;

use crate::isolation::{Finding, Severity};

/// A way to try, and the rules that are about it: the first one is named where the inspection found nothing.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) rules: &'static [&'static str],
}

/// One thing that crossed from one tenant to another.
#[derive(Debug)]
pub(super) struct Crossing {
    pub(super) kind: &'static Kind,
    pub(super) schema: Option<String>,
    pub(super) object: String,
    /// What was run.
    pub(super) sql: String,
    /// What came of it.
    pub(super) evidence: String,
}

/// One finding for each rule, object and kind of attempt.
pub(super) fn findings(crossings: Vec<Crossing>, inspected: &[Finding], app: &str) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<_> = crossings
        .into_iter()
        .filter_map(|crossing| {
            let finding = finding(&crossing, inspected, app);
            seen.insert((finding.rule, finding.schema.clone(), finding.object.clone(), crossing.kind.name)).then_some(finding)
        })
        .collect();
    found.sort_by(|a, b| (a.rule, &a.schema, &a.object).cmp(&(b.rule, &b.schema, &b.object)));
    found
}

fn finding(crossing: &Crossing, inspected: &[Finding], app: &str) -> Finding {
    let (rule, mend) = match matching(crossing, inspected, app) {
        Some(known) => (known.rule, known.mend.clone()),
        None => {
            let rule = crossing.kind.rules.first().copied().unwrap_or("rls-off");
            (rule, format!("-- see docs/isolation/{rule}.md"))
        }
    };
    Finding {
        rule,
        severity: Severity::Critical,
        schema: crossing.schema.clone(),
        object: crossing.object.clone(),
        explanation: format!("{}: {}", crossing.kind.name, crossing.evidence),
        mend,
        demonstrate: crossing.sql.clone(),
    }
}

/// The inspection's finding that explains it: one about the same object, best of a rule that is about this kind of attempt; else one about
/// the application's role; else one of such a rule.
fn matching<'a>(crossing: &Crossing, inspected: &'a [Finding], app: &str) -> Option<&'a Finding> {
    let same_object = |finding: &&Finding| finding.schema == crossing.schema && finding.object == crossing.object;
    let rank = |finding: &&Finding| crossing.kind.rules.iter().position(|rule| *rule == finding.rule);
    let about = inspected.iter().filter(same_object);
    let of_kind =
        about.clone().filter(|finding| rank(finding).is_some()).min_by_key(|finding| (std::cmp::Reverse(finding.severity), rank(finding)));
    let worst = || about.filter(|finding| finding.severity >= Severity::High).max_by_key(|finding| finding.severity);
    let of_app = |finding: &&Finding| finding.schema.is_none() && finding.object == app && finding.severity >= Severity::High;
    let role = || inspected.iter().filter(of_app).max_by_key(|finding| finding.severity);
    let elsewhere = || inspected.iter().filter(|finding| rank(finding).is_some()).min_by_key(|finding| rank(finding));
    of_kind.or_else(worst).or_else(role).or_else(elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Kind = Kind { name: "read", rules: &["rls-off", "policy-open"] };

    fn found(rule: &'static str, severity: Severity, object: &str) -> Finding {
        let text = String::new;
        Finding {
            rule,
            severity,
            schema: Some("public".to_owned()),
            object: object.to_owned(),
            explanation: text(),
            mend: rule.to_owned(),
            demonstrate: text(),
        }
    }

    fn crossing(object: &str) -> Crossing {
        Crossing {
            kind: &READ,
            schema: Some("public".to_owned()),
            object: object.to_owned(),
            sql: "select".to_owned(),
            evidence: "1 row".to_owned(),
        }
    }

    #[test]
    fn the_nearest_rule_is_named() {
        let inspected = [
            found("policy-open", Severity::Critical, "notes"),
            found("unique-without-tenant", Severity::Critical, "notes"),
            found("unique-without-tenant", Severity::High, "comments"),
            found("rls-off", Severity::Critical, "others"),
        ];
        assert_eq!(finding(&crossing("notes"), &inspected, "app").rule, "policy-open");
        assert_eq!(finding(&crossing("comments"), &inspected, "app").rule, "unique-without-tenant");
        assert_eq!(finding(&crossing("entries"), &inspected, "app").rule, "rls-off");
        let role = Finding { schema: None, ..found("app-bypassrls", Severity::Critical, "app") };
        assert_eq!(finding(&crossing("entries"), &[role], "app").rule, "app-bypassrls");
        let unknown = finding(&crossing("notes"), &[], "app");
        assert_eq!((unknown.rule, unknown.mend.as_str()), ("rls-off", "-- see docs/isolation/rls-off.md"));
    }

    #[test]
    fn the_same_crossing_is_told_once() {
        assert_eq!(findings(vec![crossing("notes"), crossing("notes"), crossing("tasks")], &[], "app").len(), 2);
    }
}
