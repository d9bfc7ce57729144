-- The outbox: a message is written in the transaction that causes it. The key of a tenant's message has the tenant in it, so that no
-- tenant's key shows through another's.

alter table tenancy.outbox add column secret jsonb check (jsonb_typeof(secret) = 'object'); -- gone when the message is delivered

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
