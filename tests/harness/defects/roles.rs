//! Of roles, what they own, and what they were granted.

use super::{Defect, hidden, shown};

/// One defect each.
pub(super) const DEFECTS: &[Defect] = &[
    hidden("app-superuser", "alter role {app} superuser"),
    hidden("app-bypassrls", "alter role {app} bypassrls"),
    hidden("app-createrole", "alter role {app} createrole"),
    hidden("app-createdb", "alter role {app} createdb"),
    hidden("app-replication", "alter role {app} replication"),
    hidden("app-becomes-bypass", "alter role {other} bypassrls; grant {other} to {app}"),
    hidden("app-becomes-bypass", "grant tenancy_admin to {other}; grant {other} to {app}"),
    hidden("app-becomes-owner", "grant tenancy_owner to {app}"),
    hidden("app-member-of-predefined", "grant pg_read_all_data to {app}"),
    hidden("app-member-of-other", "grant {other} to {app}"),
    hidden("app-admin-of-role", "grant {other} to {app} with admin option"),
    hidden("app-owns-table", "alter table notes owner to {app}"),
    hidden("app-owns-function", "create function plain() returns int language sql return 1; alter function plain() owner to {app}"),
    hidden("app-owns-schema", "create schema theirs authorization {app}"),
    hidden("app-owns-database", "do $$ begin execute format('alter database %I owner to {app}', current_database()); end $$"),
    hidden("default-tenant-role", "alter role {app} set tenancy.tenant_id = '018f3b1c-0000-7000-8000-000000000001'"),
    shown(
        "default-tenant-database",
        "do $$ begin execute format('alter database %I set tenancy.tenant_id = %L', current_database(), (select id from tenancy.tenants limit 1)); end $$",
    ),
    hidden("default-session-setting", "alter role {app} set row_security = off"),
    hidden(
        "search-path-writable",
        "create schema theirs; grant create, usage on schema theirs to {app}; alter role {app} set search_path = theirs, public",
    ),
    shown("grant-truncate", "grant truncate on notes to tenancy_app"),
    hidden("grant-references", "grant references on notes to tenancy_app"),
    hidden("grant-trigger", "grant trigger on notes to tenancy_app"),
    hidden("grant-option", "grant select on notes to tenancy_app with grant option"),
    hidden("grant-to-public", "grant select on notes to public"),
    hidden("grant-to-bypassing", "alter role {other} bypassrls; grant select on notes to {other}"),
    shown("grant-schema-create", "grant create on schema public to tenancy_app"),
    shown("grant-database-create", "do $$ begin execute format('grant create on database %I to tenancy_app', current_database()); end $$"),
    shown("grant-database-temp", "do $$ begin execute format('grant temporary on database %I to public', current_database()); end $$"),
    hidden("default-privileges", "alter default privileges for role tenancy_owner in schema public grant select on tables to tenancy_app"),
    shown("function-set-config", "grant execute on function set_config(text, text, boolean) to public"),
    shown("function-stat-activity", "grant execute on function pg_stat_get_activity(integer) to public"),
    hidden("function-stat-activity", "grant execute on function pg_stat_get_backend_activity(integer) to tenancy_app"),
    shown("function-file-access", "grant execute on function pg_read_file(text) to tenancy_app"),
    hidden("function-file-access", "grant execute on function lo_import(text) to public"),
    hidden("function-dblink", "create function dblink_connect(text) returns text language sql return 'connected'"),
    hidden("parameter-set", "grant set on parameter session_replication_role to {app}"),
];
