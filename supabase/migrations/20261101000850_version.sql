-- Per-stage document tracking: which version of it a database has.
--
--   schema_version   says so
--
-- The last file that a database needs to be used, so that one that was only half migrated has no version yet, or an older
-- one. Clients ask at first use.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core.schema_version() returns text
language plpgsql stable
set search_path = ''
as $$
begin
    return '0.1';
end;
$$;
comment on function krai_core.schema_version() is
'Version of these functions, <major>.<minor>: clients of the same version know all of them.
For signed-in users and service_role: others get 42501.';

revoke execute on function krai_core.schema_version() from public, anon, authenticated;
grant execute on function krai_core.schema_version() to authenticated, service_role;

notify pgrst, 'reload schema';

commit;
