-- Back to the plain mode. The role stays: other databases of this server may use it.
create or replace function tenancy.current_tenant() returns uuid
  language sql stable parallel safe cost 1
  return nullif(pg_catalog.current_setting('tenancy.tenant_id', true), '')::uuid;
drop function if exists tenancy.enter(text);
drop schema if exists tenancy_private cascade;
revoke usage on schema tenancy from tenancy_sealer;
revoke execute on function pg_catalog.set_config(text, text, boolean) from tenancy_sealer;
