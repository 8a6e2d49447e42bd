"""What the documents of a big table are like: how far each has come, and what went wrong with some.

A pattern has a letter for each of the eight stages in their order: p pending, r processing, c completed, f failed,
s skipped. Nothing is finished before what it requires.
"""

from typing import NamedTuple


class Pattern(NamedTuple):
    """How far documents have come, and how many of their zone are like that."""

    zone: str
    share: float
    states: str


# The last 28 % that came are the backlog; of those before nearly all are finished.
OLD, NEW, RUNNING = "old", "new", "running"
BACKLOG_SHARE = 0.28
FAILED = {
    "fppppppp": 0.10,
    "cfcppcpp": 0.25,
    "ccfcccpp": 0.15,
    "cccfccpp": 0.10,
    "ccccfccp": 0.15,
    "cccccfcc": 0.05,
    "ccccccfp": 0.15,
    "cccccccf": 0.05,
}
FAILED_SHARE = 0.0125

PATTERNS = (
    *(Pattern(zone, FAILED_SHARE * share, states) for zone in (OLD, NEW) for states, share in FAILED.items()),
    Pattern(OLD, 0.8800, "cccccccc"),
    Pattern(OLD, 0.0800, "ccscccsc"),
    Pattern(OLD, 0.0195, "ccsccscc"),
    Pattern(OLD, 0.0020, "ssssssss"),
    Pattern(OLD, 0.0030, "cccccccp"),
    Pattern(OLD, 0.0030, "ccpcppcp"),
    Pattern(NEW, 0.0150, "cccccccc"),
    Pattern(NEW, 0.4225, "pppppppp"),
    Pattern(NEW, 0.1500, "cppppppp"),
    Pattern(NEW, 0.0800, "cpcppppp"),
    Pattern(NEW, 0.0800, "ccpppppp"),
    Pattern(NEW, 0.0600, "ccccpppp"),
    Pattern(NEW, 0.0500, "cccccppp"),
    Pattern(NEW, 0.0400, "ccscpspp"),
    Pattern(NEW, 0.0500, "cccccpcp"),
    Pattern(NEW, 0.0400, "cccccccp"),
    # The longer a stage takes, the more of it is being worked on.
    Pattern(RUNNING, 0.02, "rppppppp"),
    Pattern(RUNNING, 0.28, "crpppppp"),
    Pattern(RUNNING, 0.36, "ccrppppp"),
    Pattern(RUNNING, 0.03, "cccrpppp"),
    Pattern(RUNNING, 0.06, "ccccrppp"),
    Pattern(RUNNING, 0.04, "cccccrpp"),
    Pattern(RUNNING, 0.18, "ccccccrp"),
    Pattern(RUNNING, 0.03, "cccccccr"),
)

# Stages that are being worked on, whatever the size: by so many workers, and of so many the lease is over.
RUNNING_STAGES, WORKERS, STALLED = 256, 32, 6

# Stage, and how many seconds of work half of its runs take.
SECONDS = {
    "upload": 1.2,
    "text_extraction": 45.8,
    "image_processing": 60.0,
    "classification": 3.0,
    "metadata_extraction": 8.0,
    "storage": 4.0,
    "embedding": 30.0,
    "search_indexing": 2.0,
}

# What differs from one failure to the next stands in braces.
ERRORS = (
    "OCR engine timeout after {n} s",
    "OCR engine timeout on page {n} of {m}",
    "PDF syntax error at byte {n}: xref table of {path} is damaged",
    "cannot open {path}: No such file or directory",
    "cannot open {path}: Permission denied",
    "page {n}: font {hex} is not embedded",
    "document {id} is encrypted and no password is known",
    "image {n} of {m} has {m} pixels, more than the limit of 178956970",
    "CUDA out of memory. Tried to allocate {n}.{m} MiB (GPU 0; 23.69 GiB total)",
    "vision model answered 429 Too Many Requests, retry after {n} s (request {id})",
    "vision model answered 500 Internal Server Error (request {id})",
    "vision model answered 503 Service Unavailable (request {id})",
    "embedding service: connection to 10.0.{n}.{m}:8080 refused",
    "embedding service: read timed out after {n} ms",
    "embedding has {n} dimensions, expected 768",
    "chunk {n} of {m} is longer than the limit of 8192 tokens",
    "no manufacturer matches {hex} with a score above 0.{n}",
    "two manufacturers match with the same score 0.{n}: {m} and {n}",
    "error code {n}.{m} is defined twice, on pages {n} and {m}",
    "version {n}.{m}.{n} is older than the one that is stored",
    "R2 upload of {path} failed: 403 SignatureDoesNotMatch (RequestId: {hex})",
    "R2 upload of {path} failed: 500 InternalError (RequestId: {hex})",
    "R2 upload: part {n} of {m} has a wrong checksum {hex}",
    "bucket quota of {n} GiB is exceeded by {m} bytes",
    'duplicate key value violates unique constraint "chunks_pkey" DETAIL: Key (id)=({id}) already exists.',
    "deadlock detected: process {n} waits for ShareLock on transaction {m}",
    "canceling statement due to statement timeout after {n} ms",
    "search index shard {n} is read-only (disk {path} is {m} % full)",
    "search index: mapping of field attr_{n} differs from that of document {id}",
    "JSONDecodeError: Expecting value: line {n} column {m} (char {n})",
    "UnicodeDecodeError: 'utf-8' codec can't decode byte 0x{hex} in position {n}",
    "KeyError: 'page_{n}'",
    "MemoryError while reading {path}",
    "OSError: [Errno 28] No space left on device: '{path}'",
    "subprocess exited with code {n}: tesseract {path}",
    "worker killed by signal 9 after {n} s (rss {m} kB)",
    "HTTPSConnectionPool(host='api.example.com', port=443): Read timed out. (read timeout={n})",
    "checksum of {path} is {hex}, expected another",
    "table on page {n} has {m} columns, more than 64",
    "language of document {id} could not be told (confidence 0.{n})",
)  # fmt: skip
