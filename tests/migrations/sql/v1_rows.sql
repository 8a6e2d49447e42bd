-- Rows as an earlier tracker, its scripts and its bugs left them, on top of v1.sql. The name says what is odd.

insert into krai_core.documents (id, filename, processing_status, stage_status, created_at, updated_at)
select ('00000000-0000-4000-9000-' || lpad(n::text, 12, '0'))::uuid, name, processing_status, stage_status::jsonb,
    '2021-03-04 05:06:07+00', '2022-03-04 05:06:07+00'
from (values
    (1, 'null', 'pending', null),
    (2, 'empty object', 'pending', '{}'),
    (3, 'partial', 'processing', '{"upload": {"status": "completed", "started_at": "2026-11-23 17:09:20.958275+00",
        "completed_at": "2026-11-23 18:09:22.158275+01", "duration_seconds": 1.2, "progress": 100, "error": null, "metadata": {"page_count": 12}}}'),
    (4, 'json null', 'pending', 'null'),
    (5, 'whole value a string', 'pending', '"completed"'),
    (6, 'whole value an array', 'pending', '["upload", "storage"]'),
    (7, 'whole value a number', 'pending', '42'),
    (8, 'strings', 'processing', '{"upload": "completed", "text_extraction": "in_progress", "storage": "failed"}'),
    (9, 'status in_progress', 'processing', '{"text_extraction": {"status": "in_progress", "started_at": "2026-11-23 17:09:20.958275+00", "note": "by hand"}}'),
    (10, 'stages of other kinds', 'pending', '{"upload": [1, 2], "storage": 7, "embedding": true, "classification": null}'),
    (11, 'unknown keys', 'pending', '{"product_extraction": "completed", "chunking": {"status": "in_progress"}, "upload": {"status": "completed", "worker": "w1"}}'),
    (12, 'progress NaN', 'processing', '{"upload": {"status": "processing", "progress": "NaN", "metadata": {}}}'),
    (13, 'progress out of range', 'processing', '{"upload": {"status": "completed", "progress": 150}, "storage": {"status": "pending", "progress": -5}}'),
    (14, 'negative duration', 'processing', '{"upload": {"status": "completed", "duration_seconds": -3600.5, "progress": 100, "metadata": {}}}'),
    (15, 'metadata an array', 'processing', '{"upload": {"status": "completed", "metadata": [1, 2]}}'),
    (16, 'failed', 'failed', '{"upload": {"status": "failed", "started_at": "2026-11-23 17:09:20+00", "error": "bad OCR", "progress": 80, "metadata": {"page": 7}}}'),
    (17, 'skipped', 'processing', '{"image_processing": {"status": "skipped", "metadata": {"reason": "No images found in PDF"}}}'),
    (18, 'times that are none', 'processing', '{"upload": {"status": "completed", "started_at": "yesterday-ish", "completed_at": 1764, "progress": 100, "metadata": {}}}'),
    (19, 'archive without a value', 'completed', null),
    (20, 'archive untouched', 'completed', '{"upload": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}}}'),
    (21, 'archive never tracked to its end', 'completed', '{"upload": {"status": "completed", "started_at": "2026-11-23 17:09:20+00",
        "completed_at": "2026-11-23 17:09:30+00", "duration_seconds": 10, "progress": 100, "error": null, "metadata": {"pages": 3}},
        "storage": {"status": "failed", "error": "no bucket"}, "text_extraction": "in_progress"}'),
    (22, 'status of another case', 'processing', '{"upload": {"status": "Completed"}, "storage": {"status": 5}, "embedding": {"status": null}}')
) as odd (n, name, processing_status, stage_status);
