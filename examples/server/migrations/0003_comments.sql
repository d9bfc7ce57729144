-- Comments on documents, by the tenant's own members and, through a share of `comment` or `write`, by another tenant's: nobody changes one.

create table comments (
  tenant_id uuid not null,
  id uuid not null,
  document_id uuid not null,
  author text not null check (char_length(author) between 1 and 255),
  author_tenant text check (char_length(author_tenant) between 1 and 200), -- its name; null: a member of this one
  body text not null check (char_length(body) between 1 and 4000),
  created_at timestamptz not null,
  primary key (tenant_id, id),
  foreign key (tenant_id, document_id) references documents (tenant_id, id) on delete cascade
);
create index comments_document_idx on comments (tenant_id, document_id, id desc);
call tenancy.protect_table('comments');
call tenancy.share_table('comments', parent => 'documents', insertable => '{id,author,author_tenant,body,created_at}', needs => 'comment');
