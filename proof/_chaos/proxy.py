"""The network before PostgREST: the gateway that knows /rest/v1, and drops answers.

An answer is dropped after the server has done its work: the connection ends instead. Nothing else is changed, so that
all that the workers meet besides is what PostgREST and Postgres do themselves.
"""

import asyncio
import contextlib
import random
import threading
from collections import Counter

_LARGEST_HEAD = 1 << 16
_GONE = (ConnectionError, asyncio.IncompleteReadError, TimeoutError)


class Proxy:
    """Serves on a loopback port, in a thread of its own.

    Args:
        port: that of PostgREST.
        dropped: share of the answers to drop.
        seed: which ones.

    Attributes:
        url: for ``create_client``.
        answers: so many were passed on, by name of the function.
        drops: so many were dropped.
    """

    def __init__(self, port: int, *, dropped: float = 0.0, seed: int = 0) -> None:
        self.answers: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self._next: list[str] = []
        self._upstream = port
        self._dropped = dropped
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_LARGEST_HEAD)
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    def drop_next(self, function: str) -> None:
        """Drop the answer of the next call of a function."""
        self._next.append(function)

    def close(self) -> None:
        """End all connections, and the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        # Not by cancelling: a connection that is cancelled is reported as an error of the server.
        for writer in self._serving.values():
            writer.transport.abort()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        try:
            with contextlib.suppress(*_GONE):
                await self._pass_on(reader, writer)
        finally:
            self._serving.pop(task)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client has one of its own to PostgREST, so that the ends of both go together."""
        upstream: asyncio.StreamWriter | None = None
        try:
            while True:
                head, body = await _message(reader)
                line, rest = head.split(b"\r\n", 1)
                line = line.replace(b" /rest/v1/", b" /", 1)
                function = line.split(b" ")[1].partition(b"?")[0].rpartition(b"/")[2].decode()
                if upstream is None:
                    answers, upstream = await asyncio.open_connection("127.0.0.1", self._upstream, limit=_LARGEST_HEAD)
                upstream.write(line + b"\r\n" + rest + body)
                answer_head, answer_body = await _message(answers)
                if self._is_dropped(function):
                    self.drops[function] += 1
                    return
                self.answers[function] += 1
                writer.write(answer_head + answer_body)
                await writer.drain()
        finally:
            if upstream is not None:
                upstream.transport.abort()

    def _is_dropped(self, function: str) -> bool:
        if function in self._next:
            self._next.remove(function)
            return True
        return self._random.random() < self._dropped


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of an HTTP/1.1 message as they came."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
    if headers.get(b"transfer-encoding", b"").strip() == b"chunked":
        parts = []
        while True:
            size = await reader.readuntil(b"\r\n")
            parts += [size, await reader.readexactly(int(size, 16) + 2)]
            if int(size, 16) == 0:
                return head, b"".join(parts)
    return head, await reader.readexactly(int(headers.get(b"content-length", b"0")))
