-- What backups of a tenant take, beside the rows of its tables.
call tenancy.declare_objects('attachments', 'object', 'attachments/{}');
call tenancy.backup_rule('idempotency_keys', 'skip', 'answers to requests, kept for a day: after a restore they would answer for what is gone');
