"""Stage image_processing: every image once, as PNG, with a thumbnail."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from pypdf import PageObject

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext

THUMBNAIL_PIXELS = (160, 160)


class UnreadableImagesError(Exception):
    """There are images, but not one of them could be decoded."""


def extract_images(work: Workspace, document_id: str) -> None:
    """Take all images out of the document."""
    with StageContext(work.tracker, document_id, "image_processing") as ctx:
        reader = work.open_pdf(document_id)
        folder = work.scratch / document_id
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[str, tuple[object, ...]] = {}
        unreadable: list[str] = []
        pages = ctx.track(work.until_stopped(reader.pages), total=len(reader.pages))
        for number, page in enumerate(pages, start=1):
            for image, problem in images_of(page):
                if image is None:
                    unreadable.append(f"page {number}: {problem}")
                    continue
                png = as_png(image)
                digest = hashlib.sha256(png).hexdigest()
                if digest in rows:  # a logo is on every page
                    continue
                path, thumbnail = folder / f"{digest}.png", folder / f"{digest}.thumb.png"
                path.write_bytes(png)
                save_thumbnail(image, thumbnail)
                rows[digest] = (document_id, digest, number, *image.size, str(path), str(thumbnail))
        if unreadable:
            ctx.set_metadata("unreadable_images", unreadable[:20])
        if unreadable and not rows:
            raise UnreadableImagesError(f"None of {len(unreadable)} images can be read; {unreadable[0]}")
        if not rows:
            ctx.skip("No images found in PDF")
            return
        with work.database() as db, db.cursor() as cursor:
            cursor.execute("delete from manuals.images where document_id = %s", [document_id])
            cursor.executemany(
                "insert into manuals.images (document_id, sha256, page, width, height, path, thumbnail_path)"
                " values (%s, %s, %s, %s, %s, %s, %s)",
                list(rows.values()),
            )
        ctx.set_metadata("images", len(rows))


def images_of(page: PageObject) -> Iterator[tuple[Image.Image | None, str]]:
    """Yield (image, "") for each image of a page, or (None, why) for one that cannot be decoded.

    One odd image among hundreds is worth a note, not a failed stage.
    """
    images = page.images
    for number in range(len(images)):
        try:
            image = images[number].image
        except Exception as error:  # noqa: BLE001  pypdf and Pillow meet odd images with many exception types
            yield None, f"{type(error).__name__}: {error}"
        else:
            yield image, ""


def as_png(image: Image.Image) -> bytes:
    """Return the image as a PNG file."""
    data = io.BytesIO()
    (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")).save(data, "PNG")
    return data.getvalue()


def save_thumbnail(image: Image.Image, path: Path) -> None:
    """Write a small copy of the image, with its proportions."""
    small = image.convert("RGB")
    small.thumbnail(THUMBNAIL_PIXELS)
    small.save(path, "PNG")
