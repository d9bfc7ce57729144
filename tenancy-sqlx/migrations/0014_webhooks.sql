-- Webhooks: each endpoint that a tenant has registered gets its own delivery of each message that it wants, as a message of the outbox.

create table tenancy.webhooks (
  tenant_id uuid not null default tenancy.current_tenant(),
  id uuid not null,
  url text not null check (char_length(url) between 1 and 2000),
  topics text[] not null check (cardinality(topics) between 1 and 50),
  enabled boolean not null default true,
  disabled_because text,
  failing_since timestamptz,                        -- since when no delivery has succeeded
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  version bigint not null default 1 check (version > 0),
  primary key (tenant_id, id)
);
call tenancy.protect_table('tenancy.webhooks');
revoke insert, update on tenancy.webhooks from tenancy_app, tenancy_admin;
grant insert (tenant_id, id, url, topics), update (url, topics, enabled, disabled_because, failing_since, updated_at, version) on tenancy.webhooks to tenancy_app;
grant update (enabled, disabled_because, failing_since, updated_at, version) on tenancy.webhooks to tenancy_admin;

-- What deliveries are signed with. It must be readable to sign, so it is no hash: the application's role can add one and read none.
create table tenancy.webhook_secrets (
  tenant_id uuid not null,
  webhook_id uuid not null,
  id uuid not null default gen_random_uuid(),
  secret text not null check (secret ~ '^whsec_[A-Za-z0-9+/]{32,90}={0,2}$'),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz,                           -- of one that was replaced
  primary key (tenant_id, webhook_id, id),
  foreign key (tenant_id, webhook_id) references tenancy.webhooks on delete cascade
);
alter table tenancy.webhook_secrets enable row level security; -- no policy: only who bypasses them, and the owner's functions
grant select on tenancy.webhook_secrets to tenancy_admin;

create table tenancy.webhook_deliveries (
  tenant_id uuid not null,
  id uuid not null,                                 -- also the key of its message in the outbox
  webhook_id uuid not null,
  topic text not null,
  state text not null default 'waiting' check (state in ('waiting', 'delivered', 'skipped')), -- given up is what the outbox says
  attempts integer not null default 0,
  status_code integer,
  problem text,
  created_at timestamptz not null default clock_timestamp(),
  tried_at timestamptz,
  primary key (tenant_id, id),
  foreign key (tenant_id, webhook_id) references tenancy.webhooks on delete cascade
);
create index webhook_deliveries_latest_idx on tenancy.webhook_deliveries (tenant_id, webhook_id, created_at desc);
alter table tenancy.webhook_deliveries enable row level security; -- as above
grant select, update (state, attempts, status_code, problem, tried_at) on tenancy.webhook_deliveries to tenancy_admin;

-- Adds a secret to an own endpoint; those before it go on for `overlap`. Says no when there are too many already.
create function tenancy.webhook_secret_add(webhook uuid, new_secret text, overlap interval) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare mine constant uuid := tenancy.current_tenant();
begin
  if mine is null then raise exception 'tenancy: a webhook belongs to a tenant' using errcode = '42501'; end if;
  perform pg_advisory_xact_lock(hashtextextended('tenancy.webhook_secrets ' || mine || webhook, 0));
  delete from tenancy.webhook_secrets s where s.tenant_id = mine and s.webhook_id = webhook and s.expires_at <= clock_timestamp();
  if (select count(*) from tenancy.webhook_secrets s where s.tenant_id = mine and s.webhook_id = webhook) >= 5 then return false; end if;
  update tenancy.webhook_secrets s set expires_at = clock_timestamp() + overlap where s.tenant_id = mine and s.webhook_id = webhook and s.expires_at is null;
  insert into tenancy.webhook_secrets (tenant_id, webhook_id, secret) values (mine, webhook, new_secret); -- the foreign key: only to one's own
  return true;
end $$;
revoke all on function tenancy.webhook_secret_add(uuid, text, interval) from public;
grant execute on function tenancy.webhook_secret_add(uuid, text, interval) to tenancy_app;

-- Queues a delivery, once.
create function tenancy.webhook_send_for(of_tenant uuid, webhook uuid, delivery uuid, of_topic text, data jsonb) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into tenancy.webhook_deliveries (tenant_id, id, webhook_id, topic) values (of_tenant, delivery, webhook, of_topic) on conflict do nothing;
  if not found then return false; end if;
  delete from tenancy.webhook_deliveries d where d.tenant_id = of_tenant and d.webhook_id = webhook and d.created_at < clock_timestamp() - interval '30 days';
  return tenancy.outbox_post_for(of_tenant, 'webhook.delivery', delivery::text,
    jsonb_build_object('webhook', webhook, 'delivery', delivery, 'body', jsonb_build_object('type', of_topic, 'timestamp', clock_timestamp(), 'data', data)), null);
end $$;
revoke all on function tenancy.webhook_send_for(uuid, uuid, uuid, text, jsonb) from public;
grant execute on function tenancy.webhook_send_for(uuid, uuid, uuid, text, jsonb) to tenancy_admin;

-- Queues a test of an own endpoint.
create function tenancy.webhook_test(webhook uuid, delivery uuid) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if tenancy.current_tenant() is null then raise exception 'tenancy: a webhook belongs to a tenant' using errcode = '42501'; end if;
  return tenancy.webhook_send_for(tenancy.current_tenant(), webhook, delivery, 'webhook.test', jsonb_build_object('webhook', webhook));
end $$;
revoke all on function tenancy.webhook_test(uuid, uuid) from public;
grant execute on function tenancy.webhook_test(uuid, uuid) to tenancy_app;

-- The latest deliveries to an own endpoint, without what they say.
create function tenancy.webhook_deliveries_own(webhook uuid, most integer)
  returns table (id uuid, topic text, state text, attempts integer, status_code integer, problem text, created_at timestamptz, tried_at timestamptz)
  language sql stable security definer set search_path = pg_catalog, pg_temp
begin atomic
  select d.id, d.topic, case when d.state = 'waiting' and (o.id is null or o.dead_at is not null) then 'dead' else d.state end,
         d.attempts, d.status_code, d.problem, d.created_at, d.tried_at
    from tenancy.webhook_deliveries d left join tenancy.outbox o on o.dedup_key = concat_ws(':', d.tenant_id::text, 'webhook.delivery', d.id::text)
   where d.tenant_id = tenancy.current_tenant() and d.webhook_id = webhook order by d.created_at desc, d.id limit most;
end;
revoke all on function tenancy.webhook_deliveries_own(uuid, integer) from public;
grant execute on function tenancy.webhook_deliveries_own(uuid, integer) to tenancy_app;
