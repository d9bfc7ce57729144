-- The sealed mode: which tenant a transaction serves is told by a signed, short-lived token, once, and is kept where the application's
-- role can't write. Run by a superuser, in one transaction; safe to run again.
do $$
begin
  if not exists (select from pg_roles where rolname = 'tenancy_sealer') then
    begin
      create role tenancy_sealer nologin noinherit;
    exception when duplicate_object or unique_violation then null;
    end;
  end if;
end $$;

-- The keys, as the two blocks that HMAC-SHA-256 begins its hashes with. 'previous' is also accepted, so that a key can be rotated.
create schema if not exists tenancy_private;
create table if not exists tenancy_private.seal_keys (
  slot text primary key check (slot in ('current', 'previous')),
  ipad bytea not null check (length(ipad) = 64),
  opad bytea not null check (length(opad) = 64)
);
revoke all on schema tenancy_private from public;
grant usage on schema tenancy, tenancy_private to tenancy_sealer;
grant select on tenancy_private.seal_keys to tenancy_sealer;

-- Where the tenant is kept. A custom setting could be SET by anybody; this one of PostgreSQL's own is text, may be set by superusers only
-- and by whom they let, and names C functions whose errors get a backtrace: none is called tenancy_….
grant set on parameter backtrace_functions to tenancy_sealer;
grant execute on function pg_catalog.set_config(text, text, boolean) to tenancy_sealer;
-- The application's sessions share one login, which may ask what its other sessions run just now: that text has their tokens in it.
revoke execute on function pg_catalog.pg_stat_get_activity(integer) from public;
revoke execute on function pg_catalog.pg_stat_get_backend_activity(integer) from public;

create or replace function tenancy.current_tenant() returns uuid
  language sql stable parallel safe cost 1
  return nullif(pg_catalog.substr(pg_catalog.current_setting('backtrace_functions'), 9), '')::uuid;

-- Token: <uuid>.<seconds of the epoch, 10 digits>.<hex of HMAC-SHA-256 over what is before>.
create or replace function tenancy.enter(token text) returns void
  language plpgsql volatile parallel unsafe security definer set search_path = pg_catalog, pg_temp as $$
declare
  told bytea; ip bytea; op bytea; genuine boolean := false;
begin
  if token is null or token !~ '^[0-9a-f-]{36}\.[0-9]{10}\.[0-9a-f]{64}$' then
    raise exception 'tenancy: not a token' using errcode = '28000';
  end if;
  told := decode(substr(token, 49), 'hex');
  for ip, op in select k.ipad, k.opad from tenancy_private.seal_keys k order by k.slot loop
    -- Both sides are hashed once more, so that how long the comparison takes tells nothing about the right one.
    genuine := genuine or sha256(op || told) = sha256(op || sha256(op || sha256(ip || convert_to(substr(token, 1, 47), 'UTF8'))));
  end loop;
  if not genuine then
    raise exception 'tenancy: the token is not signed with a key of this database' using errcode = '28000';
  end if;
  if substr(token, 38, 10)::bigint < extract(epoch from clock_timestamp()) then
    raise exception 'tenancy: the token has expired' using errcode = '28000';
  end if;
  if current_setting('backtrace_functions') <> '' then
    raise exception 'tenancy: this transaction serves a tenant already' using errcode = '28000';
  end if;
  -- What was PREPAREd by a statement outlives its transaction, and could run under the name of another tenant's statement. The error
  -- is one that makes the kit close this connection and take another.
  if exists (select from pg_prepared_statements where from_sql) then
    raise exception 'tenancy: a statement was left PREPAREd in this session' using errcode = '08006';
  end if;
  perform set_config('backtrace_functions', 'tenancy_' || replace(substr(token, 1, 36), '-', ''), true);
end $$;
alter function tenancy.enter(text) owner to tenancy_sealer;
revoke all on function tenancy.enter(text) from public;
grant execute on function tenancy.enter(text) to tenancy_app;
