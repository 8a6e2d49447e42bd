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

create or replace function krai_private.enabled_prerequisites(p_stage_name text) returns text[]
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
comment on function krai_private.enabled_prerequisites(text) is 'The enabled stages that a stage requires, in pipeline order.';

create or replace function krai_private.attach_repair_insert() returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_has_status boolean := exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status' and not a.attisdropped
          -- What a BEFORE trigger cannot see, because it is computed later.
          and a.attgenerated = '');
begin
    -- A new document with the default, which is nearly every one, does not enter the function.
    execute format(
        'create or replace trigger documents_100_repair_insert before insert on krai_core.documents for each row
         when (new.stage_status is distinct from %L::jsonb %s) execute function krai_private.tg_documents_repair(%s)',
        krai_private.default_stage_status(),
        case when v_has_status then $q$or new.processing_status::text = 'completed'$q$ end,
        case when v_has_status then $q$'processing_status'$q$ end);
end;
$$;
comment on function krai_private.attach_repair_insert() is 'Attaches the trigger that repairs new documents, with the default of today as the value that needs none.';

create or replace function krai_private.renew_default() returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_default text := format('%L::jsonb', krai_private.default_stage_status());
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
    perform krai_private.attach_repair_insert();
    return true;
exception when lock_not_available or object_in_use then
    raise notice 'the default of krai_core.documents.stage_status will be renewed later: the table is in use';
    return false;
end;
$$;
comment on function krai_private.renew_default() is
'Makes the default of documents.stage_status name the stages of today; false when the table is in use, then later. Security definer, because only the owner may alter the table.';

create or replace function krai_private.register_stage_as_owner(
    p_stage_name text,
    p_requires text[],
    p_position integer,
    p_description text,
    p_weight numeric,
    p_lease_seconds integer,
    p_timeout_seconds integer,
    p_max_attempts integer,
    p_backoff_seconds integer,
    p_actor text
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
        perform krai_private.raise_error('invalid_stage', format('%s is no name for a stage', coalesce(quote_literal(p_stage_name), 'null')),
            jsonb_build_object('stage', p_stage_name), 'Use lower case letters, digits and underscores, a letter first, at most 63.');
    elsif p_stage_name = any (p_requires) then
        perform krai_private.raise_error('invalid_stage', format('stage %s cannot require itself', p_stage_name),
            jsonb_build_object('stage', p_stage_name), 'Leave it out of p_requires.');
    end if;
    perform krai_private.check_stage(required.name) from unnest(p_requires) as required (name);
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
    perform krai_private.raise_error('invalid_stage', format('stage %s cannot be registered: %s', p_stage_name, v_message),
        jsonb_build_object('stage', p_stage_name, 'constraint', v_constraint), 'The columns of krai_core.stages tell their ranges.');
    return null;
end;
$$;
comment on function krai_private.register_stage_as_owner(text, text[], integer, text, numeric, integer, integer, integer, integer, text) is
'What register_stage does. Security definer, because nobody may write the pipeline directly.';

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
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.register_stage_as_owner(p_stage_name, p_requires, p_position, p_description, p_weight, p_lease_seconds,
        p_timeout_seconds, p_max_attempts, p_backoff_seconds, p_actor);
end;
$$;
comment on function krai_core.register_stage(text, text[], integer, text, numeric, integer, integer, integer, integer, text) is
'Adds a stage to the pipeline, enables one again, or changes one; null keeps what is there.
p_stage_name: lower case letters, digits, underscores. p_requires: the stages that must be finished before it, in place of those so far. p_position: its place in the order, the others move up; null: last. p_description, p_weight, p_lease_seconds, p_timeout_seconds, p_max_attempts, p_backoff_seconds: as the columns of krai_core.stages. p_actor: who asked for it. Returns true. May be called on live documents and while workers run, and at each start of an application: documents that are there are pending in a new stage, and become ready for it bit by bit, as workers, reap and fill_ready_runs come to them. Raises 22023 invalid_stage (name, range, circle) or unknown_stage, 55P03 when others keep the pipeline busy for 0.9 s: call it again.';

create or replace function krai_private.disable_stage_as_owner(p_stage_name text, p_actor text) returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
begin
    perform krai_private.check_stage(p_stage_name);
    if exists (select from krai_core.stages s where s.name = p_stage_name and s.enabled) then
        lock table krai_core.stages in access exclusive mode;
        update krai_core.stages s set enabled = false, changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
        where s.name = p_stage_name and s.enabled;
    end if;
    return true;
end;
$$;
comment on function krai_private.disable_stage_as_owner(text, text) is
'What disable_stage does. Security definer, because nobody may write the pipeline directly.';

create or replace function krai_core.disable_stage(p_stage_name text, p_actor text default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.disable_stage_as_owner(p_stage_name, p_actor);
end;
$$;
comment on function krai_core.disable_stage(text, text) is
'Leaves a stage out of the pipeline: it counts as satisfied, is in no total, and is not handed out. What it holds stays, what runs may end; register_stage brings it back.
p_actor: who asked for it. Returns true. Raises 22023 unknown_stage, 55P03 when others keep the pipeline busy for 0.9 s: call it again.';
