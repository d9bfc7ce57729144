//! Values that a column accepts, guessed from its type and from the words of its constraints.

use std::collections::HashMap;

use serde::Deserialize;

use super::pattern;

/// What one tenant's planted rows can be told by, wherever they show up.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    /// The tenant's id.
    pub(super) tenant: String,
    token: String,
    uuid: String,
    number: u32,
}

impl Marks {
    /// New ones, for a tenant.
    pub(super) fn new(tenant: String) -> Self {
        let random: u64 = rand::random();
        let uuid = format!("{:08x}-{:04x}", rand::random::<u32>(), rand::random::<u16>());
        // Not 17xxxx: seconds of the epoch look like that.
        let number = 180_000 + u32::try_from(random % 33_000).unwrap_or_default();
        Self { tenant, token: format!("canary{random:016x}"), uuid, number }
    }

    /// The SQL condition that the text expression `text` has one of the marks in it.
    pub(super) fn seen_in(&self, text: &str) -> String {
        let Self { tenant, token, uuid, number } = self;
        let bytes: String = token.bytes().map(|b| format!("{b:02x}")).collect();
        format!("{text} ~ '{tenant}|{token}|{uuid}|{bytes}|\\m{number}0[01][0-9]{{2}}\\M'")
    }

    fn token(&self, n: u32) -> String {
        format!("{}n{n}", self.token)
    }

    fn uuid(&self, n: u32) -> String {
        format!("{}-4000-8000-{n:012x}", self.uuid)
    }

    fn number(&self, n: u32) -> String {
        format!("{}{n:04}", self.number)
    }

    /// A text that a look-up would take for this tenant's.
    pub(super) fn texts(&self) -> [String; 2] {
        [self.token(0), self.tenant.clone()]
    }

    /// Ids that a look-up would take for this tenant's.
    pub(super) fn uuids(&self) -> [String; 2] {
        [self.tenant.clone(), self.uuid(0)]
    }

    /// A number that a look-up would take for this tenant's.
    pub(super) fn numbers(&self) -> [String; 1] {
        [self.number(0)]
    }
}

/// A type, as the catalog describes it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PgType {
    /// With its schema, ready for a cast.
    pub(super) sql: String,
    /// Bare.
    pub(super) name: String,
    /// `b`, `c`, `d`, `e`, `r`, `m`.
    kind: String,
    category: String,
    element: i64,
    base: i64,
    modifier: i32,
    labels: Vec<String>,
    checks: Vec<String>,
    subtype: i64,
    fields: Vec<(i64, i32)>,
}

/// All types, by oid.
pub(super) type Types = HashMap<i64, PgType>;

/// The question for all types: one JSON document each.
pub(super) const TYPES: &str = "
    select t.oid::bigint as oid, jsonb_build_object('sql', format('%I.%I', n.nspname, t.typname), 'name', t.typname, 'kind', t.typtype, 'category', t.typcategory,
             'element', case when t.typcategory = 'A' then t.typelem::bigint else 0 end, 'base', t.typbasetype::bigint, 'modifier', t.typtypmod,
             'labels', coalesce((select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid), '[]'),
             'checks', coalesce((select jsonb_agg(pg_get_constraintdef(c.oid)) from pg_constraint c where c.contypid = t.oid), '[]'),
             'subtype', coalesce((select r.rngsubtype from pg_range r where r.rngtypid = t.oid or r.rngmultitypid = t.oid), 0)::bigint,
             'fields', coalesce((select jsonb_agg(jsonb_build_array(a.atttypid::bigint, a.atttypmod) order by a.attnum) from pg_attribute a
                        where a.attrelid = t.typrelid and t.typtype = 'c' and a.attnum > 0 and not a.attisdropped), '[]'))::text as doc
      from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.typtype <> 'p'";

/// A string literal.
pub(super) fn quote(text: &str) -> String {
    // Without backslashes, standard_conforming_strings does not matter.
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// Where a value is for: a row's number among its tenant's, and the tenant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) marks: &'a Marks,
    pub(super) n: u32,
}

/// SQL expressions of type `oid`, likeliest first; those at the same position belong together for different places. `words` are the
/// texts of constraints on it.
pub(super) fn candidates(types: &Types, (oid, modifier): (i64, i32), words: &[String], place: Place<'_>) -> Vec<String> {
    nested(types, (oid, modifier), words, place, 0)
}

fn nested(types: &Types, (oid, modifier): (i64, i32), words: &[String], place: Place<'_>, depth: u32) -> Vec<String> {
    let Some(ty) = types.get(&oid).filter(|_| depth < 4) else { return Vec::new() };
    let inner = |of: (i64, i32), words: &[String]| nested(types, of, words, place, depth + 1);
    let cast = |text: &str| format!("{}::{}", quote(text), ty.sql);
    match ty.kind.as_str() {
        "d" => {
            let words: Vec<String> = words.iter().chain(&ty.checks).cloned().collect();
            inner((ty.base, ty.modifier), &words).into_iter().map(|value| format!("{value}::{}", ty.sql)).collect()
        }
        "e" => ty.labels.iter().map(|label| cast(label)).collect(),
        "c" => {
            let fields: Vec<Vec<String>> = ty.fields.iter().map(|field| inner(*field, words)).collect();
            let most = fields.iter().map(Vec::len).max().unwrap_or_default().min(4);
            let row =
                |i: usize| fields.iter().map(|f| f.get(i).or(f.first()).map_or("null", String::as_str)).collect::<Vec<_>>().join(", ");
            (0..most).map(|i| format!("row({})::{}", row(i), ty.sql)).collect()
        }
        "r" => {
            let bounds = inner((ty.subtype, -1), &[]);
            let whole = bounds.first().map(|low| format!("{}({low}, {low}, '[]')", ty.sql));
            whole.into_iter().chain([cast("empty"), cast("(,)")]).collect()
        }
        "m" => {
            let bounds = inner((ty.subtype, -1), &[]);
            let one = bounds.first().map(|low| format!("('{{[' || ({low})::text || ',' || ({low})::text || ']}}')::{}", ty.sql));
            one.into_iter().chain([cast("{}")]).collect()
        }
        _ if ty.element != 0 && ty.category == "A" => {
            let elements = inner((ty.element, modifier), words);
            let few = elements.iter().take(12);
            let ones = few.clone().map(|e| format!("array[{e}]::{}", ty.sql));
            let twos = few.take(3).map(|e| format!("array[{e}, {e}]::{}", ty.sql));
            ones.chain([cast("{}")]).chain(twos).collect()
        }
        _ => base(ty, modifier, words, place).iter().map(|text| cast(text)).collect(),
    }
}

/// Texts of a base type.
fn base(ty: &PgType, modifier: i32, words: &[String], place: Place<'_>) -> Vec<String> {
    let Place { marks, n } = place;
    let strings = |fixed: &[&str]| fixed.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let (quoted, numbers) = literals(words);
    match ty.name.as_str() {
        "bool" => strings(&["true", "false"]),
        "int2" => numeric(&numbers, [format!("{}", 20_000 + (marks.number % 1_000) * 10 + n % 10)]),
        "int4" | "int8" | "float4" | "float8" | "money" | "oid" => {
            numeric(&numbers, [marks.number(n)]).into_iter().chain((1..12).map(|k| marks.number(n + 16 * k))).collect()
        }
        "numeric" => {
            // The precision is in the upper half of the modifier, the scale in the lower.
            let (precision, scale) = if modifier < 4 { (30, 0) } else { ((modifier - 4) >> 16, (modifier - 4) & 0x7ff) };
            let most = usize::try_from(precision - scale).unwrap_or_default();
            let full = marks.number(n);
            let fits = if full.len() <= most { full } else { full[full.len() - most..].trim_start_matches('0').to_owned() };
            numeric(&numbers, [if fits.is_empty() { "0".to_owned() } else { fits }])
        }
        // Several, for partitions by hash.
        "uuid" => (0..12).map(|k| marks.uuid(n + 16 * k)).collect(),
        "date" | "timestamp" | "timestamptz" => {
            let day = format!("{}-{:02}-{:02}", 2001 + marks.number % 20, 1 + n % 12, 1 + marks.number % 28);
            let mut all = vec![day];
            all.extend(quoted.iter().filter(|q| q.starts_with(|c: char| c.is_ascii_digit())).cloned());
            all.extend(strings(&["now", "tomorrow", "2001-01-01", "2099-12-31", "yesterday"]));
            all
        }
        "time" => strings(&["10:00", "12:30", "18:00", "00:00"]),
        "timetz" => strings(&["10:00+00", "18:00+00"]),
        "interval" => [quoted, strings(&["1 hour", "1 day", "30 days", "1 minute", "1 year", "0"])].concat(),
        "json" | "jsonb" => {
            let token = marks.token(n);
            let keyed = quoted.iter().map(|key| format!(r#"{{"{key}": "{token}"}}"#));
            let mut all = vec![format!(r#"{{"canary": "{token}"}}"#), format!(r#"["{token}"]"#), format!(r#""{token}""#)];
            all.extend(keyed);
            all.extend(strings(&["{}", "[]", "1", "true"]));
            all
        }
        "bytea" => {
            let token = marks.token(n);
            let hex = |length: usize| token.bytes().cycle().take(length).map(|b| format!("{b:02x}")).collect::<String>();
            let lengths = numbers.iter().filter_map(|k| k.parse::<usize>().ok()).filter(|k| (1..=4_096).contains(k));
            [token.len()].into_iter().chain(lengths).chain([16, 20, 32, 64]).map(|length| format!("\\x{}", hex(length))).collect()
        }
        "inet" | "cidr" => vec![format!("10.{}.{}.{}", marks.number % 256, marks.number / 256 % 256, n % 256)],
        "macaddr" => vec![format!("02:00:{:02x}:{:02x}:00:{:02x}", marks.number % 256, marks.number / 256 % 256, n % 256)],
        "macaddr8" => vec![format!("02:00:00:00:{:02x}:{:02x}:00:{:02x}", marks.number % 256, marks.number / 256 % 256, n % 256)],
        "bit" | "varbit" => {
            let length = usize::try_from(modifier).unwrap_or(8).clamp(1, 64);
            vec![format!("{:064b}", u64::from(marks.number) + u64::from(n))[64 - length..].to_owned()]
        }
        "xml" => vec![format!("<canary>{}</canary>", marks.token(n))],
        "tsvector" | "tsquery" | "ltree" | "jsonpath" => vec![if ty.name == "jsonpath" { "$".to_owned() } else { marks.token(n) }],
        "hstore" => vec![format!("canary=>{}", marks.token(n))],
        "point" => vec![format!("({},{n})", marks.number)],
        "lseg" | "box" => vec![format!("(({},{n}),(1,1))", marks.number)],
        "line" => strings(&["{1,2,3}"]),
        "path" | "polygon" => vec![format!("(({},{n}),(1,1),(2,0))", marks.number)],
        "circle" => vec![format!("<({},{n}),1>", marks.number)],
        "pg_lsn" => strings(&["0/1"]),
        "xid" | "xid8" | "cid" => strings(&["1"]),
        "char" => strings(&["a", "b", "x"]),
        _ if ty.category == "S" => texts(modifier, &quoted, &numbers, place),
        "regclass" => strings(&["pg_class"]),
        "regtype" => strings(&["text"]),
        "regrole" => strings(&["postgres"]),
        _ => [vec![marks.token(n)], strings(&["0", "", "1", "a"])].concat(),
    }
}

fn numeric(numbers: &[String], mark: [String; 1]) -> Vec<String> {
    let near = numbers.iter().flat_map(|literal| {
        let whole = literal.parse::<i64>().ok();
        let next = whole.map(|k| [k.saturating_add(1).to_string(), k.saturating_sub(1).to_string()]);
        [literal.clone()].into_iter().chain(next.into_iter().flatten())
    });
    let usual = ["1", "0", "2", "5", "10", "50", "100", "0.5", "1000", "2026", "-1"].map(ToOwned::to_owned);
    mark.into_iter().chain(near).chain(usual).collect()
}

/// Strings that columns of text ask for.
fn texts(modifier: i32, quoted: &[String], numbers: &[String], place: Place<'_>) -> Vec<String> {
    let Place { marks, n } = place;
    let token = marks.token(n);
    let most = usize::try_from(modifier - 4).unwrap_or(usize::MAX);
    let tail = |length: usize| {
        let digits: String = token.chars().rev().filter(char::is_ascii_alphanumeric).cycle().take(length).collect();
        digits.chars().rev().collect::<String>()
    };
    let mut all = vec![if token.len() <= most { token.clone() } else { tail(most) }];
    for literal in quoted {
        if literal.contains(['^', '[', '$', '\\', '(']) {
            for variety in 0..4 {
                all.push(pattern::sample(literal, u64::from(marks.number) * 1_000 + u64::from(n) * 10 + variety));
            }
        }
        if literal.contains(['%', '_']) {
            all.push(literal.replace('%', &token).replace('_', "a"));
        }
        all.push(literal.clone());
    }
    for length in numbers.iter().filter_map(|k| k.parse::<usize>().ok()).filter(|k| (1..=10_000).contains(k)) {
        all.push(tail(length));
        all.push(tail(length + 1));
        all.push(tail(length.saturating_sub(1)));
    }
    let upper = token.to_uppercase();
    let letters: String = format!("{:x}", u64::from(marks.number) * 7 + u64::from(n)).bytes().map(|b| char::from(b'A' + b % 26)).collect();
    all.extend([
        format!("{token}@example.org"),
        format!("https://{token}.example.org/"),
        format!("{token}.example.org"),
        upper,
        marks.number(n),
        marks.uuid(n),
        letters.clone(),
        letters.chars().take(3).collect(),
        letters.chars().take(2).collect(),
        letters.to_lowercase().chars().take(2).collect(),
        format!("+49{}", marks.number(n)),
        format!("Canary {token}"),
        format!("#{:06x}", marks.number),
        format!("/{token}"),
        "{}".to_owned(),
        "2026-01-01".to_owned(),
        "10.0.0.1".to_owned(),
        "a".to_owned(),
        "en-US".to_owned(),
        "UTC".to_owned(),
        String::new(),
    ]);
    all.extend([8, 16, 32, 40, 64, 128].map(tail));
    all.extend((1..12).map(|k| marks.token(n + 16 * k)));
    // Positions must stay the same from place to place, so what is too long is cut, not left out.
    all.into_iter().map(|text| text.chars().take(most).collect()).collect()
}

/// The strings and the numbers in the texts of constraints.
fn literals(words: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut quoted, mut numbers) = (Vec::new(), Vec::new());
    for text in words {
        let mut chars = text.chars().peekable();
        let mut before = ' ';
        while let Some(c) = chars.next() {
            if c == '\'' {
                let mut literal = String::new();
                while let Some(inner) = chars.next() {
                    if inner == '\'' && chars.peek() == Some(&'\'') {
                        chars.next();
                    } else if inner == '\'' {
                        break;
                    }
                    literal.push(inner);
                }
                let is_number = !literal.is_empty() && literal.parse::<f64>().is_ok();
                quoted.push(if before == 'E' { literal.replace("\\\\", "\\") } else { literal.clone() });
                if is_number {
                    numbers.push(literal);
                }
            } else if c.is_ascii_digit() && !before.is_alphanumeric() && before != '_' {
                let mut literal = if before == '-' { format!("-{c}") } else { c.to_string() };
                while let Some(digit) = chars.next_if(|d| d.is_ascii_digit() || *d == '.') {
                    literal.push(digit);
                }
                numbers.push(literal);
            }
            before = c;
        }
    }
    quoted.dedup();
    numbers.dedup();
    (quoted, numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(name: &str, category: &str) -> PgType {
        PgType { sql: name.to_owned(), name: name.to_owned(), kind: "b".to_owned(), category: category.to_owned(), ..PgType::default() }
    }

    #[test]
    fn literals_are_found_in_constraints() {
        let check =
            "CHECK ((side = ANY (ARRAY['debit'::text, 'it''s'::text])) AND (n >= 10) AND char_length(t2) <= 40 AND (d > '-5'::integer))";
        let (quoted, numbers) = literals(&[check.to_owned()]);
        assert_eq!(quoted, ["debit", "it's", "-5"]);
        assert_eq!(numbers, ["10", "40", "-5"]);
    }

    #[test]
    fn positions_are_the_same_from_place_to_place() {
        let words = ["CHECK (code ~ '^[A-Z]{2}[0-9]+$' and length(code) < 30)".to_owned()];
        let (a, b) = (Marks::new("a".to_owned()), Marks::new("b".to_owned()));
        for name in [("text", "S"), ("int4", "N"), ("jsonb", "U"), ("bytea", "U"), ("date", "D"), ("numeric", "N"), ("varchar", "S")] {
            let ty = ty(name.0, name.1);
            let modifier = if name.0 == "numeric" { -1 } else { 14 };
            let one = base(&ty, modifier, &words, Place { marks: &a, n: 0 });
            let two = base(&ty, modifier, &words, Place { marks: &b, n: 7 });
            assert_eq!(one.len(), two.len(), "{name:?}");
            assert_ne!(one.first(), two.first(), "{name:?}");
        }
    }

    #[test]
    fn quoting_is_safe() {
        assert_eq!(quote("it's"), "'it''s'");
        assert_eq!(quote("a\\'b"), "E'a\\\\''b'");
    }
}
