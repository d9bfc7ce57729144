-- What a tenant may show to another one, or by a link: a document, with its attachments. The project that it is in is not shown.
-- A share of `write` lets the other tenant change what a PATCH of the document changes, and nothing of its attachments.

call tenancy.share_table('documents', 'document', updatable => '{title,content,version,updated_at}');
call tenancy.share_table('attachments', parent => 'documents');
