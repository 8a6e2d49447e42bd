"""The functions whose planning is measured, each called directly, with arguments that its callers pass."""

# The words in braces are those that words.sql fills in.
UPLOAD = "(select s from krai_core.stages s where s.name = 'upload')"
FIRST_PAGE = "'infinity', 9223372036854775807"
CLAIM = "'w', 10, 60, gen_random_uuid()"

SEVERAL = (
    "array['upload', 'upload', 'upload', 'text_extraction', 'text_extraction', 'image_processing'],"
    " array['ready', 'processing', 'failed', 'ready', 'processing', 'skipped'], "
)

# Function and arguments; a function of several queries comes several times.
CASES = (
    ("krai_core.get_documents_ready_for", "'upload', 100"),
    ("krai_core.get_document_events", "{watched}"),
    ("krai_core.get_document_timeline", "{finished}"),
    ("krai_core.get_failures", "null"),
    ("krai_core.get_failures", "'text_extraction'"),
    ("krai_core.get_stuck_stages", ""),
    ("krai_core.get_weighted_progress", "{finished}"),
    ("krai_core.get_workers", ""),
    ("krai_core.explain_stage", "{finished}, 'storage'"),
    ("krai_core.heartbeat", "{keys}"),
    ("krai_core.prune_runs", "'1 day', true, 100"),
    ("krai_core.rebuild_statistics", ""),
    ("krai_core.release_stages", "jsonb_build_array({key})"),
    ("krai_core.start_stage", "{document}, {stage}, {claim}"),
    ("krai_private.adopt_closed_runs", "{bare}"),
    ("krai_private.adopt_runs", "{bare}"),
    ("krai_private.archive_failed_runs", "'text_extraction', {failed}, {failed_stages}"),
    ("krai_private.archive_last_run", "{finished}, 'storage', krai_private.pending_stage()"),
    ("krai_private.batch_outcomes", "{outcomes}, clock_timestamp()"),
    ("krai_private.begin_ready_runs", UPLOAD + ", {runs}, {documents}, {stages}, 'w', 60, gen_random_uuid(), now()"),
    ("krai_private.claim_ready", UPLOAD + ", " + CLAIM),
    ("krai_private.derive_ready_runs", "{bare}"),
    ("krai_private.documents_json", "{listed}, null, true, null"),
    ("krai_private.event_cursor", "{finished}"),
    ("krai_private.events_after", "{finished}, '0'"),
    ("krai_private.failure_kinds", "null, '-infinity'"),
    ("krai_private.failure_kinds", "'text_extraction', '-infinity'"),
    ("krai_private.finish_batch", "{outcomes}"),
    ("krai_private.finish_one", '{key} || \'{{"outcome": "completed"}}\''),
    ("krai_private.flow_since", "now() - interval '3 hours'"),
    ("krai_private.fold_deltas", ""),
    ("krai_private.follow_edits", "{bare}"),
    ("krai_private.follow_processing_status", "{documents}, '{{}}'"),
    ("krai_private.held_run", "'complete', {document}, {stage}, {claim}"),
    ("krai_private.histograms", ""),
    ("krai_private.is_sound", "(select stage_status from krai_core.documents where id = {finished})"),
    ("krai_private.lock_ready_runs", UPLOAD + ", 0, now(), 10"),
    ("krai_private.merged_runs", f"array['embedding'], array['completed'], {FIRST_PAGE}, 50, null"),
    ("krai_private.merged_runs", f"array['text_extraction'], array['failed'], {FIRST_PAGE}, 50, null"),
    ("krai_private.merged_runs", f"array[null]::text[], array['failed'], {FIRST_PAGE}, 50, null"),
    ("krai_private.merged_runs", f"array[null]::text[], array['failed'], {FIRST_PAGE}, 50, {{fingerprint}}"),
    (
        "krai_private.merged_runs",
        SEVERAL + FIRST_PAGE + ", 75, null",
    ),
    (
        "krai_private.page_of_runs",
        (
            "array['upload', 'upload', 'text_extraction'], array['ready', 'processing', 'failed'], 'search_indexing',"
            " now() - interval '1 minute', 9223372036854775807, 75, null, null, 50"
        ),
    ),
    ("krai_private.oldest_ready", "'upload'"),
    ("krai_private.repair_rows", "{documents}, false"),
    ("krai_private.running_stages", ""),
    ("krai_private.running_stages", "{document}"),
    ("krai_private.runs_json", "{claim}"),
    ("krai_private.stage_estimates", "{document}"),
    ("krai_private.stage_rates", "'[]', 3"),
    ("krai_private.stage_statistics", ""),
    ("krai_core.get_document_status", "{finished}"),
)
# Questions that are asked of a view as it is.
VIEWS = (
    ("krai_core.vw_documents_by_stage", "select v.* from {view} v order by v.id limit 50"),
    ("krai_core.vw_documents_by_stage", "select v.* from {view} v where v.id = {finished}"),
)
# Made from the same text as rebuild_statistics, where it is measured.
ELSEWHERE = ("krai_private.sql_counted", "krai_private.count_edits")
