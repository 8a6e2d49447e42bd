"""Answers that come in pages."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from processors_v2._async.transport import AsyncTransport
from processors_v2._calls.call import Call

_PAGE = 100


async def documents(
    transport: AsyncTransport, call: Callable[[int, str | None], Call[dict[str, Any]]], limit: int | None
) -> AsyncIterator[dict[str, Any]]:
    """Go through the documents of an answer that tells where the next page begins.

    Args:
        transport: Where to ask.
        call: Makes the request, from the size of the page and where it begins.
        limit: Most documents to give; None: all.

    Yields:
        The documents.
    """
    after, left = None, limit
    # A number below 0 is asked for, too: what is wrong with it the database says.
    while left != 0:
        page = await transport.send(call(_PAGE if left is None else min(_PAGE, left), after))
        for document in page["documents"]:
            yield document
        after = page["next"]
        if after is None:
            return
        left = None if left is None else left - len(page["documents"])


async def rows(
    transport: AsyncTransport, call: Callable[[dict[str, Any] | None], Call[list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """Return all rows of a view.

    Args:
        transport: Where to ask.
        call: Makes the request for the rows beyond one; None: from the beginning.
    """
    found: list[dict[str, Any]] = []
    page = await transport.send(call(None))
    while page:
        found += page
        page = await transport.send(call(page[-1]))
    return found
