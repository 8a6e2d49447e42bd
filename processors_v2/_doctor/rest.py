"""What goes wrong on the way through PostgREST, and what it hides."""

import httpx
import supabase

from processors_v2._doctor.findings import Finding, ok, problem, problem_of
from processors_v2._errors import (
    AccessDenied,
    ConfigurationError,
    DatabaseUnavailable,
    MigrationMissing,
    SchemaNotExposed,
    StageTrackerError,
)
from processors_v2._sync.pool import chosen_http_client, new_http_client
from processors_v2._transport import environment, rest

REACH = "Check the URL and the network, and that the project is neither paused nor deleted"
_RELOAD = (
    "Run in the SQL editor: notify pgrst, 'reload schema'; If that does not help, PostgREST does not listen: restart it"
)
_KEY = "Project Settings > API Keys shows the secret key; locally `supabase status` does"
_GRANT = (
    "Run in the SQL editor: grant usage on schema krai_core to service_role; Then run the migrations again, "
    "which grant the rest: stage-tracker sql prints them"
)
_MAX_ROWS = (
    "Local: raise max_rows under [api] in supabase/config.toml. Hosted: Project Settings > Data API > Max rows. "
    "Self-hosted: PGRST_DB_MAX_ROWS. The tracker itself does not depend on it"
)


class Gateway:
    """PostgREST, as a supabase client reaches it.

    Args:
        client: A supabase client.
        timeout: Seconds to wait for one answer.
    """

    def __init__(self, client: supabase.Client, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    def key(self) -> Finding:
        """Look at the key itself, without asking anybody."""
        try:
            environment.refuse_public_key(self._client.supabase_key, "the key")
        except ConfigurationError as error:
            return problem_of("key", error)
        return ok("key", "the key is none of those made for browsers")

    def judge(self, error: StageTrackerError) -> Finding:
        """Say what is the matter where a call got no answer."""
        match error:
            case DatabaseUnavailable():
                found = problem("connection", error.message, REACH)
            case SchemaNotExposed():
                found = problem_of("schema", error)
            case MigrationMissing(code="PGRST202") if self._is_in_catalog("get_installation"):
                found = stale()
            case MigrationMissing():
                found = not_migrated(error)
            case AccessDenied(code="42501"):
                found = problem("grants", error.message, _GRANT)
            case AccessDenied():
                found = problem("key", f"{rest.host_of(self._client)} refuses the key: {error.message}", _KEY)
            case _:
                found = problem_of("url", error)
        return found

    def _is_in_catalog(self, function: str) -> bool:
        """Whether the database has a function that PostgREST may not know.

        Its description of the API lists the functions of the catalog; those that it serves are the ones in its cache.
        """
        answer = self._request("GET", "/", {})
        try:
            return answer is not None and f"/rpc/{function}" in answer.json()["paths"]
        except (ValueError, LookupError, TypeError):
            return False

    def max_rows(self) -> Finding:
        """Look whether PostgREST hides documents from those who select all."""
        answer = self._request("HEAD", "/documents?select=id", {"Prefer": "count=estimated"})
        span, _, total = ("" if answer is None else answer.headers.get("Content-Range", "")).partition("/")
        if not total.isdigit():
            status = "no answer" if answer is None else f"HTTP {answer.status_code}"
            return Finding("max_rows", "note", f"how many documents PostgREST returns could not be seen ({status})")
        returned = 0 if span == "*" else int(span.partition("-")[2]) + 1
        if returned < int(total):
            text = f"PostgREST returns at most {returned} rows, and documents are more: a select of all misses some"
            return problem("max_rows", text, _MAX_ROWS)
        return ok("max_rows", "PostgREST returns all documents to whoever selects all")

    def _request(self, method: str, path: str, headers: dict[str, str]) -> httpx.Response | None:
        """Ask for what is no call; None where nothing comes back."""
        headers = {**self._client.options.headers, **headers, "Accept-Profile": rest.SCHEMA_NAME}
        chosen = chosen_http_client(self._client)
        http = chosen or new_http_client()
        try:
            return http.request(method, rest.url_of(self._client) + path, headers=headers, timeout=self._timeout)
        except (httpx.TransportError, *rest.UNSENDABLE):
            return None
        finally:
            if http is not chosen:
                http.close()


def not_migrated(error: StageTrackerError) -> Finding:
    """Return that a function is not there, as far as one can see."""
    return problem("migrations", f"not all migrations were applied: {error.message}", error.hint)


def stale() -> Finding:
    """Return that functions are there, and PostgREST does not know them."""
    return problem("cache", "the schema cache of PostgREST is stale: the database has functions that it lacks", _RELOAD)
