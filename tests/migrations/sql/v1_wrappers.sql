-- The eight functions again in public with the rights of their owner, executable by everybody.

create function public.start_stage(p_document_id uuid, p_stage_name text) returns void
language plpgsql security definer set search_path = public, krai_core as $$
begin
    perform krai_core.start_stage(p_document_id, p_stage_name);
end;
$$;
create function public.fail_stage(p_document_id uuid, p_stage_name text, p_error text, p_metadata jsonb default '{}') returns void
language plpgsql security definer set search_path = public, krai_core as $$
begin
    update krai_core.documents set processing_status = 'failed' where id = p_document_id;
end;
$$;
create function public.get_current_stage(p_document_id uuid) returns text
language plpgsql security definer set search_path = krai_core as $$
begin
    -- Unqualified, found by the search path.
    return (select case when stage_status is null then 'upload' end from documents where id = p_document_id);
end;
$$;
-- Of the same name, and of another system.
create function public.skip_stage(p_theatre text) returns text language sql as 'select p_theatre';
