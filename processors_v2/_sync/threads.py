"""How the background thread of a tracker reaches the database; _async/threads.py is the twin."""

from processors_v2._sync.transport import Transport


def for_threads(transport: Transport) -> Transport:
    """Return the transport itself: it may be shared by threads."""
    return transport
