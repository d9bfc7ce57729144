-- Provisioning: a tenant's own transaction keeps what came of a step, and nobody activates a tenant that is half made.

-- Keeps what came of a step of the tenant's provisioning, if the attempt is still the one that may.
create function tenancy.provision_finish(of_operation uuid, of_attempt bigint, of_step text, output jsonb) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update tenancy.operations o set steps = o.steps || jsonb_build_object(of_step, output), updated_at = clock_timestamp()
   where o.id = of_operation and o.tenant_id = tenancy.current_tenant() and o.kind = 'provision' and o.state = 'running' and o.attempts = of_attempt;
  return found;
end $$;
revoke all on function tenancy.provision_finish(uuid, bigint, text, jsonb) from public;
grant execute on function tenancy.provision_finish(uuid, bigint, text, jsonb) to tenancy_app;

-- A tenant whose provisioning was begun becomes active with its end, and in no other way.
create function tenancy.hold_provisioning() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from tenancy.operations o where o.tenant_id = new.id and o.kind = 'provision')
     and not exists (select from tenancy.operations o where o.tenant_id = new.id and o.kind = 'provision' and o.state = 'done') then
    raise exception 'tenancy: the tenant is not provisioned yet' using errcode = '55006';
  end if;
  return new;
end $$;
revoke all on function tenancy.hold_provisioning() from public;
create trigger hold_provisioning before update on tenancy.tenants for each row
  when (old.status = 'provisioning' and new.status not in ('provisioning', 'erased')) execute function tenancy.hold_provisioning();

-- Marks a job of the tenant as done, in the transaction of its work; false if it is done or was given up.
create function tenancy.job_finish(of_message bigint) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update tenancy.outbox o set sent_at = clock_timestamp(), claim = null, secret_gone = o.secret_gone or o.secret is not null, secret = null
   where o.id = of_message and o.tenant_id = tenancy.current_tenant() and o.topic like 'job.%' and o.sent_at is null and o.dead_at is null;
  return found;
end $$;
revoke all on function tenancy.job_finish(bigint) from public;
grant execute on function tenancy.job_finish(bigint) to tenancy_app;
