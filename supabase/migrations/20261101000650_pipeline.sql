-- Per-stage document tracking: stages are data. They may be changed at any time, on live rows, while workers run.
--
--   register_stage    adds a stage, or changes one
--   disable_stage     leaves one out: it counts as satisfied
--   pipeline_100_lock, pipeline_200_follow    the triggers that make the same true for whoever writes the tables by hand
--
-- Rules
--   * Documents are not rewritten: a missing key means pending. Ready runs follow bit by bit (fill_ready_runs); until then
--     claim_stages hands out nothing that the new pipeline does not allow.
--   * A change of the pipeline waits for all transactions that derive, and they wait for it: all of them read
--     krai_core.stages, which is locked exclusively for the moment of the change. A document in flight is thus seen either by
--     the change or by the one who writes it, never by neither. The lock gives way within 0.9 s, before the deadlock detector
--     would end a worker: then the change is to be made again.
--   * Prerequisites form no circle.
--   * The default of documents.stage_status, a constant, is renewed when the table is free for a moment; reap sees to it
--     later where it is not. Until then new documents lack the key of a new stage, which means pending.
-- Lock order: stages, then documents.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core._renew_default() returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_default text := format('%L::jsonb', krai_core._default_stage_status());
begin
    if v_default is not distinct from (
        select pg_catalog.pg_get_expr(d.adbin, d.adrelid)
        from pg_catalog.pg_attrdef d
        join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
        where d.adrelid = 'krai_core.documents'::regclass and a.attname = 'stage_status')
    then
        return true;
    end if;
    execute format('alter table krai_core.documents alter column stage_status set default %s', v_default);
    perform krai_core._attach_repair_insert();
    return true;
exception when lock_not_available or object_in_use then
    raise notice 'the default of krai_core.documents.stage_status will be renewed later: the table is in use';
    return false;
end;
$$;
comment on function krai_core._renew_default() is
'Makes the default of documents.stage_status name the stages of today; false when the table is in use, then later. Security definer, because only the owner may alter the table.';

create or replace function krai_core._waits_for(p_stage_name text) returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select p.requires from krai_core.stage_prerequisites p
        join krai_core.stages required on required.name = p.requires and required.enabled
        where p.stage_name = p_stage_name
        order by required.position);
end;
$$;
comment on function krai_core._waits_for(text) is 'The enabled stages that a stage requires, in pipeline order.';

update krai_core.stages s set waits_for = krai_core._waits_for(s.name) where s.waits_for <> krai_core._waits_for(s.name);

create or replace function krai_core._tg_pipeline_lock() returns trigger
language plpgsql security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
begin
    lock table krai_core.stages in access exclusive mode;
    return null;
end;
$$;
comment on function krai_core._tg_pipeline_lock() is 'Waits until nobody derives from the pipeline, and keeps them waiting until the change is committed.';

create or replace function krai_core._tg_pipeline_follow() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_circle text;
begin
    with recursive way (stage_name, path) as (
        select s.name, array[s.name] from krai_core.stages s
        union all
        select p.requires, w.path || p.requires from way w
        join krai_core.stage_prerequisites p on p.stage_name = w.stage_name
        where w.stage_name <> all (w.path[:cardinality(w.path) - 1])
    )
    select array_to_string(w.path, ' requires ') into v_circle from way w
    where cardinality(w.path) > 1 and w.path[1] = w.stage_name
    order by cardinality(w.path), w.path limit 1;
    if v_circle is not null then
        perform krai_core._raise('22023', 'invalid_stage', format('prerequisites form a circle: %s', v_circle), '{}',
            'Leave out one of them: none of these stages could ever start.');
    end if;
    update krai_core.stages s set waits_for = krai_core._waits_for(s.name), fill_after = '00000000-0000-0000-0000-000000000000';
    perform krai_core._renew_default();
    return null;
end;
$$;
comment on function krai_core._tg_pipeline_follow() is 'Refuses circles, and has ready runs and the column default follow the pipeline.';

create or replace trigger pipeline_100_lock before insert or delete or update of name, enabled on krai_core.stages
    for each statement execute function krai_core._tg_pipeline_lock();
create or replace trigger pipeline_200_follow after insert or delete or update of name, enabled on krai_core.stages
    for each statement execute function krai_core._tg_pipeline_follow();
create or replace trigger pipeline_100_lock before insert or update or delete on krai_core.stage_prerequisites
    for each statement execute function krai_core._tg_pipeline_lock();
create or replace trigger pipeline_200_follow after insert or update or delete on krai_core.stage_prerequisites
    for each statement execute function krai_core._tg_pipeline_follow();

create or replace function krai_core.register_stage(
    p_stage_name text,
    p_requires text[] default null,
    p_position integer default null,
    p_description text default null,
    p_weight numeric default null,
    p_lease_seconds integer default null,
    p_timeout_seconds integer default null,
    p_max_attempts integer default null,
    p_backoff_seconds integer default null,
    p_actor text default null
) returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_before text[];
    v_constraint text;
    v_message text;
begin
    if coalesce(p_stage_name, '') !~ '^[a-z][a-z0-9_]{0,62}$' then
        perform krai_core._raise('22023', 'invalid_stage', format('%s is no name for a stage', coalesce(quote_literal(p_stage_name), 'null')),
            jsonb_build_object('stage', p_stage_name), 'Use lower case letters, digits and underscores, a letter first, at most 63.');
    elsif p_stage_name = any (p_requires) then
        perform krai_core._raise('22023', 'invalid_stage', format('stage %s cannot require itself', p_stage_name),
            jsonb_build_object('stage', p_stage_name), 'Leave it out of p_requires.');
    end if;
    perform krai_core._stage_named(required.name) from unnest(p_requires) as required (name);
    select array_agg(p.requires) into v_before from krai_core.stage_prerequisites p where p.stage_name = p_stage_name;
    -- An application may register its stages at each start: what changes nothing in the pipeline locks nobody out.
    if not exists (select from krai_core.stages s where s.name = p_stage_name and s.enabled)
        or not (p_requires is null or (p_requires <@ coalesce(v_before, '{}') and coalesce(v_before, '{}') <@ p_requires)) then
        lock table krai_core.stages in access exclusive mode;
        insert into krai_core.stages (name, position, changed_at, changed_by)
        select p_stage_name, coalesce(max(s.position), 0) + 1, clock_timestamp(), left(p_actor, 200) from krai_core.stages s
        where not exists (select from krai_core.stages known where known.name = p_stage_name)
        having not exists (select from krai_core.stages known where known.name = p_stage_name);
        update krai_core.stages s set enabled = true where s.name = p_stage_name and not s.enabled;
        if p_requires is not null then
            delete from krai_core.stage_prerequisites p where p.stage_name = p_stage_name and p.requires <> all (p_requires);
            insert into krai_core.stage_prerequisites (stage_name, requires)
            select distinct p_stage_name, required.name from unnest(p_requires) as required (name)
            on conflict do nothing;
        end if;
    end if;
    if p_position is not null and exists (select from krai_core.stages s where s.position = p_position and s.name <> p_stage_name) then
        update krai_core.stages s
        set position = case when s.name = p_stage_name then p_position else s.position + 1 end
        where s.name = p_stage_name or s.position >= p_position;
    end if;
    update krai_core.stages s
    set position = coalesce(p_position, s.position), description = coalesce(p_description, s.description), weight = coalesce(p_weight, s.weight),
        lease_seconds = coalesce(p_lease_seconds, s.lease_seconds), timeout_seconds = coalesce(p_timeout_seconds, s.timeout_seconds),
        max_attempts = coalesce(p_max_attempts, s.max_attempts), backoff_seconds = coalesce(p_backoff_seconds, s.backoff_seconds),
        backoff_max_seconds = greatest(s.backoff_max_seconds, p_backoff_seconds), changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
    where s.name = p_stage_name;
    return true;
exception when check_violation or numeric_value_out_of_range then
    get stacked diagnostics v_constraint = constraint_name, v_message = message_text;
    perform krai_core._raise('22023', 'invalid_stage', format('stage %s cannot be registered: %s', p_stage_name, v_message),
        jsonb_build_object('stage', p_stage_name, 'constraint', v_constraint), 'The columns of krai_core.stages tell their ranges.');
    return null;
end;
$$;
comment on function krai_core.register_stage(text, text[], integer, text, numeric, integer, integer, integer, integer, text) is
'Adds a stage to the pipeline, enables one again, or changes one; null keeps what is there.
p_stage_name: lower case letters, digits, underscores. p_requires: the stages that must be finished before it, in place of those so far. p_position: its place in the order, the others move up; null: last. p_description, p_weight, p_lease_seconds, p_timeout_seconds, p_max_attempts, p_backoff_seconds: as the columns of krai_core.stages. p_actor: who asked for it. Returns true. May be called on live documents and while workers run, and at each start of an application: documents that are there are pending in a new stage, and become ready for it bit by bit, as workers, reap and fill_ready_runs come to them. Security definer, because the pipeline is nobody''s to write directly. Raises 22023 invalid_stage (name, range, circle) or unknown_stage, 55P03 when others keep the pipeline busy for 0.9 s: call it again.';

create or replace function krai_core.disable_stage(p_stage_name text, p_actor text default null) returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
begin
    perform krai_core._stage_named(p_stage_name);
    if exists (select from krai_core.stages s where s.name = p_stage_name and s.enabled) then
        lock table krai_core.stages in access exclusive mode;
        update krai_core.stages s set enabled = false, changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
        where s.name = p_stage_name and s.enabled;
    end if;
    return true;
end;
$$;
comment on function krai_core.disable_stage(text, text) is
'Leaves a stage out of the pipeline: it counts as satisfied, is in no total, and is not handed out. What it holds stays, what runs may end; register_stage brings it back.
p_actor: who asked for it. Returns true. Security definer, as register_stage. Raises 22023 unknown_stage, 55P03 when others keep the pipeline busy for 0.9 s: call it again.';

revoke execute on function
    krai_core._renew_default(), krai_core._waits_for(text), krai_core._tg_pipeline_lock(), krai_core._tg_pipeline_follow(), krai_core.disable_stage(text, text),
    krai_core.register_stage(text, text[], integer, text, numeric, integer, integer, integer, integer, text)
    from public, anon, authenticated, service_role;
grant execute on function
    krai_core._renew_default(), krai_core.disable_stage(text, text),
    krai_core.register_stage(text, text[], integer, text, numeric, integer, integer, integer, integer, text)
    to service_role;

notify pgrst, 'reload schema';

commit;
