-- A node's run says at its start after how much silence it is given up, and how it is settled then. Nobody chooses that for another's
-- run: a node's id is known to itself alone, as the application's role can't read the tables that have it.

alter table tenancy.quota_nodes
  add column silence interval not null default '30 seconds' check (silence between '1 second' and '1 day'),
  add column released boolean not null default false;  -- at its end, what it held can be leased again

drop function tenancy.quota_node_start();
drop function tenancy.quota_reap(interval, boolean);
drop function tenancy.quota_node_end(uuid, boolean, boolean);

create function tenancy.quota_node_start(its_silence interval, its_release boolean) returns uuid
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  insert into tenancy.quota_nodes (silence, released) values (its_silence, its_release) returning id;
end;
revoke all on function tenancy.quota_node_start(interval, boolean) from public;
grant execute on function tenancy.quota_node_start(interval, boolean) to tenancy_app, tenancy_admin;

-- What the run had leased and neither used nor returned is settled as lost: it may have been spent. If it chose so it goes back
-- instead, and may then be spent twice.
create function tenancy.quota_node_settle(node uuid, was_reaped boolean) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare release boolean;
begin
  update tenancy.quota_nodes n set ended_at = clock_timestamp(), reaped = was_reaped where n.id = node and n.ended_at is null returning n.released into release;
  if not found then return; end if;
  perform from tenancy.quota_counters c join tenancy.quota_leases l using (tenant_id, metric, period_start)
    where l.node_id = node and l.granted > l.returned + l.used order by c.tenant_id, c.metric, c.period_start for update of c;
  with open as (
    select l.tenant_id, l.metric, l.period_start, l.granted - l.returned - l.used as units from tenancy.quota_leases l where l.node_id = node and l.granted > l.returned + l.used
  )
  update tenancy.quota_counters c set lost = c.lost + case when release then 0 else o.units end, granted = c.granted - case when release then o.units else 0 end
    from open o where c.tenant_id = o.tenant_id and c.metric = o.metric and c.period_start = o.period_start;
  delete from tenancy.quota_leases l where l.node_id = node;
end $$;
revoke all on function tenancy.quota_node_settle(uuid, boolean) from public;

-- For a node: its run is over.
create function tenancy.quota_node_end(node uuid) returns void
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  select tenancy.quota_node_settle(node, false);
end;
revoke all on function tenancy.quota_node_end(uuid) from public;
grant execute on function tenancy.quota_node_end(uuid) to tenancy_app, tenancy_admin;

-- Ends the runs that have been silent for longer than they said. Any node may call it.
create function tenancy.quota_reap() returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare node uuid; n bigint := 0;
begin
  for node in select q.id from tenancy.quota_nodes q where q.ended_at is null and q.heartbeat_at < clock_timestamp() - q.silence for update skip locked loop
    perform tenancy.quota_node_settle(node, true);
    n := n + 1;
  end loop;
  return n;
end $$;
revoke all on function tenancy.quota_reap() from public;
grant execute on function tenancy.quota_reap() to tenancy_app, tenancy_admin;
