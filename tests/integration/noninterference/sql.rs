//! Steps through SQL. No statement says which tenant it means: row-level security has to.

use std::fmt::Write as _;

use futures_util::future::BoxFuture;
use rand::Rng;
use sqlx::{AssertSqlSafe, Row};
use tenancy_sqlx::{Isolation, TenantTx, from_sqlx};
use uuid::Uuid;

use super::player::Player;

/// A value of a statement.
#[derive(Debug, Clone)]
enum Arg {
    Id(Uuid),
    Text(String),
    Int(i64),
}

/// A part of a transaction.
#[derive(Debug)]
enum Part {
    Run(&'static str, Vec<Arg>),
    /// Kept, or undone.
    Savepoint(Vec<Part>, bool),
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Commit,
    Rollback,
    Drop,
}

/// What the server's tables show, the newest things first.
const SERVER_READS: &[&str] = &[
    "select to_jsonb(p)::text from projects p order by id desc limit 20",
    "select to_jsonb(d)::text from documents d order by id desc limit 20",
    "select count(*)::text || ' ' || count(distinct document_id) || ' ' || coalesce(sum(size), 0) from attachments",
    "select concat_ws(' ', name, size, sha256, content_type) from attachments order by document_id desc, name collate \"C\" limit 20",
    "select concat_ws(' ', actor, key, status, etag, location, body) from idempotency_keys order by actor, key collate \"C\" limit 30",
    "select concat_ws(' ', actor_kind, actor_id, action, target, outcome, detail) from tenancy.audit_events order by at desc, id limit 20",
    "select count(*)::text || ' ' || count(distinct tenant_id) from projects",
    "select p.name || '/' || d.title from projects p join documents d on d.project_id = p.id order by d.id desc limit 20",
    "select concat_ws(' ', slug, name, status, branding, flags, plan, version) from tenancy.tenants",
    "select max(version)::text || ' ' || max(length(description)) from projects",
];

/// Every row of the server's tables.
const SERVER_ROWS: &[&str] = &[
    "select to_jsonb(p)::text from projects p order by id",
    "select to_jsonb(d)::text from documents d order by id",
    "select concat_ws(' ', name, size, sha256, content_type) from attachments order by document_id, name collate \"C\"",
    "select concat_ws(' ', actor, key, status, etag, location, body) from idempotency_keys order by actor, key collate \"C\"",
    "select concat_ws(' ', actor_kind, actor_id, action, target, outcome, detail) from tenancy.audit_events order by at, id",
];

/// Every row of the tests' own tables.
const KIT_ROWS: &[&str] = &[
    "select to_jsonb(n)::text from notes n order by body collate \"C\", id",
    "select to_jsonb(c)::text from comments c order by body collate \"C\", id",
    "select to_jsonb(e)::text from entries e order by id, side",
];

impl Player {
    /// Reads the server's tables.
    pub(super) async fn server_step(&mut self) -> String {
        let reads: Vec<_> = (0..self.rng.random_range(1..3)).map(|_| self.pick_static(SERVER_READS)).collect();
        self.seen(true, &reads).await
    }

    /// All that is left of it in both databases.
    pub(super) async fn everything(&mut self) -> String {
        let mut text = self.seen(true, SERVER_ROWS).await;
        text.push_str(&self.seen(false, KIT_ROWS).await);
        text
    }

    async fn seen(&self, server: bool, reads: &[&'static str]) -> String {
        let (db, cx) = if server { (&self.server, &self.server_cx) } else { (&self.kit, &self.kit_cx) };
        let parts: Vec<Part> = reads.iter().map(|sql| Part::Run(sql, vec![])).collect();
        let mut text = String::new();
        match db.read(cx).await {
            Ok(mut tx) => perform(&mut tx, &parts, &mut text).await,
            Err(error) => text = format!("begin: {} {error}", error.kind()),
        }
        text
    }

    /// A transaction on the tests' own tables.
    pub(super) async fn kit_step(&mut self) -> String {
        let parts = self.parts(0);
        let end = match self.rng.random_range(0..10) {
            0..7 => End::Commit,
            7 => End::Rollback,
            _ => End::Drop,
        };
        let how = self.rng.random_range(0..10);
        let tx = match how {
            0..2 => self.kit.read(&self.kit_cx).await,
            2 => self.kit.begin_with(&self.kit_cx, Isolation::RepeatableRead).await,
            _ => self.kit.begin(&self.kit_cx).await,
        };
        let mut text = format!("transaction {how} {end:?}\n");
        let mut tx = match tx {
            Ok(tx) => tx,
            Err(error) => return text + &format!("begin: {} {error}", error.kind()),
        };
        perform(&mut tx, &parts, &mut text).await;
        let ended = match end {
            End::Commit => tx.commit().await,
            End::Rollback => tx.rollback().await,
            End::Drop => {
                drop(tx);
                Ok(())
            }
        };
        if let Err(error) = ended {
            let _ = write!(text, "end: {} {error}", error.kind());
        }
        text
    }

    fn pick_static(&mut self, of: &[&'static str]) -> &'static str {
        of[self.rng.random_range(0..of.len())]
    }

    fn parts(&mut self, depth: usize) -> Vec<Part> {
        let count = self.rng.random_range(1..4);
        (0..count)
            .map(|_| if depth < 2 && self.chance(18) { Part::Savepoint(self.parts(depth + 1), self.chance(60)) } else { self.statement() })
            .collect()
    }

    /// One of the few ids that every tenant uses.
    fn shared_id(&mut self) -> Arg {
        Arg::Id(Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0000 + self.rng.random_range(0..24)))
    }

    /// One of the few texts that every tenant writes.
    fn word(&mut self) -> Arg {
        Arg::Text(self.pick(&["acorn", "birch", "cedar", "dogwood", "elm", "12", "-7", "fig tree", "gorse"]).to_owned())
    }

    fn unique(&mut self) -> Arg {
        Arg::Text(self.fresh())
    }

    fn number(&mut self, below: i64) -> Arg {
        Arg::Int(self.rng.random_range(0..below))
    }

    fn stranger_id(&mut self) -> Arg {
        Arg::Id(self.strangers[self.rng.random_range(0..self.strangers.len())])
    }

    fn statement(&mut self) -> Part {
        let (sql, args) = match self.rng.random_range(0..100) {
            0..32 => self.write_notes(),
            32..56 => self.read_notes(),
            56..70 => self.comments(),
            70..82 => self.entries(),
            82..90 => self.strangers_rows(),
            _ => self.mistake(),
        };
        Part::Run(sql, args)
    }

    fn write_notes(&mut self) -> (&'static str, Vec<Arg>) {
        match self.rng.random_range(0..11) {
            0..3 => ("insert into notes (id, body) values ($1, $2)", vec![self.shared_id(), self.word()]),
            3 => ("insert into notes (body) values ($1) returning to_jsonb(notes)::text", vec![self.unique()]),
            4 => (
                "insert into notes (id, body) values ($1, $2) on conflict (tenant_id, id)
                 do update set body = left(notes.body || '+' || excluded.body, 40) returning body",
                vec![self.shared_id(), self.word()],
            ),
            5 => ("insert into notes (id, body) values ($1, $2) on conflict do nothing", vec![self.shared_id(), self.word()]),
            6 => ("update notes set body = $2 where id = $1", vec![self.shared_id(), self.word()]),
            7 => (
                "with changed as (update notes set body = left(body || '!', 40) where left(body, 3) = left($1, 3) returning body, id)
                 select to_jsonb(c)::text from changed c order by body collate \"C\", id",
                vec![self.word()],
            ),
            8 => ("delete from notes where id = $1", vec![self.shared_id()]),
            9 => (
                "delete from notes where (tenant_id, id) in (select tenant_id, id from notes order by body collate \"C\", id limit 3)",
                vec![],
            ),
            _ => (
                "merge into notes n using (values ($1::uuid, $2::text)) v (id, body) on n.id = v.id
                 when matched and n.body = v.body then delete
                 when matched then update set body = v.body
                 when not matched then insert (id, body) values (v.id, v.body)",
                vec![self.shared_id(), self.word()],
            ),
        }
    }

    fn read_notes(&mut self) -> (&'static str, Vec<Arg>) {
        match self.rng.random_range(0..9) {
            0..3 => ("select to_jsonb(n)::text from notes n order by body collate \"C\", id limit 30", vec![]),
            3 => ("select concat_ws(' ', count(*), count(distinct tenant_id), min(body), max(length(body))) from notes", vec![]),
            4 => ("select body from notes where id = $1 for update", vec![self.shared_id()]),
            // An error of a row that the tenant can't see would tell of it.
            5 => ("select count(*)::text from notes where 100 / (length(body) - $1) is not null", vec![self.number(9)]),
            6 => ("select count(*)::text from notes where body ~ '^-?[0-9]+$' and 12 / (body::int + $1) <> 0", vec![self.number(9)]),
            7 => ("select exists (select from notes where body = $1)::text", vec![self.word()]),
            _ => (
                "select concat_ws(' ', body, count(*)) from notes group by body order by count(*) desc, body collate \"C\" limit 10",
                vec![],
            ),
        }
    }

    fn comments(&mut self) -> (&'static str, Vec<Arg>) {
        match self.rng.random_range(0..7) {
            0..2 => ("insert into comments (note_id, body) values ($1, $2) returning to_jsonb(comments)::text", {
                vec![self.shared_id(), self.unique()]
            }),
            2 => ("insert into comments (id, note_id, body) values ($1, $2, $3)", vec![self.shared_id(), self.shared_id(), self.word()]),
            3 => ("update comments set note_id = $2 where id = $1", vec![self.shared_id(), self.shared_id()]),
            4 => (
                "select c.body || ' on ' || n.body from comments c join notes n on n.id = c.note_id
                  order by c.body collate \"C\", c.id limit 30",
                vec![],
            ),
            5 => ("select count(*)::text from comments c where not exists (select from notes n where n.id = c.note_id)", vec![]),
            _ => ("delete from comments where id = $1 or left(body, 5) = 'fresh'", vec![self.shared_id()]),
        }
    }

    fn entries(&mut self) -> (&'static str, Vec<Arg>) {
        match self.rng.random_range(0..6) {
            0..3 => {
                let side = self.pick(&["debit", "credit", "credit", "neither"]).to_owned();
                ("insert into entries (id, side) values ($1, $2)", vec![self.number(40), Arg::Text(side)])
            }
            3 => ("select string_agg(id || side, ' ' order by id, side) from entries", vec![]),
            4 => ("delete from entries where id < $1", vec![self.number(30)]),
            _ => ("insert into entries (id, side) select g, 'debit' from generate_series($1, $1 + 3) g", vec![self.number(40)]),
        }
    }

    /// Another tenant's rows, by name.
    fn strangers_rows(&mut self) -> (&'static str, Vec<Arg>) {
        match self.rng.random_range(0..6) {
            0 => {
                let args = vec![self.stranger_id(), self.shared_id(), self.word()];
                ("insert into notes (tenant_id, id, body) values ($1, $2, $3)", args)
            }
            1 => {
                let args = vec![self.stranger_id(), self.shared_id(), self.word()];
                ("insert into notes (tenant_id, id, body) values ($1, $2, $3) on conflict (tenant_id, id) do update set body = 'x'", args)
            }
            2 => ("update notes set tenant_id = $1 where id = $2", vec![self.stranger_id(), self.shared_id()]),
            3 => ("delete from notes where tenant_id = $1", vec![self.stranger_id()]),
            4 => ("select body from notes where tenant_id = $1", vec![self.stranger_id()]),
            _ => ("select concat_ws(' ', slug, name, status, version) from tenancy.tenants where id = $1 or status = 'active'", {
                vec![self.stranger_id()]
            }),
        }
    }

    fn mistake(&mut self) -> (&'static str, Vec<Arg>) {
        let sql = self.pick_static(&[
            "select 1 / 0",
            "selec",
            "select * from nothing",
            "insert into notes (body) values (null)",
            "insert into notes (id, body) select id, null from notes order by body collate \"C\", id limit 1",
            "select 'x'::int",
            "truncate notes",
            "drop table notes",
            "insert into entries (id, side) select id, side from entries order by id, side limit 2",
            "update comments set id = (select id from comments order by body collate \"C\", id limit 1) where left(body, 5) <> 'fresh'",
            "select count(*) from tenancy.tenants, pg_sleep(0.002)",
        ]);
        (sql, vec![])
    }
}

/// Runs the parts in turn, also after one that fails, and writes what was said.
fn perform<'a>(tx: &'a mut TenantTx, parts: &'a [Part], text: &'a mut String) -> BoxFuture<'a, ()> {
    Box::pin(async move {
        for part in parts {
            match part {
                Part::Run(sql, args) => run(tx, sql, args, text).await,
                Part::Savepoint(parts, kept) => match tx.savepoint().await {
                    Ok(mut savepoint) => {
                        text.push_str("savepoint\n");
                        perform(&mut savepoint, parts, text).await;
                        let ended = if *kept {
                            savepoint.release().await
                        } else {
                            drop(savepoint);
                            Ok(())
                        };
                        let _ = writeln!(
                            text,
                            "kept: {kept} {}",
                            ended.map_or_else(|error| format!("{} {error}", error.kind()), |()| "ok".into())
                        );
                    }
                    Err(error) => {
                        let _ = writeln!(text, "savepoint: {} {error}", error.kind());
                    }
                },
            }
        }
    })
}

async fn run(tx: &mut TenantTx, sql: &'static str, args: &[Arg], text: &mut String) {
    let _ = writeln!(text, "{sql} {args:?}");
    let query = args.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, arg| match arg {
        Arg::Id(id) => query.bind(*id),
        Arg::Text(text) => query.bind(text.clone()),
        Arg::Int(number) => query.bind(*number),
    });
    match answers(query, tx).await {
        Ok(lines) => text.push_str(&lines),
        Err(error) => {
            if let sqlx::Error::Database(db) = &error {
                let db = db.downcast_ref::<sqlx::postgres::PgDatabaseError>();
                let _ = writeln!(
                    text,
                    "{} {} | {:?} | {:?} | {:?} | {:?}",
                    db.code(),
                    db.message(),
                    db.detail(),
                    db.hint(),
                    db.constraint(),
                    db.table()
                );
            }
            let error = from_sqlx(error);
            let _ = writeln!(text, "{} {error}", error.kind());
        }
    }
}

/// Each row's first column, and how many rows were affected.
async fn answers(
    query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    tx: &mut TenantTx,
) -> Result<String, sqlx::Error> {
    use futures_util::TryStreamExt as _;
    use sqlx::Executor as _;
    let mut text = String::new();
    let mut answers = tx.fetch_many(query);
    while let Some(answer) = answers.try_next().await? {
        let _ = match answer {
            sqlx::Either::Left(done) => writeln!(text, "= {}", done.rows_affected()),
            sqlx::Either::Right(row) => writeln!(text, "- {}", row.try_get::<Option<String>, _>(0).unwrap_or_default().unwrap_or_default()),
        };
    }
    Ok(text)
}
