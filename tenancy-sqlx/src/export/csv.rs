//! Rows as CSV: as PostgreSQL's COPY writes it, with the line ends of RFC 4180, and values that others can read, too.
//!
//! | | |
//! |---|---|
//! | NULL | nothing between the commas; an empty text is `""` |
//! | points in time | ISO 8601, `2026-01-02T03:04:05.678901+00:00`, in UTC; durations as well, `P1M-2D` |
//! | `bytea` | hex, `\x00ff` |
//! | arrays, rows and JSON | JSON |
//! | booleans | `true`, `false` |
//! | all else | PostgreSQL's own text, with all digits |

use sqlx::Row as _;
use tenancy_core::Result;

use crate::error::from_sqlx;
use crate::tx::TenantTx;

/// What makes values the same whoever exports them.
pub(super) const SETTINGS: &str =
    "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL extra_float_digits = 1;
                                   SET LOCAL bytea_output = 'hex'; SET LOCAL xmloption = 'content'; SET LOCAL row_security = on";

/// The columns of a table, as its file has them.
pub(super) async fn columns(tx: &mut TenantTx, oid: i64) -> Result<String> {
    let rows = sqlx::query(
        "with recursive roots (oid, root) as (
           select oid, oid from pg_type where typtype <> 'd' union all select t.oid, r.root from pg_type t join roots r on t.typbasetype = r.oid where t.typtype = 'd'
         )
         select quote_ident(a.attname),
                case when y.typcategory in ('A', 'C') or y.typname in ('timestamp', 'timestamptz') then 'json' when y.typcategory = 'B' then 'text' else '' end
           from pg_attribute a join roots r on r.oid = a.atttypid join pg_type y on y.oid = r.root
          where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped order by a.attnum",
    )
    .bind(sqlx::postgres::types::Oid(u32::try_from(oid).unwrap_or_default()))
    .fetch_all(tx)
    .await
    .map_err(from_sqlx)?;
    let columns = rows.iter().map(|row| {
        let (name, how): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        Ok(match how.as_str() {
            // Of what is a string in JSON, only its text; of all else, the JSON.
            "json" => format!("to_json(t.{name}) #>> '{{}}' as {name}"),
            "text" => format!("t.{name}::text as {name}"),
            _ => format!("t.{name}"),
        })
    });
    let columns: Vec<String> = columns.collect::<std::result::Result<_, sqlx::Error>>().map_err(from_sqlx)?;
    Ok(columns.join(", "))
}

/// What COPY gives of one row, or of the header: with the end of a line that RFC 4180 has.
pub(super) fn line(row: &[u8]) -> Vec<u8> {
    let row = row.strip_suffix(b"\n").unwrap_or(row);
    let mut line = Vec::with_capacity(row.len() + 2);
    line.extend_from_slice(row);
    line.extend_from_slice(b"\r\n");
    line
}
