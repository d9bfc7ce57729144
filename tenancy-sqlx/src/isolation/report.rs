//! Findings for people, programs and code scanners.

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::allow::{EXPIRED, UNUSED};
use super::{AllowList, Allowed, Finding, RULES, Severity};

/// What was found, without what is allowed.
///
/// `Display` is for people: each finding with its explanation and the SQL that mends it, and a last line that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[must_use]
pub struct Report {
    /// What must be looked at, worst first; what is wrong with the allow-list is among it.
    pub findings: Vec<Finding>,
    /// What is accepted.
    pub allowed: Vec<Allowed>,
}

impl Report {
    /// Sets aside what `allow` accepts at `now`.
    pub fn apply(findings: Vec<Finding>, allow: &AllowList, now: DateTime<Utc>) -> Self {
        let (mut findings, allowed) = allow.split(findings, now.date_naive());
        findings.sort_by(|a, b| (b.severity, a.rule, &a.schema, &a.object).cmp(&(a.severity, b.rule, &b.schema, &b.object)));
        Self { findings, allowed }
    }

    /// The severity of the worst finding that is not allowed; `None` if there is no finding.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// `{"findings": […], "allowed": […]}`: a finding has `rule`, `severity`, `schema` (or null), `object`, `explanation`, `mend` and
    /// `demonstrate`; one that is allowed has `reason` and `until` as well.
    pub fn to_json(&self) -> Value {
        json!({ "findings": self.findings, "allowed": self.allowed })
    }

    /// SARIF 2.1.0, for code scanners. What is allowed is in it as suppressed.
    ///
    /// The object is the logical location. Scanners that only take findings in files get the folder `migrations`, where the mend belongs.
    pub fn to_sarif(&self) -> Value {
        let all = || self.findings.iter().chain(self.allowed.iter().map(|allowed| &allowed.finding));
        let mut rules: Vec<(&str, Severity)> = all().map(|finding| (finding.rule, finding.severity)).collect();
        rules.sort_unstable();
        rules.dedup_by_key(|(id, _)| *id);
        let open = self.findings.iter().map(|finding| (finding, json!([])));
        let suppressed = self.allowed.iter().map(|Allowed { finding, reason, until }| {
            (finding, json!([{ "kind": "external", "status": "accepted", "justification": format!("until {until}: {reason}") }]))
        });
        let mut seen = HashMap::new();
        let results: Vec<_> = open
            .chain(suppressed)
            .map(|(finding, suppressions)| {
                let rule_index = rules.iter().position(|(id, _)| *id == finding.rule);
                result(finding, rule_index, &fingerprint(finding, &mut seen), &suppressions)
            })
            .collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": { "driver": {
                    "name": "tenancy",
                    "semanticVersion": env!("CARGO_PKG_VERSION"),
                    "informationUri": env!("CARGO_PKG_REPOSITORY"),
                    "rules": rules.iter().map(|(id, severity)| descriptor(id, *severity)).collect::<Vec<_>>(),
                } },
                "results": results,
            }],
        })
    }
}

fn descriptor(id: &str, severity: Severity) -> Value {
    json!({
        "id": id,
        "shortDescription": { "text": summary(id) },
        "helpUri": format!("docs/isolation/{id}.md"),
        "defaultConfiguration": { "level": level(severity) },
        "properties": { "tags": ["security"], "security-severity": score(severity) },
    })
}

/// `suppressions` of an open finding is empty, and not absent: it says that allow-lists were looked at.
fn result(finding: &Finding, rule_index: Option<usize>, fingerprint: &str, suppressions: &Value) -> Value {
    json!({
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "level": level(finding.severity),
        "message": { "text": format!("{}\n\nMend: {}", finding.explanation, finding.mend) },
        "locations": [{
            "physicalLocation": { "artifactLocation": { "uri": "migrations" }, "region": { "startLine": 1 } },
            "logicalLocations": [{ "name": finding.object, "fullyQualifiedName": finding.name() }],
        }],
        // The name under which code scanners look for it.
        "partialFingerprints": { "primaryLocationLineHash": fingerprint },
        "suppressions": suppressions,
        "properties": { "severity": finding.severity, "mend": finding.mend, "demonstrate": finding.demonstrate },
    })
}

/// The same finding has the same fingerprint in each run, whatever its wording; several of one rule on one object are counted.
fn fingerprint(finding: &Finding, seen: &mut HashMap<String, u32>) -> String {
    let hash = Sha256::digest(format!("{}\0{}", finding.rule, finding.name()));
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let nth = seen.entry(hash.clone()).and_modify(|n| *n += 1).or_insert(1);
    format!("{hash}:{nth}")
}

const fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical | Severity::High => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    }
}

/// Inside the ranges that code scanners call critical, high, medium and low.
const fn score(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "9.5",
        Severity::High => "8.0",
        Severity::Warning => "5.0",
        Severity::Info => "2.0",
    }
}

fn summary(id: &str) -> &str {
    match id {
        EXPIRED => "the last day of an entry of the allow-list is over",
        UNUSED => "an entry of the allow-list matches nothing",
        _ => RULES.iter().flat_map(|theme| theme.iter()).find(|rule| rule.id == id).map_or(id, |rule| rule.summary),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.findings.iter().map(|finding| finding.rule).chain(self.allowed.iter().map(|allowed| allowed.finding.rule));
        let width = rules.map(str::len).max().unwrap_or_default();
        for finding in &self.findings {
            let Finding { rule, severity, explanation, mend, .. } = finding;
            writeln!(f, "{:<8}  {rule:<width$}  {}", severity.as_str(), plain(&finding.name()))?;
            writeln!(f, "          {}", plain(explanation))?;
            for line in mend.lines() {
                writeln!(f, "            {}", plain(line))?;
            }
        }
        for Allowed { finding, reason, until } in &self.allowed {
            writeln!(f, "allowed   {:<width$}  {}", finding.rule, plain(&finding.name()))?;
            writeln!(f, "          until {until}: {}", plain(reason))?;
        }
        self.count(f)
    }
}

impl Report {
    fn count(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.findings.len();
        write!(f, "{n} {}", if n == 1 { "finding" } else { "findings" })?;
        let each = Severity::ALL.iter().rev().map(|severity| (severity, self.findings.iter().filter(|f| f.severity == *severity).count()));
        for (i, (severity, n)) in each.filter(|(_, n)| *n > 0).enumerate() {
            write!(f, "{}{n} {severity}", if i == 0 { ": " } else { ", " })?;
        }
        write!(f, "; {} allowed", self.allowed.len())
    }
}

/// Names come from the database: one must not print as several lines, or speak to the terminal.
fn plain(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(rule: &'static str, severity: Severity, schema: Option<&str>, object: &str) -> Finding {
        Finding {
            rule,
            severity,
            schema: schema.map(str::to_owned),
            object: object.to_owned(),
            explanation: format!("{object} leaks"),
            mend: "MEND 1;\nMEND 2;".to_owned(),
            demonstrate: "SHOW;".to_owned(),
        }
    }

    fn report() -> Report {
        let allow = r#"{"allow":[
            {"rule":"rls-off","object":"public.old","reason":"is being emptied","until":"2027-01-31"},
            {"rule":"rls-off","object":"public.gone","reason":"was being emptied","until":"2027-01-31"},
            {"rule":"app-superuser","object":"*","reason":"until the new login","until":"2026-12-31"}]}"#;
        let findings = vec![
            finding("x-warning", Severity::Warning, None, "x"),
            finding("rls-off", Severity::Critical, Some("public"), "old"),
            finding("rls-off", Severity::Critical, Some("public"), "notes"),
            finding("app-superuser", Severity::High, None, "tenancy_app"),
        ];
        let now = "2027-01-31T23:59:59Z".parse().expect("a time");
        Report::apply(findings, &allow.parse().expect("valid"), now)
    }

    #[test]
    fn the_worst_comes_first_and_the_allowed_does_not_count() {
        let report = report();
        let rules: Vec<_> = report.findings.iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, ["rls-off", "app-superuser", EXPIRED, "x-warning", UNUSED]);
        assert_eq!((report.worst(), report.allowed.len()), (Some(Severity::Critical), 1));
        let now = "2027-01-31T23:59:59Z".parse().expect("a time");
        assert_eq!(Report::apply(Vec::new(), &AllowList::default(), now).worst(), None);
    }

    #[test]
    fn people_see_a_table_with_the_mends_and_a_count() {
        let text = report().to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..4],
            ["critical  rls-off        public.notes", "          notes leaks", "            MEND 1;", "            MEND 2;",]
        );
        assert!(text.contains("allowed   rls-off        public.old\n          until 2027-01-31: is being emptied\n"), "{text}");
        assert_eq!(lines.last(), Some(&"5 findings: 1 critical, 1 high, 2 warning, 1 info; 1 allowed"));
        let none = Report { findings: Vec::new(), allowed: Vec::new() };
        assert_eq!(none.to_string(), "0 findings; 0 allowed");
    }

    #[test]
    fn a_name_can_not_forge_lines() {
        let forged = finding("rls-off", Severity::Critical, Some("public"), "x\n0 findings; 0 allowed\u{1b}[2J");
        let text = Report { findings: vec![forged], allowed: Vec::new() }.to_string();
        assert!(text.lines().all(|line| !line.starts_with("0 findings")) && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains(r"public.x\n0 findings; 0 allowed\u{1b}[2J"), "{text}");
    }

    #[test]
    fn programs_see_every_field_and_no_other() {
        let json = report().to_json();
        let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<std::collections::BTreeSet<_>>();
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let fields = ["rule", "severity", "object", "schema", "explanation", "mend", "demonstrate"];
        assert_eq!(keys(&json), set(&["findings", "allowed"]));
        assert_eq!(keys(&json["findings"][0]), set(&fields));
        assert_eq!(keys(&json["allowed"][0]), set(&[&fields[..], &["reason", "until"]].concat()));
        assert_eq!(json["findings"][0]["severity"], "critical");
        assert_eq!(json["findings"][1]["schema"], Value::Null);
        assert_eq!((&json["allowed"][0]["until"], &json["allowed"][0]["reason"]), (&json!("2027-01-31"), &json!("is being emptied")));
    }

    #[test]
    fn scanners_see_levels_places_and_suppressions() {
        let sarif = report().to_sarif();
        assert_eq!(sarif["version"], "2.1.0");
        let run = &sarif["runs"][0];
        assert_eq!(run["tool"]["driver"]["name"], "tenancy");
        let rules = run["tool"]["driver"]["rules"].as_array().expect("rules");
        let results = run["results"].as_array().expect("results");
        for result in results {
            let rule = &rules[usize::try_from(result["ruleIndex"].as_u64().expect("an index")).expect("small")];
            assert_eq!(rule["id"], result["ruleId"]);
            assert_eq!(rule["helpUri"], format!("docs/isolation/{}.md", result["ruleId"].as_str().expect("an id")));
            assert_ne!(rule["shortDescription"]["text"], "");
        }
        let seen: Vec<_> =
            results.iter().map(|r| (r["ruleId"].as_str(), r["level"].as_str(), r["suppressions"].as_array().map(Vec::len))).collect();
        let of = |rule, level, suppressed| (Some(rule), Some(level), Some(suppressed));
        assert_eq!(
            seen,
            [
                of("rls-off", "error", 0),
                of("app-superuser", "error", 0),
                of(EXPIRED, "warning", 0),
                of("x-warning", "warning", 0),
                of(UNUSED, "note", 0),
                of("rls-off", "error", 1),
            ]
        );
        assert_eq!(results[0]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"], "public.notes");
        assert_eq!(results[5]["suppressions"][0]["justification"], "until 2027-01-31: is being emptied");
        let prints: std::collections::HashSet<_> = results.iter().map(|r| r["partialFingerprints"].to_string()).collect();
        assert_eq!(prints.len(), results.len(), "each object has its own fingerprint");
        let twins = [(); 2].map(|()| finding("rls-off", Severity::Critical, None, "x")).to_vec();
        let twins = Report { findings: twins, allowed: Vec::new() }.to_sarif();
        let print =
            |i: usize| twins["runs"][0]["results"][i]["partialFingerprints"]["primaryLocationLineHash"].as_str().expect("one").to_owned();
        assert!(print(0).ends_with(":1") && print(1) == print(0).replace(":1", ":2"));
    }
}
