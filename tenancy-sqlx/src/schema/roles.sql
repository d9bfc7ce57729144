-- Run by an administrator, at every migration: what is there already stays as it is. Roles are the server's, so two databases may
-- create the same one at the same moment.
do $$
declare name text; attributes text;
begin
  for name, attributes in values
    ('tenancy_owner', 'nologin noinherit'), ('tenancy_app', 'login noinherit'), ('tenancy_admin', 'nologin noinherit bypassrls'),
    ('tenancy_share', 'nologin noinherit bypassrls'), ('tenancy_backup', 'nologin noinherit bypassrls'), ('tenancy_restore', 'nologin noinherit')
  loop
    if not exists (select from pg_roles where rolname = name) then
      begin
        execute format('create role %I %s', name, attributes);
      exception when duplicate_object or unique_violation then null;
      end;
    end if;
  end loop;
  -- A superuser can become any role; another administrator must be a member.
  if not (select rolsuper from pg_roles where rolname = current_user) then
    foreach name in array array['tenancy_owner', 'tenancy_admin', 'tenancy_share', 'tenancy_backup', 'tenancy_restore', 'tenancy_app'] loop
      if not pg_has_role(current_user, name, 'member') then
        execute format('grant %I to %I', name, current_user);
      end if;
    end loop;
  end if;
end $$;
