"""Every Python example, through supabase-py."""

# ruff: noqa: C901, PLC0415, Q000 - the examples stand here as they are
# fmt: off
import threading
from typing import Any

import pytest
import supabase


def test_basic_usage(
    supabase_client: supabase.Client, document: str, sql: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Start, progress, completion and the overall progress by plain calls."""
    document_id = document

    from processors_v2.stage_tracker import StageTracker

    tracker = StageTracker(supabase_client)

    # Start stage
    tracker.start_stage(document_id, 'text_extraction')

    # Update progress
    tracker.update_progress(
        document_id,
        'text_extraction',
        progress=45.5,
        metadata={'pages_processed': 2000}
    )

    # Complete stage
    tracker.complete_stage(
        document_id,
        'text_extraction',
        metadata={'total_pages': 4386}
    )

    # Get current progress
    progress = tracker.get_progress(document_id)
    print(f"Progress: {progress}%")

    assert capsys.readouterr().out == "Progress: 12.5%\n"
    ((found,),) = sql("select stage_status -> 'text_extraction' from krai_core.documents")
    assert found["status"] == "completed"
    assert found["metadata"] == {"pages_processed": 2000, "total_pages": 4386}
    assert found["duration_seconds"] > 0


def test_context_manager(tracker: Any, document: str, sql: Any) -> None:
    """The block completes its stage and keeps the metadata of its last progress."""
    document_id = document

    from processors_v2.stage_tracker import StageContext

    with StageContext(tracker, document_id, 'text_extraction') as ctx:
        # Do processing
        for i in range(100):
            # ... process pages ...
            ctx.update_progress(i, {'pages_processed': i * 43})

        # Stage automatically marked as completed on success
        # Or failed if exception occurs

    ((found,),) = sql("select stage_status -> 'text_extraction' from krai_core.documents")
    assert (found["status"], found["progress"]) == ("completed", 100)
    assert found["metadata"] == {"pages_processed": 99 * 43}


def test_context_manager_fails_on_an_exception(tracker: Any, document: str, sql: Any) -> None:
    """The same block with an exception in it fails its stage."""
    document_id = document

    from processors_v2.stage_tracker import StageContext

    with pytest.raises(OSError, match="page 50"):
        with StageContext(tracker, document_id, 'text_extraction') as ctx:
            for i in range(100):
                ctx.update_progress(i, {'pages_processed': i * 43})
                if i == 50:
                    raise OSError("page 50 is damaged")

    ((found,),) = sql("select stage_status -> 'text_extraction' from krai_core.documents")
    assert (found["status"], found["error"]) == ("failed", "page 50 is damaged")
    assert (found["progress"], found["metadata"]) == (50, {"pages_processed": 50 * 43})


def test_resource_distribution(tracker: Any, core_client: supabase.Client, sql: Any) -> None:
    """Three workers, each on its stage, run at the same time on the documents that are ready for them."""
    sql("insert into krai_core.documents (filename) select n || '.pdf' from generate_series(1, 3) n")
    for (document_id,) in sql("select id from krai_core.documents"):
        tracker.complete_stage(document_id, "upload")
        tracker.complete_stage(document_id, "text_extraction")
    text = sql("insert into krai_core.documents (filename) values ('new.pdf') returning id")[0][0]
    tracker.complete_stage(text, "upload")
    together = threading.Barrier(3)
    done: dict[str, int] = {}

    def get_documents_ready_for(stage_name: str) -> Any:
        ready = [
            doc for doc in core_client.table("documents").select("*").execute().data
            if tracker.can_start_stage(doc["id"], stage_name)
        ]
        together.wait(20)
        yield from ready

    def work(doc: Any, stage_name: str) -> None:
        assert tracker.start_stage(doc["id"], stage_name)
        if stage_name not in done:
            together.wait(20)
        assert tracker.complete_stage(doc["id"], stage_name)
        done[stage_name] = done.get(stage_name, 0) + 1

    def process_text_extraction(doc: Any) -> None:
        work(doc, "text_extraction")

    def process_images(doc: Any) -> None:
        work(doc, "image_processing")

    def generate_embeddings(doc: Any) -> None:
        work(doc, "embedding")

    def worker_1() -> None:
        # Worker 1: Text Extraction
        for doc in get_documents_ready_for('text_extraction'):
            process_text_extraction(doc)

    def worker_2() -> None:
        # Worker 2: Image Processing (parallel!)
        for doc in get_documents_ready_for('image_processing'):
            process_images(doc)

    def worker_3() -> None:
        # Worker 3: Embeddings
        for doc in get_documents_ready_for('embedding'):
            generate_embeddings(doc)

    threads = [threading.Thread(target=worker) for worker in (worker_1, worker_2, worker_3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == {"text_extraction": 1, "image_processing": 4, "embedding": 3}


def test_smart_queue_management(tracker: Any, core_client: supabase.Client, sql: Any) -> None:
    """The loop finds the document that is ready, also as the last of more than a thousand."""
    supabase = core_client
    sql(
        "insert into krai_core.documents (filename, stage_status) select n || '.pdf', jsonb_build_object("
        "'upload', jsonb_build_object('status', 'failed', 'error', 'not a PDF')) from generate_series(1, 1100) n"
    )
    last = sql("insert into krai_core.documents (filename) values ('last.pdf') returning id")[0][0]
    tracker.complete_stage(last, "upload")

    # Get next document to process for specific stage
    def get_next_document(stage_name):  # type: ignore[no-untyped-def]
        docs = supabase.table("documents") \
            .select("*") \
            .execute()

        for doc in docs.data:
            if tracker.can_start_stage(doc['id'], stage_name):
                # Check if stage is pending
                stage_status = doc['stage_status'][stage_name]
                if stage_status['status'] == 'pending':
                    return doc

        return None

    assert get_next_document("text_extraction")["id"] == str(last)
    tracker.start_stage(last, "text_extraction")
    sql("delete from krai_core.documents where id <> %s", last)
    assert get_next_document("text_extraction") is None


def test_error_recovery(tracker: Any, core_client: supabase.Client, sql: Any) -> None:
    """The loop finds every failed text extraction among more than a thousand documents, and just this is retried."""
    supabase = core_client
    sql("insert into krai_core.documents (filename) select n || '.pdf' from generate_series(1, 1200) n")
    ids = [row[0] for row in sql("select id from krai_core.documents")]
    failed = {str(ids[number]) for number in (0, 600, 1199)}
    for document_id in failed:
        tracker.complete_stage(document_id, "upload")
        tracker.fail_stage(document_id, "text_extraction", "OCR engine timeout")
    retried = []

    def retry_text_extraction(document_id: str) -> None:
        retried.append(document_id)
        assert tracker.retry_stage(document_id, "text_extraction") is True

    # Find all failed text extractions
    failed_docs = supabase.table("documents") \
        .select("*") \
        .execute()

    for doc in failed_docs.data:
        if doc['stage_status']['text_extraction']['status'] == 'failed':
            # Retry just this stage
            retry_text_extraction(doc['id'])

    assert len(failed_docs.data) == 1200
    assert set(retried) == failed
    for document_id in failed:
        status = tracker.get_stage_status(document_id)
        assert (status["upload"]["status"], status["text_extraction"]["status"]) == ("completed", "pending")
        assert tracker.can_start_stage(document_id, "text_extraction") is True
