"""Every SQL example, run as service_role."""

import decimal
from typing import Any

STAGES = {
    "upload": "Document ingestion & validation",
    "text_extraction": "PDF text & chunking",
    "image_processing": "OCR, Vision AI",
    "classification": "Manufacturer/product detection",
    "metadata_extraction": "Error codes, versions",
    "storage": "R2 upload",
    "embedding": "Vector embeddings",
    "search_indexing": "Search analytics",
}


def stage(sql: Any, document: str, name: str) -> dict[str, Any]:
    """The stored object of a stage."""
    return dict(sql("select stage_status -> %s from krai_core.documents where id = %s", name, document)[0][0])


def test_the_eight_stages(sql: Any) -> None:
    """The pipeline has the eight stages in their order, each with its description."""
    rows = sql("select name, description from krai_core.stages order by position")
    assert rows == list(STAGES.items())


def test_the_column(sql: Any) -> None:
    """documents.stage_status is JSONB, and its default has all eight stages."""
    rows = sql(
        "select data_type, column_default from information_schema.columns"
        " where table_schema = 'krai_core' and table_name = 'documents' and column_name = 'stage_status'"
    )
    assert rows[0][0] == "jsonb"
    (default,) = sql(f"select {rows[0][1]}")[0]
    assert set(default) == set(STAGES)
    assert {value["status"] for value in default.values()} == {"pending"}


def test_the_index(sql: Any) -> None:
    """idx_documents_stage_status is a GIN index of the column, and a query for a status uses it."""
    ((definition,),) = sql("select indexdef from pg_indexes where indexname = 'idx_documents_stage_status'")
    assert definition.endswith("ON krai_core.documents USING gin (stage_status)")
    sql("set enable_seqscan = off")
    plan = sql(
        """explain select id from krai_core.documents where stage_status @> '{"upload": {"status": "failed"}}'"""
    )
    sql("reset enable_seqscan")
    assert "idx_documents_stage_status" in str(plan)


def test_1_start_stage(sql: Any, document: str) -> None:
    """The first helper function starts a stage."""
    rows = sql(
        """
        SELECT krai_core.start_stage(
          'document-uuid',
          'text_extraction'
        );
        """.replace("document-uuid", document)
    )
    assert rows == [(True,)]
    assert stage(sql, document, "text_extraction")["status"] == "processing"


def test_2_update_progress(sql: Any, document: str) -> None:
    """The second stores percent and metadata of a running stage."""
    sql("select krai_core.start_stage(%s, 'text_extraction')", document)
    rows = sql(
        """
        SELECT krai_core.update_stage_progress(
          'document-uuid',
          'text_extraction',
          45.5,  -- progress %
          '{"pages_processed": 2000}'::JSONB
        );
        """.replace("document-uuid", document)
    )
    assert rows == [(True,)]
    found = stage(sql, document, "text_extraction")
    assert (found["progress"], found["metadata"]) == (45.5, {"pages_processed": 2000})


def test_3_complete_stage(sql: Any, document: str) -> None:
    """The third completes a stage, and its metadata joins what is there."""
    sql("select krai_core.start_stage(%s, 'text_extraction')", document)
    sql(
        """select krai_core.update_stage_progress(%s, 'text_extraction', 45.5, '{"pages_processed": 2000}')""", document
    )
    rows = sql(
        """
        SELECT krai_core.complete_stage(
          'document-uuid',
          'text_extraction',
          '{"total_pages": 4386}'::JSONB
        );
        """.replace("document-uuid", document)
    )
    assert rows == [(True,)]
    found = stage(sql, document, "text_extraction")
    assert (found["status"], found["progress"]) == ("completed", 100)
    assert found["metadata"] == {"pages_processed": 2000, "total_pages": 4386}


def test_4_fail_stage(sql: Any, document: str) -> None:
    """The fourth marks a stage as failed with its error."""
    rows = sql(
        """
        SELECT krai_core.fail_stage(
          'document-uuid',
          'text_extraction',
          'OCR engine timeout'
        );
        """.replace("document-uuid", document)
    )
    assert rows == [(True,)]
    found = stage(sql, document, "text_extraction")
    assert (found["status"], found["error"]) == ("failed", "OCR engine timeout")


def test_5_skip_stage(sql: Any, document: str) -> None:
    """The fifth marks a stage as not applicable, with the reason."""
    rows = sql(
        """
        SELECT krai_core.skip_stage(
          'document-uuid',
          'image_processing',
          'No images found in PDF'
        );
        """.replace("document-uuid", document)
    )
    assert rows == [(True,)]
    found = stage(sql, document, "image_processing")
    assert (found["status"], found["metadata"]) == ("skipped", {"reason": "No images found in PDF"})


def test_6_get_document_progress(sql: Any, document: str) -> None:
    """The sixth returns 37.50 when 3 of 8 stages are completed."""
    for name in ("upload", "text_extraction", "image_processing"):
        sql("select krai_core.complete_stage(%s, %s)", document, name)
    rows = sql("SELECT krai_core.get_document_progress('document-uuid');".replace("document-uuid", document))
    assert rows == [(decimal.Decimal("37.50"),)]
    assert str(rows[0][0]) == "37.50"


def test_7_get_current_stage(sql: Any, document: str) -> None:
    """The seventh returns the first stage that is not finished, and completed at the end."""
    for name in ("upload", "text_extraction", "image_processing"):
        sql("select krai_core.complete_stage(%s, %s)", document, name)
    query = "SELECT krai_core.get_current_stage('document-uuid');".replace("document-uuid", document)
    assert sql(query) == [("classification",)]
    for name in STAGES:
        sql("select krai_core.complete_stage(%s, %s)", document, name)
    assert sql(query) == [("completed",)]


def test_8_can_start_stage(sql: Any, document: str) -> None:
    """The eighth returns whether the prerequisites are met."""
    query = """
        SELECT krai_core.can_start_stage(
          'document-uuid',
          'embedding'
        );
        """.replace("document-uuid", document)
    assert sql(query) == [(False,)]
    for name in ("upload", "text_extraction"):
        sql("select krai_core.complete_stage(%s, %s)", document, name)
    assert sql(query) == [(True,)]


def test_the_five_status_values(sql: Any, document: str) -> None:
    """Each status is what its call leaves behind; a stage that was not touched is pending."""
    sql("select krai_core.start_stage(%s, 'text_extraction')", document)
    sql("select krai_core.complete_stage(%s, 'upload')", document)
    sql("select krai_core.fail_stage(%s, 'storage', 'R2 is away')", document)
    sql("select krai_core.skip_stage(%s, 'image_processing')", document)
    names = ("embedding", "text_extraction", "upload", "storage", "image_processing")
    states = [stage(sql, document, name)["status"] for name in names]
    assert states == ["pending", "processing", "completed", "failed", "skipped"]


def columns(sql: Any, view: str) -> dict[str, str]:
    """Names and types of the columns of a view, in order."""
    return dict(
        sql(
            "select column_name, data_type from information_schema.columns"
            " where table_schema = 'krai_core' and table_name = %s order by ordinal_position",
            view,
        )
    )


def test_the_view_documents_by_stage(sql: Any, document: str) -> None:
    """SELECT * gives one row per document: where it stands, and one JSON column for each stage."""
    sql("select krai_core.complete_stage(%s, 'upload')", document)
    rows = sql("SELECT * FROM krai_core.vw_documents_by_stage;")
    wanted = ["id", "filename", "current_stage", "progress_percentage", *(f"{name}_status" for name in STAGES)]
    types = columns(sql, "vw_documents_by_stage")
    assert list(types)[: len(wanted)] == wanted
    assert {types[f"{name}_status"] for name in STAGES} == {"jsonb"}
    row = dict(zip(types, rows[0], strict=True))
    assert (str(row["id"]), row["filename"]) == (document, "manual.pdf")
    assert (row["current_stage"], row["progress_percentage"]) == ("text_extraction", decimal.Decimal("12.50"))
    for name in STAGES:
        assert row[f"{name}_status"] == stage(sql, document, name)


def test_the_view_stage_statistics(sql: Any) -> None:
    """SELECT * gives the eight stages in their order, also without a document."""
    rows = sql("SELECT * FROM krai_core.vw_stage_statistics;")
    wanted = ["stage_name", "pending_count", "processing_count", "completed_count", "failed_count", "skipped_count"]
    wanted.append("avg_duration_seconds")
    assert list(columns(sql, "vw_stage_statistics"))[:7] == wanted
    assert [row[:7] for row in rows] == [(name, 0, 0, 0, 0, 0, None) for name in STAGES]


def timed(sql: Any, name: str, seconds: float) -> None:
    """Insert a document whose stage took that long."""
    sql(
        "insert into krai_core.documents (filename, stage_status) values ('a.pdf', jsonb_build_object(%s::text,"
        " jsonb_build_object('status', 'completed', 'progress', 100, 'duration_seconds', %s::numeric)))",
        name,
        seconds,
    )


def test_use_case_3_which_stage_takes_longest(sql: Any) -> None:
    """The third use case runs as it stands and sorts the stages by their average duration."""
    timed(sql, "embedding", 40)
    timed(sql, "embedding", 60)
    timed(sql, "upload", 1.5)
    rows = sql(
        """
        -- Which stage takes longest?
        SELECT
            stage_name,
            AVG(duration_seconds) as avg_duration
        FROM krai_core.vw_stage_statistics
        GROUP BY stage_name
        ORDER BY avg_duration DESC;
        """
    )
    assert len(rows) == 8
    measured = [row for row in rows if row[1] is not None]
    assert measured == [("embedding", 50), ("upload", decimal.Decimal("1.5"))]


def test_use_case_4_how_many_documents_wait(sql: Any, document: str) -> None:
    """The fourth use case counts the documents that wait for a stage or are in it."""
    sql("insert into krai_core.documents (filename) values ('second.pdf')")
    sql("select krai_core.start_stage(%s, 'text_extraction')", document)
    sql("select krai_core.complete_stage(%s, 'upload')", document)
    rows = sql(
        """
        -- How many documents are waiting for each stage?
        SELECT
            stage_name,
            pending_count + processing_count as active_count
        FROM krai_core.vw_stage_statistics
        ORDER BY active_count DESC;
        """
    )
    assert len(rows) == 8
    assert rows[-1] == ("upload", 1)
    assert dict(rows)["text_extraction"] == 2
    assert [count for _, count in rows] == sorted((count for _, count in rows), reverse=True)


def test_storage_per_document(sql: Any, document: str) -> None:
    """stage_status of a document takes 1 to 2 kB, as JSON text and in the table, new or finished."""
    sizes = "select pg_column_size(stage_status), length(stage_status::text) from krai_core.documents"
    ((stored, text),) = sql(sizes)
    assert 1000 < stored < 2048
    assert 1000 < text < 2048
    for name in STAGES:
        sql("select krai_core.start_stage(%s, %s)", document, name)
        sql("""select krai_core.complete_stage(%s, %s, '{"pages": 4386, "chunks": 52632}')""", document, name)
    ((stored, text),) = sql(sizes)
    assert stored < 2048
    assert 1000 < text < 2048
