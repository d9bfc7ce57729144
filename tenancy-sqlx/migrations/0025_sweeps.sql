-- Backups, and restores with the one before them, of which something may be left: looked for once a minute.

create index operations_left_idx on tenancy.operations (updated_at)
  where kind in ('backup', 'restore') and (state in ('failed', 'cancelled') and attempts > 0 or state = 'done' and attempts > 1);
