-- Tenants may keep a journal of their rows' changes. A migration that makes a table calls it again.
call tenancy.journal_tables();
