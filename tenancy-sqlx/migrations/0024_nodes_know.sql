-- The nodes that follow the catalog, and what each has heard of it. Who raises a fence goes on as soon as all have heard: it need not wait
-- out how long one might serve without hearing anything.
--
-- A node is in here before it serves anything from memory, and as long as it does. Its id is known to itself alone, as the application's role
-- can't read the table: nobody says for another that it has heard.
create table tenancy.catalog_nodes (
  id uuid primary key,
  heard pg_snapshot not null,           -- it knows all changes that this snapshot shows
  staleness interval not null check (staleness between '0' and '1 hour'),  -- how long it may serve without hearing anything
  alive_until timestamptz not null      -- from then on it serves nothing without being in here anew
);
revoke all on tenancy.catalog_nodes from public;

-- The new one makes sure that the node is in there. One of before, which does not say who it is, can ask no more, and so serves nothing
-- from memory.
drop function tenancy.catalog_changes(xid8);
create function tenancy.catalog_changes(since xid8, of_node uuid)
  returns table (horizon xid8, heard pg_snapshot, listed boolean, id uuid, version bigint, fenced boolean)
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select pg_snapshot_xmin(pg_current_snapshot()), pg_current_snapshot(),
         exists (select from tenancy.catalog_nodes n where n.id = of_node and n.alive_until > clock_timestamp()), t.id, t.version, t.status <> 'active'
    from (values (1)) one left join tenancy.tenants t on t.changed_xid >= since and t.changed_xid < pg_snapshot_xmax(pg_current_snapshot());
end;
revoke all on function tenancy.catalog_changes(xid8, uuid) from public;
grant execute on function tenancy.catalog_changes(xid8, uuid) to tenancy_app, tenancy_admin;

-- For a node: what it has heard, and now goes by. It says so again within 10 s.
create function tenancy.catalog_heard(of_node uuid, what pg_snapshot, at_most interval) returns void
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  delete from tenancy.catalog_nodes n where n.alive_until < clock_timestamp() - interval '1 hour';
  insert into tenancy.catalog_nodes as n (id, heard, staleness, alive_until) values (of_node, what, at_most, clock_timestamp() + interval '30 seconds' + at_most)
    on conflict (id) do update set heard = excluded.heard, staleness = excluded.staleness, alive_until = excluded.alive_until;
end;
revoke all on function tenancy.catalog_heard(uuid, pg_snapshot, interval) from public;
grant execute on function tenancy.catalog_heard(uuid, pg_snapshot, interval) to tenancy_app, tenancy_admin;

-- For a node that serves no more.
create function tenancy.catalog_left(of_node uuid) returns void
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  delete from tenancy.catalog_nodes n where n.id = of_node;
end;
revoke all on function tenancy.catalog_left(uuid) from public;
grant execute on function tenancy.catalog_left(uuid) to tenancy_app, tenancy_admin;

-- For how much longer than since it asks a fence has to be waited for at the most: until a node that has not heard of the tenant's last
-- change may serve nothing any more. Null where all have.
create function tenancy.catalog_unheard(of_tenant uuid) returns interval
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select max(n.staleness) from tenancy.catalog_nodes n, tenancy.tenants t
   where t.id = of_tenant and n.alive_until > clock_timestamp() and not pg_visible_in_snapshot(t.changed_xid, n.heard);
end;
revoke all on function tenancy.catalog_unheard(uuid) from public;
grant execute on function tenancy.catalog_unheard(uuid) to tenancy_admin;
