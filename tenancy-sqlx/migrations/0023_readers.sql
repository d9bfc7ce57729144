-- While a tenant is moved or restored, what it has can be read where this says so.
alter table tenancy.tenants add reads boolean not null default false check (not reads or status in ('moving', 'restoring'));

drop function tenancy.resolve_tenant(uuid, text, text);
-- A tenant by its exact name, with the domains that it holds.
create function tenancy.resolve_tenant(by_id uuid, by_slug text, by_domain text)
  returns table (id uuid, slug text, name text, status text, reads boolean, branding jsonb, flags jsonb, plan text, created_at timestamptz, updated_at timestamptz, version bigint, domains text[])
  language sql stable security definer rows 1 set search_path = pg_catalog, pg_temp
begin atomic
  select t.id, t.slug, t.name, t.status, t.reads, t.branding, t.flags, t.plan, t.created_at, t.updated_at, t.version,
         array(select d.domain from tenancy.domains d where d.tenant_id = t.id and d.state = 'verified' order by 1)
    from tenancy.tenants t
   where t.status <> 'erased' and t.id = case
     when by_id is not null then by_id
     when by_slug is not null then (select s.id from tenancy.tenants s where s.slug = by_slug and s.status <> 'erased')
     else (select d.tenant_id from tenancy.domains d where d.domain = by_domain and d.state = 'verified') end;
end;
revoke all on function tenancy.resolve_tenant(uuid, text, text) from public;
grant execute on function tenancy.resolve_tenant(uuid, text, text) to tenancy_app, tenancy_admin;
