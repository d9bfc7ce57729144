-- A clone has the quotas of the tenant that it is made of.
create function tenancy.clone_quotas(of_tenant uuid, to_tenant uuid) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare cols text;
begin
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into cols from pg_attribute a
   where a.attrelid = 'tenancy.quotas'::regclass and a.attnum > 0 and not a.attisdropped and a.attname not in ('tenant_id', 'changed_xid');
  execute format('insert into tenancy.quotas (tenant_id, %1$s) select $2, %1$s from tenancy.quotas where tenant_id = $1 on conflict do nothing', cols) using of_tenant, to_tenant;
end $$;
revoke all on function tenancy.clone_quotas(uuid, uuid) from public;
grant execute on function tenancy.clone_quotas(uuid, uuid) to tenancy_admin;
