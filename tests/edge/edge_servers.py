"""What the tests of the HTTP endpoints start: a gateway before PostgREST, and Edge Functions under Deno."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from deno import find_deno_bin

from processors_v2._local.postgrest import cache_folder
from processors_v2._local.process import Server, Watchdog, clean_environment, free_port, private_folder, wait_until

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ROOT / "supabase" / "functions"
DENO = find_deno_bin()
START_SECONDS = 60.0
# What opens the gateway of a hosted project, were it one.
PUBLISHABLE = "sb_publishable_of_the_tests"
# What the gateway of a project does not hand on as it is.
HOP_BY_HOP = {"host", "connection", "accept-encoding", "content-encoding", "content-length", "transfer-encoding"}

Fault = tuple[int, str]


@dataclass
class Gateway:
    """HTTP before PostgREST and the functions, at the paths that a Supabase project has for them.

    Attributes:
        targets: URL by prefix of the path, which is taken away.
        faults: status and body of the next answers, which reach nobody.
        seen: headers of the requests, their names in small letters.
    """

    targets: dict[str, str]
    faults: list[Fault] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin to serve."""
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet

            def handle_any(self) -> None:
                gateway.handle(self)

            do_GET = do_POST = do_OPTIONS = do_DELETE = handle_any  # noqa: N815 - so are they called there

            def log_message(self, *_: object) -> None:
                pass

        self._pool = httpx.Client(timeout=30, trust_env=False)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        """What SUPABASE_URL is to be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._pool.close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Hand a request on, and its answer back."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(headers)
        if self.faults:
            status, text = self.faults.pop(0)
            return self._send(request, status, {"content-type": "text/html"}, text.encode())
        prefix = next((prefix for prefix in self.targets if request.path.startswith(prefix)), None)
        if prefix is None:
            return self._send(request, 404, {}, b"")
        passed = {name: value for name, value in headers.items() if name not in HOP_BY_HOP}
        url = self.targets[prefix] + request.path.removeprefix(prefix)
        try:
            answer = self._pool.request(request.command, url, headers=passed, content=body)
        except httpx.TransportError:
            return self._send(request, 502, {"content-type": "text/html"}, b"<html>Bad gateway</html>")
        return self._send(request, answer.status_code, answer.headers, answer.content)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes) -> None:
        request.send_response(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                request.send_header(name, value)
        if status not in (204, 304):
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


class Programs:
    """Servers of the tests, each with a port and a log of its own; they end with the block, or with this process."""

    def __init__(self, ends: ExitStack) -> None:
        self._ends = ends
        self._watchdog = Watchdog()
        ends.callback(self._watchdog.close)
        self._folder = private_folder(None)
        self._watchdog.tell(folder=str(self._folder))

    def start(self, name: str, command: Callable[[int], list[str | Path]], environment: Mapping[str, str]) -> str:
        """Start a server and wait until it answers anything at all.

        Args:
            name: of its log.
            command: what to run, given the port.
            environment: beside that of this process, of which nothing that names a project is handed on.

        Returns:
            Its URL.
        """
        port = free_port()
        server = Server(name, self._folder / f"{name}.log", self._watchdog, signal.SIGTERM)
        inherited = {name: value for name, value in clean_environment().items() if not name.startswith("SUPABASE_")}
        server.start(command(port), env={**inherited, **environment}, cwd=ROOT)
        self._ends.callback(server.stop, (signal.SIGTERM, 1.0))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: not server.is_running or answers(url), START_SECONDS)
        assert answers(url), server.output()
        return url

    def output(self, name: str) -> str:
        """What a server has written."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")


def answers(url: str) -> bool:
    """Whether something listens there and speaks HTTP."""
    try:
        httpx.get(url, timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return True


@contextmanager
def programs() -> Iterator[Programs]:
    """Servers that end with the block."""
    with ExitStack() as ends:
        yield Programs(ends)


def deno_environment() -> dict[str, str]:
    """What Deno needs: a cache of the project's own, and no look at whether there is a newer Deno."""
    return {"DENO_DIR": str(cache_folder() / "deno"), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}


def serve_function(started: Programs, name: str, environment: Mapping[str, str], log: str = "") -> str:
    """Serve a function as it is deployed: with no other permission than that to ask, and no code but its own.

    Returns:
        URL, before the path that begins with the name of the function.
    """
    allowed = ["--allow-net=127.0.0.1", "--allow-env", "--no-prompt", "--no-remote", "--no-npm"]
    return started.start(
        log or name,
        lambda port: [DENO, "serve", f"--port={port}", "--host=127.0.0.1", *allowed, FUNCTIONS / name / "index.ts"],
        {**deno_environment(), **environment},
    )
