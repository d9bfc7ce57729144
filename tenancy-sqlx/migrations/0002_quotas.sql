-- Quotas: what each tenant may use, what it uses, and the units that nodes have leased ahead.
-- The application changes none of these tables itself: it calls the functions below, which act for the transaction's tenant, or for a
-- node's slots. `docs/quotas.md` tells the protocol.

create table tenancy.quotas (
  tenant_id uuid not null,
  metric text not null check (metric ~ '^[a-z0-9_.]{1,40}$'),
  kind text not null check (kind in ('gauge', 'counter', 'rate', 'concurrency')),
  "limit" bigint check ("limit" >= 0),                -- null: unlimited
  ceiling bigint check (ceiling >= 0),                -- what is enforced, compiled from limit and policy
  "window" text not null,
  burst bigint check (burst > 0),
  policy text not null,
  alert_at smallint[] not null,
  from_plan boolean not null,                         -- goes with the plan; else it is the tenant's own
  version bigint not null default 1,
  updated_at timestamptz not null default clock_timestamp(),
  changed_xid xid8 not null default pg_current_xact_id(),
  primary key (tenant_id, metric)
);
create index quotas_changed_xid_idx on tenancy.quotas (changed_xid);

create table tenancy.quota_gauges (
  tenant_id uuid not null,
  metric text not null,
  used bigint not null default 0 check (used >= 0),
  reserved bigint not null default 0 check (reserved >= 0),
  primary key (tenant_id, metric)
) with (fillfactor = 50);

-- Room kept for work that outlives a transaction, until it is settled or expires.
create table tenancy.quota_reservations (
  tenant_id uuid not null,
  id uuid not null default gen_random_uuid(),
  metric text not null,
  amount bigint not null check (amount > 0),
  expires_at timestamptz not null,
  primary key (tenant_id, id)
);
create index quota_reservations_expiry_idx on tenancy.quota_reservations (expires_at);

-- One run of one process. Ids are never used again, so a run that was given up can't be mistaken for the next one.
create table tenancy.quota_nodes (
  id uuid primary key default gen_random_uuid(),
  started_at timestamptz not null default clock_timestamp(),
  heartbeat_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,
  reaped boolean not null default false
);
create index quota_nodes_live_idx on tenancy.quota_nodes (heartbeat_at) where ended_at is null;

-- granted: units that are with nodes or spent; never more than the ceiling. lost: units of granted that went down with a node.
create table tenancy.quota_counters (
  tenant_id uuid not null,
  metric text not null,
  period_start timestamptz not null,
  granted bigint not null default 0 check (granted >= 0),
  used bigint not null default 0 check (used >= 0),
  lost bigint not null default 0 check (lost >= 0),
  primary key (tenant_id, metric, period_start),
  check (used + lost <= granted)
) with (fillfactor = 70);

-- The numbers of a lease only grow, so that a statement that is sent again changes nothing.
create table tenancy.quota_leases (
  tenant_id uuid not null,
  metric text not null,
  period_start timestamptz not null,
  node_id uuid not null references tenancy.quota_nodes,
  granted bigint not null default 0,
  returned bigint not null default 0 check (returned >= 0),
  used bigint not null default 0 check (used >= 0),
  primary key (tenant_id, metric, period_start, node_id),
  check (returned + used <= granted)
) with (fillfactor = 70);
create index quota_leases_node_idx on tenancy.quota_leases (node_id);

-- The key is what makes an alert happen once. A gauge has no period: its row goes when the level has fallen well below.
create table tenancy.quota_alerts (
  tenant_id uuid not null,
  metric text not null,
  period_start timestamptz not null,
  threshold smallint not null,                        -- percent of the limit
  used bigint not null,
  "limit" bigint not null,
  at timestamptz not null default clock_timestamp(),
  primary key (tenant_id, metric, period_start, threshold)
);

-- What somebody must be told, written in the transaction that made it so.
create table tenancy.outbox (
  id bigint generated always as identity primary key,
  tenant_id uuid,
  topic text not null check (topic ~ '^[a-z_]+(\.[a-z_]+)+$'),
  dedup_key text not null unique,
  payload jsonb not null,
  created_at timestamptz not null default clock_timestamp(),
  sent_at timestamptz
);
create index outbox_waiting_idx on tenancy.outbox (id) where sent_at is null;

-- One row for each minute in which something was used: of a counter how much, of a gauge the last level.
create table tenancy.usage (
  tenant_id uuid not null,
  metric text not null,
  at timestamptz not null,
  value bigint not null,
  primary key (tenant_id, metric, at)
) partition by range (at);
create table tenancy.usage_default partition of tenancy.usage default;
create table tenancy.usage_hours (tenant_id uuid not null, metric text not null, at timestamptz not null, value bigint not null, primary key (tenant_id, metric, at));
create table tenancy.usage_days (tenant_id uuid not null, metric text not null, at timestamptz not null, value bigint not null, primary key (tenant_id, metric, at));
-- How far the minutes have been rolled up.
create table tenancy.usage_rolled (resolution text primary key check (resolution in ('hour', 'day')), until timestamptz not null);
insert into tenancy.usage_rolled values ('hour', '-infinity'), ('day', '-infinity');

-- A tenant reads its own.
do $$
declare name text;
begin
  foreach name in array array['quotas', 'quota_gauges', 'quota_counters', 'quota_alerts', 'usage', 'usage_hours', 'usage_days'] loop
    execute format('alter table tenancy.%I enable row level security', name);
    execute format('create policy own on tenancy.%I for select to tenancy_app using (tenant_id = (select tenancy.current_tenant()))', name);
    execute format('grant select on tenancy.%I to tenancy_app, tenancy_admin', name);
  end loop;
  foreach name in array array['quota_reservations', 'quota_nodes', 'quota_leases', 'outbox', 'usage_default'] loop
    execute format('alter table tenancy.%I enable row level security', name);
    execute format('grant select on tenancy.%I to tenancy_admin', name);
  end loop;
end $$;
grant select on tenancy.usage_rolled to tenancy_app, tenancy_admin;
grant update (sent_at) on tenancy.outbox to tenancy_admin;

-- Tells the tenant's admins of the thresholds that `level` has reached; called in the transaction that changed it.
create function tenancy.quota_alert(of_tenant uuid, of_metric text, period timestamptz, level bigint) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
declare most bigint; percents smallint[]; percent smallint; key text;
begin
  select q."limit", q.alert_at into most, percents from tenancy.quotas q where q.tenant_id = of_tenant and q.metric = of_metric;
  if most is null or level = 0 then percents := '{}'; end if;
  foreach percent in array coalesce(percents, '{}') loop
    continue when level::numeric * 100 < most::numeric * percent;
    insert into tenancy.quota_alerts (tenant_id, metric, period_start, threshold, used, "limit")
      values (of_tenant, of_metric, period, percent, level, most) on conflict do nothing;
    continue when not found;
    -- A gauge alerts again after it was resolved, so its key also has the transaction.
    key := concat_ws(':', 'quota.threshold', of_tenant, of_metric, percent,
                     case when period = 'epoch' then pg_current_xact_id()::text else extract(epoch from period)::bigint::text end);
    insert into tenancy.outbox (tenant_id, topic, dedup_key, payload)
      values (of_tenant, 'quota.threshold', key, jsonb_build_object('metric', of_metric, 'threshold', percent, 'used', level, 'limit', most,
                                                                    'period_start', nullif(period, 'epoch')));
  end loop;
  -- Hysteresis: a tenth of the limit below the threshold, and at least one unit, so that one user who comes and goes alerts once.
  if period = 'epoch' then
    for percent in
      with gone as (
        delete from tenancy.quota_alerts a
         where a.tenant_id = of_tenant and a.metric = of_metric and a.period_start = 'epoch'
           and (most is null or level::numeric < most::numeric * a.threshold / 100 - greatest(most::numeric / 10, 1)) returning a.threshold)
      select g.threshold from gone g order by 1 desc
    loop
      insert into tenancy.outbox (tenant_id, topic, dedup_key, payload)
        values (of_tenant, 'quota.resolved', concat_ws(':', 'quota.resolved', of_tenant, of_metric, percent, pg_current_xact_id()),
                jsonb_build_object('metric', of_metric, 'threshold', percent, 'used', level, 'limit', most));
    end loop;
  end if;
end $$;
revoke all on function tenancy.quota_alert(uuid, text, timestamptz, bigint) from public;

-- Sets one quota of a tenant. A plan's never replaces the tenant's own. Returns whether anything changed.
create function tenancy.quota_set(of_tenant uuid, of_metric text, of_kind text, new_limit bigint, new_ceiling bigint, new_window text, new_burst bigint,
    new_policy text, new_alerts smallint[], plans boolean) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare changed boolean;
begin
  insert into tenancy.quotas as q (tenant_id, metric, kind, "limit", ceiling, "window", burst, policy, alert_at, from_plan)
    values (of_tenant, of_metric, of_kind, new_limit, new_ceiling, new_window, new_burst, new_policy, new_alerts, plans)
  on conflict (tenant_id, metric) do update
    set kind = excluded.kind, "limit" = excluded."limit", ceiling = excluded.ceiling, "window" = excluded."window", burst = excluded.burst,
        policy = excluded.policy, alert_at = excluded.alert_at, from_plan = excluded.from_plan, version = q.version + 1,
        updated_at = clock_timestamp(), changed_xid = pg_current_xact_id()
    where (q.from_plan or not excluded.from_plan)
      and (q.kind, q."limit", q.ceiling, q."window", q.burst, q.policy, q.alert_at, q.from_plan)
          is distinct from (excluded.kind, excluded."limit", excluded.ceiling, excluded."window", excluded.burst, excluded.policy, excluded.alert_at, excluded.from_plan);
  changed := found;
  if changed and of_kind = 'gauge' then
    perform tenancy.quota_alert(of_tenant, of_metric, 'epoch', g.used + g.reserved)
       from tenancy.quota_gauges g where g.tenant_id = of_tenant and g.metric = of_metric;
  end if;
  return changed;
end $$;
revoke all on function tenancy.quota_set(uuid, text, text, bigint, bigint, text, bigint, text, smallint[], boolean) from public;
grant execute on function tenancy.quota_set(uuid, text, text, bigint, bigint, text, bigint, text, smallint[], boolean) to tenancy_admin;

-- Lifts the quotas that a former plan gave and the present one does not.
create function tenancy.quota_lift(of_tenant uuid, but text[]) returns void
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  update tenancy.quotas q set "limit" = null, ceiling = null, burst = null, alert_at = '{}', version = q.version + 1, updated_at = clock_timestamp(), changed_xid = pg_current_xact_id()
   where q.tenant_id = of_tenant and q.from_plan and q.metric <> all (but) and q."limit" is not null;
end;
revoke all on function tenancy.quota_lift(uuid, text[]) from public;
grant execute on function tenancy.quota_lift(uuid, text[]) to tenancy_admin;

-- The tenant's own quota is dropped; the plan's takes its place at the next entitlement.
create function tenancy.quota_revert(of_tenant uuid, of_metric text) returns void
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  update tenancy.quotas q set from_plan = true, version = q.version + 1, updated_at = clock_timestamp(), changed_xid = pg_current_xact_id()
   where q.tenant_id = of_tenant and q.metric = of_metric;
end;
revoke all on function tenancy.quota_revert(uuid, text) from public;
grant execute on function tenancy.quota_revert(uuid, text) to tenancy_admin;

-- Gauges. Each of these is for the transaction's own tenant; call them last before COMMIT, since the row stays locked until then.

create function tenancy.gauge_level(of_tenant uuid, of_metric text, level bigint, taken bigint) returns void
  language sql set search_path = pg_catalog, pg_temp
begin atomic
  insert into tenancy.usage as u (tenant_id, metric, at, value) values (of_tenant, of_metric, date_trunc('minute', clock_timestamp()), level)
    on conflict (tenant_id, metric, at) do update set value = excluded.value;
  select tenancy.quota_alert(of_tenant, of_metric, 'epoch', taken);
end;
revoke all on function tenancy.gauge_level(uuid, text, bigint, bigint) from public;

-- Grows (or, with a negative delta, shrinks) a gauge. What shrinks always may. `done` is false, and nothing changed, above the ceiling.
create function tenancy.gauge_add(of_metric text, delta bigint, out done boolean, out used bigint, out reserved bigint, out "limit" bigint, out ceiling bigint)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant();
begin
  if mine is null then raise exception 'tenancy: a gauge belongs to a tenant' using errcode = '42501'; end if;
  select q."limit", q.ceiling into "limit", ceiling from tenancy.quotas q where q.tenant_id = mine and q.metric = of_metric;
  insert into tenancy.quota_gauges (tenant_id, metric) values (mine, of_metric) on conflict do nothing;
  update tenancy.quota_gauges g set used = greatest(g.used + delta, 0)
   where g.tenant_id = mine and g.metric = of_metric
     and (delta <= 0 or gauge_add.ceiling is null or g.used::numeric + g.reserved + delta <= gauge_add.ceiling)
  returning g.used, g.reserved into used, reserved;
  done := found;
  if done then
    perform tenancy.gauge_level(mine, of_metric, gauge_add.used, gauge_add.used + gauge_add.reserved);
  else
    select g.used, g.reserved into used, reserved from tenancy.quota_gauges g where g.tenant_id = mine and g.metric = of_metric;
  end if;
end $$;
revoke all on function tenancy.gauge_add(text, bigint) from public;
grant execute on function tenancy.gauge_add(text, bigint) to tenancy_app;

-- Keeps room for `amount` until it is settled, or for so long.
create function tenancy.gauge_reserve(of_metric text, amount bigint, lasts interval,
    out id uuid, out used bigint, out reserved bigint, out "limit" bigint, out ceiling bigint)
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant();
begin
  if mine is null then raise exception 'tenancy: a gauge belongs to a tenant' using errcode = '42501'; end if;
  select q."limit", q.ceiling into "limit", ceiling from tenancy.quotas q where q.tenant_id = mine and q.metric = of_metric;
  insert into tenancy.quota_gauges (tenant_id, metric) values (mine, of_metric) on conflict do nothing;
  update tenancy.quota_gauges g set reserved = g.reserved + amount
   where g.tenant_id = mine and g.metric = of_metric
     and (gauge_reserve.ceiling is null or g.used::numeric + g.reserved + amount <= gauge_reserve.ceiling)
  returning g.used, g.reserved into used, reserved;
  if found then
    insert into tenancy.quota_reservations (tenant_id, metric, amount, expires_at)
      values (mine, of_metric, amount, clock_timestamp() + lasts) returning quota_reservations.id into id;
    perform tenancy.quota_alert(mine, of_metric, 'epoch', gauge_reserve.used + gauge_reserve.reserved);
  else
    select g.used, g.reserved into used, reserved from tenancy.quota_gauges g where g.tenant_id = mine and g.metric = of_metric;
  end if;
end $$;
revoke all on function tenancy.gauge_reserve(text, bigint, interval) from public;
grant execute on function tenancy.gauge_reserve(text, bigint, interval) to tenancy_app;

-- Turns a reservation into `actual` units of use, at most as many as were reserved. False if it has expired or is another tenant's.
create function tenancy.gauge_settle(reservation uuid, actual bigint) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant(); of_metric text; kept bigint; level bigint; taken bigint;
begin
  delete from tenancy.quota_reservations r where r.tenant_id = mine and r.id = reservation returning r.metric, r.amount into of_metric, kept;
  if not found then return false; end if;
  if actual not between 0 and kept then
    raise exception 'tenancy: % units were reserved, and % can''t be settled', kept, actual using errcode = '22023';
  end if;
  update tenancy.quota_gauges g set reserved = g.reserved - kept, used = g.used + actual
   where g.tenant_id = mine and g.metric = of_metric returning g.used, g.used + g.reserved into level, taken;
  perform tenancy.gauge_level(mine, of_metric, level, taken);
  return true;
end $$;
revoke all on function tenancy.gauge_settle(uuid, bigint) from public;
grant execute on function tenancy.gauge_settle(uuid, bigint) to tenancy_app;

-- Gives back what reservations held that nobody settled in time.
create function tenancy.gauge_expire() returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare late record; n bigint := 0;
begin
  for late in
    with gone as (
      delete from tenancy.quota_reservations r using (
          select tenant_id, id from tenancy.quota_reservations where expires_at < clock_timestamp() limit 1000 for update skip locked) x
       where r.tenant_id = x.tenant_id and r.id = x.id returning r.tenant_id, r.metric, r.amount)
    select tenant_id, metric, sum(amount) as amount, count(*) as n from gone group by 1, 2 order by 1, 2
  loop
    update tenancy.quota_gauges g set reserved = g.reserved - late.amount where g.tenant_id = late.tenant_id and g.metric = late.metric;
    perform tenancy.quota_alert(g.tenant_id, g.metric, 'epoch', g.used + g.reserved) from tenancy.quota_gauges g where g.tenant_id = late.tenant_id and g.metric = late.metric;
    n := n + late.n;
  end loop;
  return n;
end $$;
revoke all on function tenancy.gauge_expire() from public;
grant execute on function tenancy.gauge_expire() to tenancy_app, tenancy_admin;

-- Sets a gauge to what was counted: to begin with, or where a host's rows changed without it.
create function tenancy.gauge_set(of_tenant uuid, of_metric text, level bigint) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare taken bigint;
begin
  insert into tenancy.quota_gauges as g (tenant_id, metric, used) values (of_tenant, of_metric, level)
    on conflict (tenant_id, metric) do update set used = excluded.used returning g.used + g.reserved into taken;
  perform tenancy.gauge_level(of_tenant, of_metric, level, taken);
end $$;
revoke all on function tenancy.gauge_set(uuid, text, bigint) from public;
grant execute on function tenancy.gauge_set(uuid, text, bigint) to tenancy_admin;

-- Counters.

create function tenancy.quota_node_start() returns uuid
  language sql security definer set search_path = pg_catalog, pg_temp
begin atomic
  insert into tenancy.quota_nodes default values returning id;
end;
revoke all on function tenancy.quota_node_start() from public;
grant execute on function tenancy.quota_node_start() to tenancy_app, tenancy_admin;

-- What these tenants' slots must know.
create function tenancy.quota_terms(of_tenants uuid[]) returns table (
    tenant_id uuid, metric text, kind text, "limit" bigint, ceiling bigint, "window" text, burst bigint, policy text, alert_at smallint[], version bigint)
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select q.tenant_id, q.metric, q.kind, q."limit", q.ceiling, q."window", q.burst, q.policy, q.alert_at, q.version from tenancy.quotas q where q.tenant_id = any (of_tenants);
end;
revoke all on function tenancy.quota_terms(uuid[]) from public;
grant execute on function tenancy.quota_terms(uuid[]) to tenancy_app, tenancy_admin;

-- The tenants whose quotas changed since, as `catalog_changes` tells of tenants.
create function tenancy.quota_changes(since xid8) returns table (horizon xid8, tenant_id uuid)
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select pg_snapshot_xmin(pg_current_snapshot()), q.tenant_id
    from (values (1)) one left join tenancy.quotas q on q.changed_xid >= since and q.changed_xid < pg_snapshot_xmax(pg_current_snapshot());
end;
revoke all on function tenancy.quota_changes(xid8) from public;
grant execute on function tenancy.quota_changes(xid8) to tenancy_app, tenancy_admin;

-- For a node: reports what it used and returns, and leases what it wants. All numbers are of the whole life of the lease, so a
-- statement that is sent again, because its reply was lost, changes nothing but what it asks anew.
--   want  how many more units the node would like; need  with fewer than these it gets none
-- A grant is at most the `divisor`-th part of what is left (and at least `need`), so that the last units are not all in one place.
create function tenancy.quota_lease(node uuid, of_tenants uuid[], metrics text[], periods timestamptz[], wants bigint[], needs bigint[], useds bigint[], returneds bigint[],
    divisor bigint) returns table (tenant_id uuid, metric text, period_start timestamptz, granted bigint, returned bigint, used bigint, rest bigint, version bigint)
  language plpgsql security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
declare r record;
begin
  update tenancy.quota_nodes n set heartbeat_at = clock_timestamp() where n.id = node and n.ended_at is null;
  if not found then raise exception 'tenancy: this node was given up' using errcode = 'TN001'; end if;
  insert into tenancy.quota_counters (tenant_id, metric, period_start)
    select x.t, x.m, x.p from unnest(of_tenants, metrics, periods) x(t, m, p) order by 1, 2, 3 on conflict do nothing;
  insert into tenancy.quota_leases (tenant_id, metric, period_start, node_id)
    select x.t, x.m, x.p, node from unnest(of_tenants, metrics, periods) x(t, m, p) order by 1, 2, 3 on conflict do nothing;
  for r in
    with asked as (
      select * from unnest(of_tenants, metrics, periods, wants, needs, useds, returneds) x(tenant_id, metric, period_start, want, need, used, returned)
    ), locked as materialized ( -- in one order, so that nodes don't deadlock
      select c.tenant_id, c.metric, c.period_start, c.granted as out, l.granted, l.returned as had_returned, l.used as had_used,
             a.want, a.need, a.used, a.returned, coalesce(q.ceiling, 2305843009213693951) as ceiling, coalesce(q.version, 0) as version
        from asked a
        join tenancy.quota_counters c using (tenant_id, metric, period_start)
        join tenancy.quota_leases l on l.tenant_id = a.tenant_id and l.metric = a.metric and l.period_start = a.period_start and l.node_id = node
        left join tenancy.quotas q on q.tenant_id = a.tenant_id and q.metric = a.metric
       order by 1, 2, 3 for update of c, l
    ), reckoned as (
      select *, greatest(returned - had_returned, 0) as back, greatest(used - had_used, 0) as spent,
             greatest(ceiling - out + greatest(returned - had_returned, 0), 0) as free from locked
    ), given as (
      select *, case when want = 0 or free < need then 0 else least(free, greatest(need, 1, least(want, free / greatest(divisor, 1)))) end as more from reckoned
    ), counted as (
      update tenancy.quota_counters c set granted = c.granted - g.back + g.more, used = c.used + g.spent from given g
       where c.tenant_id = g.tenant_id and c.metric = g.metric and c.period_start = g.period_start returning c.tenant_id, c.metric, c.period_start, c.used
    ), leased as (
      update tenancy.quota_leases l set granted = l.granted + g.more, returned = greatest(l.returned, g.returned), used = greatest(l.used, g.used) from given g
       where l.tenant_id = g.tenant_id and l.metric = g.metric and l.period_start = g.period_start and l.node_id = node
    ), bucketed as (
      insert into tenancy.usage as u (tenant_id, metric, at, value)
        select g.tenant_id, g.metric, date_trunc('minute', clock_timestamp()), sum(g.spent)::bigint from given g where g.spent > 0 group by 1, 2 order by 1, 2
      on conflict (tenant_id, metric, at) do update set value = u.value + excluded.value
    )
    select g.tenant_id, g.metric, g.period_start, g.granted + g.more as granted, greatest(g.returned, g.had_returned) as returned,
           greatest(g.used, g.had_used) as used, g.free - g.more as rest, g.version, g.spent, c.used as level
      from given g join counted c using (tenant_id, metric, period_start)
  loop
    if r.spent > 0 then perform tenancy.quota_alert(r.tenant_id, r.metric, r.period_start, r.level); end if;
    tenant_id := r.tenant_id; metric := r.metric; period_start := r.period_start; granted := r.granted; returned := r.returned; used := r.used; rest := r.rest; version := r.version;
    return next;
  end loop;
end $$;
revoke all on function tenancy.quota_lease(uuid, uuid[], text[], timestamptz[], bigint[], bigint[], bigint[], bigint[], bigint) from public;
grant execute on function tenancy.quota_lease(uuid, uuid[], text[], timestamptz[], bigint[], bigint[], bigint[], bigint[], bigint) to tenancy_app, tenancy_admin;

-- Ends a node's run. What it had leased and neither used nor returned is settled as lost: it may have been spent. With `released` it
-- goes back instead, and may then be spent twice.
create function tenancy.quota_node_end(node uuid, released boolean, was_reaped boolean default false) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update tenancy.quota_nodes n set ended_at = clock_timestamp(), reaped = was_reaped where n.id = node and n.ended_at is null;
  if not found then return; end if;
  perform from tenancy.quota_counters c join tenancy.quota_leases l using (tenant_id, metric, period_start)
    where l.node_id = node and l.granted > l.returned + l.used order by c.tenant_id, c.metric, c.period_start for update of c;
  with open as (
    select l.tenant_id, l.metric, l.period_start, l.granted - l.returned - l.used as units from tenancy.quota_leases l where l.node_id = node and l.granted > l.returned + l.used
  )
  update tenancy.quota_counters c set lost = c.lost + case when released then 0 else o.units end, granted = c.granted - case when released then o.units else 0 end
    from open o where c.tenant_id = o.tenant_id and c.metric = o.metric and c.period_start = o.period_start;
  delete from tenancy.quota_leases l where l.node_id = node;
end $$;
revoke all on function tenancy.quota_node_end(uuid, boolean, boolean) from public;
grant execute on function tenancy.quota_node_end(uuid, boolean, boolean) to tenancy_app, tenancy_admin;

-- Ends the runs of nodes that have been silent for so long.
create function tenancy.quota_reap(silent interval, released boolean) returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare node uuid; n bigint := 0;
begin
  for node in select q.id from tenancy.quota_nodes q where q.ended_at is null and q.heartbeat_at < clock_timestamp() - silent for update skip locked loop
    perform tenancy.quota_node_end(node, released, true);
    n := n + 1;
  end loop;
  return n;
end $$;
revoke all on function tenancy.quota_reap(interval, boolean) from public;
grant execute on function tenancy.quota_reap(interval, boolean) to tenancy_app, tenancy_admin;

-- Makes the months' partitions ahead, rolls closed hours and days up, and drops what is older than is kept. Any node may call it, at any
-- time; one does the work.
create function tenancy.usage_maintain(keep_minutes interval, keep_hours interval) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare month timestamptz; name text; old record; hour_end timestamptz; day_end timestamptz; since timestamptz;
begin
  perform set_config('timezone', 'UTC', true);
  if not pg_try_advisory_xact_lock(1952804463, 2) then return false; end if; -- another node is at it
  for i in 0..2 loop
    month := date_trunc('month', clock_timestamp()) + make_interval(months => i);
    name := 'usage_' || to_char(month, 'YYYYMM');
    continue when to_regclass('tenancy.' || name) is not null;
    execute format('create table tenancy.%I (like tenancy.usage including all)', name);
    execute format('alter table tenancy.%I enable row level security', name);
    execute format('with moved as (delete from tenancy.usage_default where at >= %L and at < %L returning *) insert into tenancy.%I select * from moved', month, month + interval '1 month', name);
    execute format('alter table tenancy.usage attach partition tenancy.%I for values from (%L) to (%L)', name, month, month + interval '1 month');
  end loop;

  -- A minute's row may still grow for as long as a node takes to report: an hour is closed five minutes after its end.
  hour_end := date_trunc('hour', clock_timestamp() - interval '5 minutes');
  select until into since from tenancy.usage_rolled where resolution = 'hour';
  if since < hour_end then
    insert into tenancy.usage_hours (tenant_id, metric, at, value)
      select u.tenant_id, u.metric, date_trunc('hour', u.at), case when g.metric is null then sum(u.value) else (array_agg(u.value order by u.at desc))[1] end
        from tenancy.usage u left join tenancy.quota_gauges g using (tenant_id, metric)
       where u.at >= since and u.at < hour_end group by 1, 2, 3, g.metric
    on conflict (tenant_id, metric, at) do update set value = excluded.value;
    update tenancy.usage_rolled set until = hour_end where resolution = 'hour';
  end if;
  day_end := date_trunc('day', hour_end);
  select until into since from tenancy.usage_rolled where resolution = 'day';
  if since < day_end then
    insert into tenancy.usage_days (tenant_id, metric, at, value)
      select u.tenant_id, u.metric, date_trunc('day', u.at), case when g.metric is null then sum(u.value) else (array_agg(u.value order by u.at desc))[1] end
        from tenancy.usage_hours u left join tenancy.quota_gauges g using (tenant_id, metric)
       where u.at >= since and u.at < day_end group by 1, 2, 3, g.metric
    on conflict (tenant_id, metric, at) do update set value = excluded.value;
    update tenancy.usage_rolled set until = day_end where resolution = 'day';
  end if;

  for old in
    select c.relname from pg_class c join pg_inherits i on i.inhrelid = c.oid
     where i.inhparent = 'tenancy.usage'::regclass and c.relname ~ '^usage_[0-9]{6}$'
       and to_timestamp(substr(c.relname, 7), 'YYYYMM') + interval '1 month' < least(clock_timestamp() - keep_minutes, day_end)
  loop
    execute format('drop table tenancy.%I', old.relname);
  end loop;
  delete from tenancy.usage_default where at < least(clock_timestamp() - keep_minutes, day_end);
  delete from tenancy.usage_hours where at < least(clock_timestamp() - keep_hours, day_end);
  delete from tenancy.quota_nodes where ended_at < clock_timestamp() - interval '7 days';
  return true;
end $$;
revoke all on function tenancy.usage_maintain(interval, interval) from public;
grant execute on function tenancy.usage_maintain(interval, interval) to tenancy_app, tenancy_admin;

-- The first months, so that no row has to go to the default partition while they are made.
select tenancy.usage_maintain('90 days', '1095 days');
