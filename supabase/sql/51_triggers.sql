-- Triggers: attached here, in short blocks, because CREATE TRIGGER keeps writers waiting until it commits. What they do, and
-- by which rules, stands with their functions (40_trigger_functions).
-- Lock: documents, then stages, for the length of a block each.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

-- An autovacuum gives way to whoever has waited for a second, which lock_timeout does not leave it. This lock keeps no
-- reader and no writer waiting, and no vacuum begins before the commit.
do $$
begin
    if to_regclass('krai_core.documents') is not null then
        set local lock_timeout = '5s';
        lock table krai_core.documents in share update exclusive mode;
        set local lock_timeout = '900ms';
    end if;
end $$;
create or replace trigger zzy_documents_repair_update
    before update on krai_core.documents for each row
    when (coalesce(current_setting('krai_core.writer', true), '') = '' and new.stage_status is distinct from old.stage_status)
    execute function krai_private.tg_documents_repair();
create or replace trigger documents_150_note
    after update on krai_core.documents for each row
    when (coalesce(current_setting('krai_core.writer', true), '') = '' and new.stage_status is distinct from old.stage_status)
    execute function krai_private.tg_documents_note();
create or replace trigger zzz_documents_keep_rest
    before update on krai_core.documents for each row
    when (current_setting('krai_core.writer', true) = 'migration')
    execute function krai_private.tg_documents_keep_rest();
create or replace trigger documents_200_inserted
    after insert on krai_core.documents referencing new table as after_rows
    for each statement execute function krai_private.tg_documents_inserted();
create or replace trigger documents_200_edited
    after update on krai_core.documents for each statement
    when (coalesce(current_setting('krai_core.writer', true), '') = '')
    execute function krai_private.tg_documents_edited();
create or replace trigger documents_400_delete_runs
    after delete on krai_core.documents referencing old table as before_rows
    for each statement execute function krai_private.tg_documents_delete_runs();
create or replace trigger documents_400_truncate_runs
    after truncate on krai_core.documents
    for each statement execute function krai_private.tg_documents_delete_runs();

do $$ begin perform krai_private.attach_repair_insert(); end $$;

commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace trigger pipeline_100_lock before insert or delete or update of name, enabled on krai_core.stages
    for each row execute function krai_private.tg_pipeline_lock();
create or replace trigger pipeline_200_follow after insert or delete or update of name, enabled on krai_core.stages
    for each statement execute function krai_private.tg_pipeline_follow();
create or replace trigger pipeline_100_lock before insert or update or delete on krai_core.stage_prerequisites
    for each row execute function krai_private.tg_pipeline_lock();
create or replace trigger pipeline_200_follow after insert or update or delete on krai_core.stage_prerequisites
    for each statement execute function krai_private.tg_pipeline_follow();

update krai_core.stages s set waits_for = krai_private.enabled_prerequisites(s.name)
where s.waits_for <> krai_private.enabled_prerequisites(s.name);

commit;
