-- New ids for a clone's rows: which values are references though no foreign key says so, and what makes ids new.

create table tenancy.reference_columns (
  rel regclass not null,
  col name not null,
  path text not null default '',                     -- a jsonpath where the column is JSONB
  refers regclass not null,
  primary key (rel, col, path)
);
grant select on tenancy.reference_columns to tenancy_admin;

-- Declares a reference: a uuid, uuid[] or integer column that holds keys of `refers`, or where in a JSONB column such uuids are.
create procedure tenancy.declare_reference(rel regclass, col name, path text, refers regclass)
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare kind oid; keys int;
begin
  select a.atttypid into kind from pg_attribute a
   where a.attrelid = rel and a.attname = col and a.attnum > 0 and not a.attisdropped and a.attgenerated = '';
  if kind is null then
    raise exception 'tenancy.declare_reference: % has no column % that is written', rel, col using errcode = '42703';
  end if;
  loop
    exit when not exists (select from pg_type t where t.oid = kind and t.typtype = 'd');
    select t.typbasetype into kind from pg_type t where t.oid = kind;
  end loop;
  if kind not in ('uuid'::regtype, 'uuid[]'::regtype, 'smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'jsonb'::regtype) then
    raise exception 'tenancy.declare_reference: %.% must be a uuid, uuid[], an integer or jsonb', rel, col using errcode = '42804';
  elsif (kind = 'jsonb'::regtype) <> (path is not null) then
    raise exception 'tenancy.declare_reference: a jsonb column needs a path, ''$.links[*].id'', and no other column has one' using errcode = '22023';
  end if;
  perform path::jsonpath; -- an error where it is none
  select count(*) into keys from pg_constraint k, unnest(k.conkey) num
   where k.conrelid = refers and k.contype = 'p' and not exists (
     select from pg_policy p join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass
        and d.refobjid = refers and d.refobjsubid = num where p.polrelid = refers and p.polname = 'tenancy_fence');
  if keys <> 1 then
    raise exception 'tenancy.declare_reference: % must be protected, with a primary key of one column beside the tenant''s', refers using errcode = '22023';
  end if;
  insert into tenancy.reference_columns (rel, col, path, refers)
    values (declare_reference.rel, declare_reference.col, coalesce(declare_reference.path, ''), declare_reference.refers)
    on conflict on constraint reference_columns_pkey do update set refers = excluded.refers;
end $$;
revoke all on procedure tenancy.declare_reference(regclass, name, text, regclass) from public;

-- The new id of an old one: the same each time for one secret, and not to be guessed without it. One of version 7 keeps its time, so that rows
-- stay in their order; any other becomes one of version 8.
create function tenancy.renewed(secret bytea, old uuid) returns uuid
  language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $$
declare was bytea := uuid_send(old); h bytea := substring(sha256(secret || was) for 16); version int := 8;
begin
  if get_byte(was, 6) >> 4 = 7 then
    h := substring(was for 6) || substring(h from 7);
    version := 7;
  end if;
  return encode(set_byte(set_byte(h, 6, (get_byte(h, 6) & 15) | (version << 4)), 8, (get_byte(h, 8) & 63) | 128), 'hex')::uuid;
end $$;
revoke all on function tenancy.renewed(bytea, uuid) from public;
grant execute on function tenancy.renewed(bytea, uuid) to tenancy_restore;

-- All UUIDs in a text, however they are written.
create function tenancy.ids_in(doc text) returns uuid[]
  language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
  return (select array_agg(distinct r[1]::uuid) from regexp_matches(doc, '([0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12})', 'gi') r);
revoke all on function tenancy.ids_in(text) from public;
grant execute on function tenancy.ids_in(text) to tenancy_restore, tenancy_app;

-- Puts other ids in the place of some: where they stand between two such marks, in lower or in upper case.
create function tenancy.swap_ids(doc text, these uuid[], those uuid[], mark text) returns text
  language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  for n in 1 .. coalesce(cardinality(these), 0) loop
    doc := replace(doc, mark || these[n] || mark, mark || those[n] || mark);
    doc := replace(doc, mark || upper(these[n]::text) || mark, mark || upper(those[n]::text) || mark);
  end loop;
  return doc;
end $$;
revoke all on function tenancy.swap_ids(text, uuid[], uuid[], text) from public;
grant execute on function tenancy.swap_ids(text, uuid[], uuid[], text) to tenancy_restore, tenancy_app;

-- Takes numbers from the sequence behind a column.
create function tenancy.next_values(rel text, col name, many bigint) returns setof bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query select nextval(pg_get_serial_sequence(rel, col)::regclass) from generate_series(1, many);
end $$;
revoke all on function tenancy.next_values(text, name, bigint) from public;
grant execute on function tenancy.next_values(text, name, bigint) to tenancy_restore;
