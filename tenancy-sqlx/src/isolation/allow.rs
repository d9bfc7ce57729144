//! What a host allows on purpose: each entry names one finding, says why, and ends.

use std::str::FromStr;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use tenancy_core::{Error, ErrorKind, Result};

use super::{Finding, RULES, Severity};

/// The rule of an entry whose last day is over.
pub(super) const EXPIRED: &str = "allow-expired";
/// The rule of an entry that no finding needs.
pub(super) const UNUSED: &str = "allow-unused";

const ANY: &str = "*";
const SHAPE: &str = r#"it must be {"allow": [{"rule": "…", "object": "schema.object", "reason": "…", "until": "YYYY-MM-DD"}]}"#;

/// Findings that a host knows and accepts, from a JSON text:
///
/// ```
/// # fn main() -> tenancy_core::Result<()> {
/// let allow: tenancy_sqlx::isolation::AllowList = r#"{
///     "allow": [{
///         "rule": "rls-off",
///         "object": "public.notes",
///         "reason": "the import of the old notes runs until the end of January",
///         "until": "2027-01-31"
///     }]
/// }"#.parse()?;
/// # Ok(()) }
/// ```
///
/// `object` is what the finding names: `schema.object`, or `object` alone where there is no schema. The one wildcard is `*`: any object of
/// that rule. After `until`, the last day, an entry allows nothing and is a finding itself (`allow-expired`, a warning); one that
/// matches nothing is reported too (`allow-unused`, for information).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    rule: &'static str,
    object: String,
    reason: String,
    until: NaiveDate,
}

/// A finding that an [`AllowList`] accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Allowed {
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
    /// Why it is accepted.
    pub reason: String,
    /// The last day on which it is.
    pub until: NaiveDate,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    allow: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    rule: String,
    object: String,
    reason: String,
    until: String,
}

impl FromStr for AllowList {
    type Err = Error;

    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured), with the place in the text, what is wrong there, and what to do.
    fn from_str(text: &str) -> Result<Self> {
        let file: File = serde_json::from_str(text).map_err(|e| refused("allow", format!("{e}; {SHAPE}")))?;
        let mut entries: Vec<Entry> = Vec::with_capacity(file.allow.len());
        for (i, written) in file.allow.into_iter().enumerate() {
            let entry = written.check().map_err(|(field, why)| refused(&format!("allow[{i}].{field}"), why))?;
            if let Some(twin) = entries.iter().position(|other| (other.rule, &other.object) == (entry.rule, &entry.object)) {
                return Err(refused(&format!("allow[{i}]"), format!("has the rule and object of allow[{twin}]: delete one of them")));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }
}

impl Written {
    fn check(self) -> Result<Entry, (&'static str, String)> {
        let Self { rule, object, reason, until } = self;
        let rule = known_rules().find(|id| *id == rule).ok_or_else(|| ("rule", unknown(&rule)))?;
        if object.trim().is_empty() || object.trim() != object {
            return Err(("object", "must be schema.object as the finding names it, or * for any object of the rule".to_owned()));
        }
        if !(8..=1000).contains(&reason.trim().chars().count()) {
            return Err(("reason", "must be 8 to 1000 characters: say why this is no leak, or who accepts it".to_owned()));
        }
        let until = until.parse().map_err(|_| ("until", format!("{until:?} is no date: give the last day as YYYY-MM-DD")))?;
        Ok(Entry { rule, object, reason: reason.trim().to_owned(), until })
    }
}

impl AllowList {
    /// Those findings that stay, with what is wrong with the list itself, and those that are allowed.
    pub(super) fn split(&self, findings: Vec<Finding>, today: NaiveDate) -> (Vec<Finding>, Vec<Allowed>) {
        let (mut stay, mut allowed) = (Vec::new(), Vec::new());
        let mut used = vec![false; self.entries.len()];
        for finding in findings {
            let mut by = None;
            for (entry, used) in self.entries.iter().zip(&mut used).filter(|(entry, _)| entry.covers(&finding)) {
                *used = true;
                by = by.or(Some(entry).filter(|entry| !entry.is_over(today)));
            }
            match by {
                Some(Entry { reason, until, .. }) => allowed.push(Allowed { finding, reason: reason.clone(), until: *until }),
                None => stay.push(finding),
            }
        }
        stay.extend(self.entries.iter().zip(used).filter_map(|(entry, used)| entry.complaint(used, today)));
        (stay, allowed)
    }
}

impl Entry {
    fn covers(&self, finding: &Finding) -> bool {
        self.rule == finding.rule && (self.object == ANY || self.object == finding.name())
    }

    fn is_over(&self, today: NaiveDate) -> bool {
        self.until < today
    }

    fn complaint(&self, used: bool, today: NaiveDate) -> Option<Finding> {
        let Self { rule, object, reason, until } = self;
        let (id, severity, explanation, mend) = if self.is_over(today) {
            let explanation = format!("{rule} on {object} was allowed until {until}, and is no longer; the reason was: {reason}");
            (EXPIRED, Severity::Warning, explanation, "-- Mend what it allowed and delete the entry, or agree on a later day.")
        } else if !used {
            (UNUSED, Severity::Info, format!("no finding of {rule} names {object}: the entry allows nothing"), "-- Delete the entry.")
        } else {
            return None;
        };
        let object = format!("{rule} on {object}");
        Some(Finding { rule: id, severity, schema: None, object, explanation, mend: mend.to_owned(), demonstrate: String::new() })
    }
}

/// The rules that an entry may name.
fn known_rules() -> impl Iterator<Item = &'static str> {
    RULES.iter().flat_map(|theme| theme.iter()).map(|rule| rule.id)
}

fn unknown(rule: &str) -> String {
    let nearest = known_rules().map(|id| (distance(rule, id), id)).min();
    match nearest.filter(|(distance, id)| *distance <= id.len() / 3) {
        Some((_, id)) => format!("there is no rule {rule:?}: did you mean {id:?}?"),
        None => format!("there is no rule {rule:?}: copy the name from the finding (docs/isolation lists all)"),
    }
}

/// How many letters must be added, removed or replaced (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let best = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

fn refused(place: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Misconfigured, format!("the allow-list is not valid: {place}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: &str = "agreed with the auditors";

    fn list(entries: &[(&str, &str, &str)]) -> AllowList {
        let entries: Vec<_> = entries
            .iter()
            .map(|(rule, object, until)| serde_json::json!({ "rule": rule, "object": object, "reason": REASON, "until": until }))
            .collect();
        serde_json::json!({ "allow": entries }).to_string().parse().expect("valid")
    }

    fn finding(rule: &'static str, schema: Option<&str>, object: &str) -> Finding {
        let (schema, object) = (schema.map(str::to_owned), object.to_owned());
        let text = String::new;
        Finding { rule, severity: Severity::Critical, schema, object, explanation: text(), mend: text(), demonstrate: text() }
    }

    /// The rules of what stays, and the names of what is allowed, on 15 January 2027.
    fn split(allow: &AllowList, findings: &[Finding]) -> (Vec<&'static str>, Vec<String>) {
        let (stay, allowed) = allow.split(findings.to_vec(), "2027-01-15".parse().expect("a day"));
        (stay.iter().map(|finding| finding.rule).collect(), allowed.iter().map(|allowed| allowed.finding.name()).collect())
    }

    #[test]
    fn an_entry_allows_its_rule_on_its_object_and_nothing_else() {
        let allow = list(&[("rls-off", "public.notes", "2027-01-15"), ("app-superuser", "tenancy_app", "2027-01-16")]);
        let found = [
            finding("rls-off", Some("public"), "notes"),
            finding("rls-off", Some("public"), "notes2"),
            finding("rls-off", Some("other"), "notes"),
            finding("rls-off", None, "notes"),
            finding("app-superuser", Some("public"), "notes"),
            finding("app-superuser", None, "tenancy_app"),
        ];
        let (stay, allowed) = split(&allow, &found);
        assert_eq!(stay, ["rls-off", "rls-off", "rls-off", "app-superuser"]);
        assert_eq!(allowed, ["public.notes", "tenancy_app"]);
    }

    #[test]
    fn a_star_is_any_object_and_only_alone() {
        let notes = [finding("rls-off", Some("public"), "notes"), finding("app-superuser", None, "x")];
        assert_eq!(split(&list(&[("rls-off", "*", "2027-02-01")]), &notes), (vec!["app-superuser"], vec!["public.notes".to_owned()]));
        for no_wildcard in ["public.*", "**", "%", "public.note?"] {
            let (stay, allowed) = split(&list(&[("rls-off", no_wildcard, "2027-02-01")]), &notes);
            assert_eq!((stay, allowed.len()), (vec!["rls-off", "app-superuser", UNUSED], 0), "{no_wildcard}");
        }
    }

    #[test]
    fn a_dot_in_a_schemas_name_is_no_separator() {
        let allow = list(&[("rls-off", "a.b.c", "2027-02-01")]);
        assert_eq!(split(&allow, &[finding("rls-off", Some("a"), "b.c")]).1, ["a.b.c"]);
        assert_eq!(split(&allow, &[finding("rls-off", Some("a.b"), "c")]), (vec!["rls-off", UNUSED], vec![]));
        assert_eq!(finding("rls-off", Some("a.b"), "c").name(), "\"a.b\".c");
    }

    #[test]
    fn an_expired_entry_allows_nothing_and_is_a_finding() {
        let notes = [finding("rls-off", Some("public"), "notes")];
        let expired = list(&[("rls-off", "public.notes", "2027-01-14")]);
        assert_eq!(split(&expired, &notes), (vec!["rls-off", EXPIRED], vec![]));
        assert_eq!(split(&expired, &[]), (vec![EXPIRED], vec![]), "expired, and not unused as well");
        let (stay, _) = expired.split(Vec::new(), "2027-01-15".parse().expect("a day"));
        assert_eq!((stay[0].severity, stay[0].object.as_str()), (Severity::Warning, "rls-off on public.notes"));
        assert!(stay[0].explanation.contains("2027-01-14") && stay[0].explanation.contains(REASON));
        // A living entry allows it all the same.
        let both = list(&[("rls-off", "public.notes", "2027-01-14"), ("rls-off", "*", "2027-01-15")]);
        assert_eq!(split(&both, &notes), (vec![EXPIRED], vec!["public.notes".to_owned()]));
    }

    #[test]
    fn what_matches_nothing_is_told() {
        let (stay, _) = list(&[("rls-off", "public.gone", "2027-02-01")]).split(Vec::new(), "2027-01-15".parse().expect("a day"));
        assert_eq!((stay[0].rule, stay[0].severity, stay.len()), (UNUSED, Severity::Info, 1));
        assert_eq!(split(&AllowList::default(), &[]), (vec![], vec![]));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_a_remedy() {
        let entry = |rule: &str, object: &str, reason: &str, until: &str| {
            format!(
                r#"{{"allow":[{{"rule":"rls-off","object":"a.b","reason":"{REASON}","until":"2027-01-31"}},
                {{"rule":"{rule}","object":"{object}","reason":"{reason}","until":"{until}"}}]}}"#
            )
        };
        let long = "x".repeat(1001);
        for (text, says) in [
            (String::new(), "line 1 column 0; it must be {"),
            ("[]".to_owned(), "it must be {"),
            ("{}".to_owned(), "missing field `allow`"),
            (r#"{"allow":[],"deny":[]}"#.to_owned(), "unknown field `deny`"),
            (
                "{\"allow\":[\n{\"rule\":\"rls-off\",\"because\":1}]}".to_owned(),
                "unknown field `because`, expected one of `rule`, `object`",
            ),
            (r#"{"allow":[{"rule":"rls-off","object":"x","reason":"long enough"}]}"#.to_owned(), "missing field `until`"),
            (r#"{"allow":[{"rule":"rls-off","rule":"x"}]}"#.to_owned(), "duplicate field `rule`"),
            (r#"{"allow":[]} x"#.to_owned(), "trailing characters"),
            (entry("rls-of", "x", REASON, "2027-01-31"), "allow[1].rule: there is no rule \"rls-of\": did you mean \"rls-off\"?"),
            (entry("RLS-OFF", "x", REASON, "2027-01-31"), "allow[1].rule: there is no rule \"RLS-OFF\""),
            (entry("*", "x", REASON, "2027-01-31"), "docs/isolation"),
            (entry(EXPIRED, "x", REASON, "2027-01-31"), "allow[1].rule: there is no rule"),
            (entry("rls-off", "", REASON, "2027-01-31"), "allow[1].object: must be schema.object"),
            (entry("rls-off", " x", REASON, "2027-01-31"), "allow[1].object"),
            (entry("rls-off", "x", "  short    ", "2027-01-31"), "allow[1].reason: must be 8 to 1000 characters"),
            (entry("rls-off", "x", &long, "2027-01-31"), "allow[1].reason"),
            (entry("rls-off", "x", REASON, "31.01.2027"), "allow[1].until: \"31.01.2027\" is no date: give the last day as YYYY-MM-DD"),
            (entry("rls-off", "x", REASON, "2027-02-30"), "allow[1].until"),
            (entry("rls-off", "a.b", REASON, "2027-02-01"), "allow[1]: has the rule and object of allow[0]"),
        ] {
            let error = text.parse::<AllowList>().expect_err(says);
            assert_eq!(error.kind(), ErrorKind::Misconfigured);
            assert!(error.message().contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, n) in [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("rls-of", "rls-off", 1)] {
            assert_eq!((distance(a, b), distance(b, a)), (n, n), "{a} {b}");
        }
    }
}
