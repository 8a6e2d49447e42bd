"""How the background thread of a tracker reaches the database; _sync/threads.py is the twin."""

from processors_v2._async.rest import AsyncRestTransport
from processors_v2._async.transport import AsyncTransport
from processors_v2._sync.rest import RestTransport
from processors_v2._sync.transport import Transport


def for_threads(transport: AsyncTransport) -> Transport:
    """Return a transport to the same place that needs no event loop."""
    if isinstance(transport, AsyncRestTransport):
        return RestTransport(transport.source, **transport.times)
    from processors_v2._sync.postgres import PostgresTransport  # noqa: PLC0415 - an extra

    return PostgresTransport(transport.source, **transport.times)
