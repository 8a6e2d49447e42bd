"""Stage storage: the file and its images into an object store, under the hash of their bytes.

The store is a folder here. For R2 or S3, replace `put` by one conditional upload:
`s3.put_object(Bucket=..., Key=key, Body=data, IfNoneMatch="*")`; the rest stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext


def store_objects(work: Workspace, document_id: str) -> None:
    """Put the document and what was taken out of it into the store."""
    with StageContext(work.tracker, document_id, "storage") as ctx:
        with work.database() as db:
            paths = [
                Path(path)
                for (path,) in db.execute(
                    "select path from manuals.files where document_id = %(id)s"
                    " union all select unnest(array[path, thumbnail_path])"
                    " from manuals.images where document_id = %(id)s",
                    {"id": document_id},
                )
            ]
        rows: dict[str, tuple[object, ...]] = {}
        for path in ctx.track(work.until_stopped(paths), total=len(paths)):
            data = path.read_bytes()
            key = put(work.store, data)
            rows[key] = (document_id, key, path.name, len(data))
        with work.database() as db, db.cursor() as cursor:
            cursor.execute("delete from manuals.objects where document_id = %s", [document_id])
            cursor.executemany(
                "insert into manuals.objects (document_id, object_key, name, size_bytes) values (%s, %s, %s, %s)",
                list(rows.values()),
            )
        ctx.set_metadata("objects", len(rows))


def put(store: Path, data: bytes) -> str:
    """Store the bytes and return their key; bytes that are there already are not written again."""
    key = hashlib.sha256(data).hexdigest()
    target = store / key[:2] / key
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written beside the target and renamed, so that no reader ever sees half an object.
        handle, name = tempfile.mkstemp(dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(target)
    return key
