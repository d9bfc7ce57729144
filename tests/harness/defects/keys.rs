//! Of keys, foreign keys and indexes.

use super::{Defect, hidden, shown};

/// One defect each.
pub(super) const DEFECTS: &[Defect] = &[
    hidden("primary-key-missing", "alter table entries drop constraint entries_pkey"),
    shown("primary-key-without-tenant", "alter table entries drop constraint entries_pkey, add primary key (id, side)"),
    shown("unique-without-tenant", "alter table notes add unique (body)"),
    shown("unique-without-tenant", "create unique index on notes (lower(body))"),
    hidden("unique-without-tenant", "create unique index on notes (body) include (tenant_id)"),
    shown("exclusion-without-tenant", "alter table notes add exclude using btree (body with =)"),
    shown(
        "foreign-key-without-tenant",
        "alter table notes add unique (id); alter table comments drop constraint comments_tenant_id_note_id_fkey, add foreign key (note_id) references notes (id)",
    ),
    hidden(
        "foreign-key-misaligned",
        "alter table comments add other_id uuid, add foreign key (other_id, tenant_id) references notes (tenant_id, id)",
    ),
    shown(
        "foreign-key-cascade-crosses",
        "alter table notes add unique (id); alter table comments drop constraint comments_tenant_id_note_id_fkey, add foreign key (note_id) references notes (id) on delete cascade",
    ),
    hidden(
        "foreign-key-sets-tenant",
        "alter table comments drop constraint comments_tenant_id_note_id_fkey, add foreign key (tenant_id, note_id) references notes (tenant_id, id) on delete set null",
    ),
    hidden(
        "foreign-key-from-global",
        "alter table notes add unique (id); create table featured (note_id uuid primary key references notes (id)); grant select, insert on featured to tenancy_app",
    ),
    hidden(
        "foreign-key-unchecked",
        "alter table comments drop constraint comments_tenant_id_note_id_fkey, add foreign key (tenant_id, note_id) references notes (tenant_id, id) not valid",
    ),
    hidden("foreign-key-unchecked", "alter table comments disable trigger all"),
    hidden("index-tenant-not-first", "create index on notes (body)"),
    hidden("statistics-extended", "create statistics mixed on tenant_id, body from notes"),
];
