-- The outbox: a message is written in the transaction that causes it. The key of a tenant's message has the tenant in it, so that no
-- tenant's key shows through another's.

alter table tenancy.outbox
  add column secret jsonb check (jsonb_typeof(secret) = 'object'), -- gone when the message is delivered or dead
  add column secret_gone boolean not null default false,
  add column due_at timestamptz not null default clock_timestamp(), -- not tried before; of a claimed one, when its lease ends
  add column claim uuid,                                            -- who tries now; without it nobody marks the message
  add column attempts integer not null default 0,
  add column last_error text,
  add column dead_at timestamptz,                                   -- given up
  add check (sent_at is null or dead_at is null),
  add check (claim is null or (sent_at is null and dead_at is null)),
  add check (secret is null or (sent_at is null and dead_at is null));
drop index tenancy.outbox_waiting_idx;
create index outbox_waiting_idx on tenancy.outbox (tenant_id, due_at, id) where sent_at is null and dead_at is null;
create index outbox_claimed_idx on tenancy.outbox (tenant_id, due_at) where claim is not null;
create index outbox_sent_idx on tenancy.outbox (sent_at) where sent_at is not null;
create index outbox_dead_idx on tenancy.outbox (id) where dead_at is not null;
grant update (due_at, claim, attempts, last_error, dead_at, secret, secret_gone), delete on tenancy.outbox to tenancy_admin;

create function tenancy.outbox_told() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_notify('tenancy_outbox', ''); -- a hint to look: what is waiting is read from the table
  return null;
end $$;
revoke all on function tenancy.outbox_told() from public;
create trigger outbox_told after insert on tenancy.outbox for each statement execute function tenancy.outbox_told();

-- Takes up to `most` messages that are due, for `lease`: the first of each tenant before the second of any, and the tenants in turn, from
-- the one that follows `last`, whom this worker served last. Of one tenant no more than `each` are under way at once. A message whose
-- lease ran out was lost with its worker, and is due again. Messages of a tenant that is not active stay.
create function tenancy.outbox_claim(who uuid, most integer, each integer, lease interval, tries integer, last text)
  returns table (turn bigint, id bigint, dedup_key text, tenant_id uuid, topic text, payload jsonb, secret jsonb, attempts integer)
  language sql set search_path = pg_catalog, pg_temp
begin atomic
  with recursive everyone as (
    (select o.tenant_id from tenancy.outbox o where o.sent_at is null and o.dead_at is null and o.tenant_id is not null order by o.tenant_id limit 1)
    union all
    select (select o.tenant_id from tenancy.outbox o where o.sent_at is null and o.dead_at is null and o.tenant_id > e.tenant_id order by o.tenant_id limit 1)
      from everyone e where e.tenant_id is not null
  ), ready as (
    select e.tenant_id::text as whose, r.* from everyone e join tenancy.tenants t on t.id = e.tenant_id and t.status = 'active'
     cross join lateral (
       select o.id, row_number() over (order by o.due_at, o.id) as nth from tenancy.outbox o
        where o.tenant_id = e.tenant_id and o.sent_at is null and o.dead_at is null and o.due_at <= clock_timestamp() and o.attempts < tries
        order by o.due_at, o.id
        limit greatest(0, each - (select count(*) from tenancy.outbox u where u.tenant_id = e.tenant_id and u.claim is not null and u.due_at > clock_timestamp()))) r
    union all
    (select '', o.id, row_number() over (order by o.due_at, o.id) from tenancy.outbox o
      where o.tenant_id is null and o.sent_at is null and o.dead_at is null and o.due_at <= clock_timestamp() and o.attempts < tries
      order by o.due_at, o.id
      limit greatest(0, each - (select count(*) from tenancy.outbox u where u.tenant_id is null and u.claim is not null and u.due_at > clock_timestamp())))
  ), next as (
    select r.id, row_number() over (order by r.nth, r.whose <= last, r.whose) as turn from ready r order by turn limit most
  ), taken as (
    select o.id, n.turn from next n join tenancy.outbox o on o.id = n.id
     where o.sent_at is null and o.dead_at is null and o.due_at <= clock_timestamp() -- another worker may have been faster
     for update of o skip locked
  )
  update tenancy.outbox o set claim = who, due_at = clock_timestamp() + lease, attempts = o.attempts + 1 from taken where o.id = taken.id
  returning taken.turn, o.id, o.dedup_key, o.tenant_id, o.topic, o.payload, o.secret, o.attempts;
end;
revoke all on function tenancy.outbox_claim(uuid, integer, integer, interval, integer, text) from public;
grant execute on function tenancy.outbox_claim(uuid, integer, integer, interval, integer, text) to tenancy_admin;

create function tenancy.outbox_post_for(of_tenant uuid, topic text, key text, payload jsonb, secret jsonb) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into tenancy.outbox (tenant_id, topic, dedup_key, payload, secret)
    values (of_tenant, topic, concat_ws(':', coalesce(of_tenant::text, 'platform'), topic, key), payload, secret) on conflict (dedup_key) do nothing;
  return found;
end $$;
revoke all on function tenancy.outbox_post_for(uuid, text, text, jsonb, jsonb) from public;
grant execute on function tenancy.outbox_post_for(uuid, text, text, jsonb, jsonb) to tenancy_admin;

create function tenancy.outbox_post(topic text, key text, payload jsonb, secret jsonb) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant();
begin
  if mine is null then raise exception 'tenancy: a message belongs to a tenant' using errcode = '42501'; end if;
  return tenancy.outbox_post_for(mine, topic, key, payload, secret);
end $$;
revoke all on function tenancy.outbox_post(text, text, jsonb, jsonb) from public;
grant execute on function tenancy.outbox_post(text, text, jsonb, jsonb) to tenancy_app;
