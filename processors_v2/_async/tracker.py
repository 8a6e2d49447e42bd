"""AsyncStageTracker: each method is one call of one SQL function."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

from supabase import AsyncClient, acreate_client

from processors_v2._async.events import AsyncEvents
from processors_v2._async.operations import AsyncOperations
from processors_v2._async.pipeline import AsyncPipeline
from processors_v2._async.questions import AsyncQuestions
from processors_v2._async.queue import AsyncQueue
from processors_v2._async.rest import AsyncRestTransport
from processors_v2._async.threads import for_threads
from processors_v2._async.transport import AsyncTransport
from processors_v2._async.upkeep import AsyncUpkeep
from processors_v2._errors import ConfigurationError
from processors_v2._heart import Heart
from processors_v2._transport import environment, rest


class AsyncStageTracker(AsyncPipeline, AsyncQueue, AsyncOperations, AsyncQuestions, AsyncEvents, AsyncUpkeep):
    """Status of every stage of every document, kept by the database.

    May be shared by threads. What a method does and raises beyond this is said in the comment on the SQL function of
    the same name (``krai_core.start_stage`` and so on), which is the source of truth. Document ids are UUID or text,
    stage names text or Enum members with such a value. All methods raise UnknownDocument, UnknownStage,
    InvalidArgument, AccessDenied and DatabaseUnavailable from ``processors_v2.errors`` where these apply; nothing is
    changed then.

    Inside an AsyncStageContext of the same tracker, complete_stage, fail_stage and skip_stage act for its run.

    Args:
        supabase_client: Result of ``await supabase.acreate_client`` with the secret (or service_role) key; its default
            schema does not matter.
        websocket_callback: Called as ``(event, stage, document_id, status)`` after complete_stage and fail_stage, with
            event ``stage_completed`` or ``stage_failed``, where these changed something; may be a coroutine
            function. What it raises is logged.
        timeout: Seconds to wait for one answer of the database.
        retry_for: Seconds in all for one call. Calls that are safe to repeat are sent again with growing pauses until
            then; 0: never.
    """

    STAGES: ClassVar[list[str]] = [
        "upload",
        "text_extraction",
        "image_processing",
        "classification",
        "metadata_extraction",
        "storage",
        "embedding",
        "search_indexing",
    ]

    supabase: AsyncClient | None
    """The client, or None for a tracker of from_postgres."""

    def __init__(
        self,
        supabase_client: AsyncClient,
        websocket_callback: Callable[..., Any] | None = None,
        *,
        timeout: float = 10.0,
        retry_for: float = 30.0,
    ) -> None:
        rest.check_client(supabase_client, AsyncClient)
        transport = AsyncRestTransport(supabase_client, timeout=timeout, retry_for=retry_for)
        self._set_up(transport, supabase_client, websocket_callback)

    @classmethod
    async def from_env(cls, **options: Any) -> Self:
        """Return a tracker for the project that the environment names.

        Reads SUPABASE_URL and the first of SUPABASE_SECRET_KEYS (a JSON object, its entry "default"),
        SUPABASE_SECRET_KEY, SUPABASE_SERVICE_ROLE_KEY and SUPABASE_KEY, from the environment, else from a file .env in
        the working directory or above it.

        Args:
            **options: As for AsyncStageTracker, without the client.

        Raises:
            ConfigurationError: A variable is missing, URL and key are of two places, the key is an anon or publishable
                one, or the file cannot be read.
        """
        url, key = environment.project_from_env()
        return cls(await acreate_client(url, key), **options)

    @classmethod
    def from_postgres(
        cls,
        url: str,
        websocket_callback: Callable[..., Any] | None = None,
        *,
        timeout: float = 10.0,
        retry_for: float = 30.0,
    ) -> Self:
        """Return a tracker that talks to Postgres itself, or to a pooler before it, without PostgREST.

        Needs the extra ``postgres``: ``pip install 'stage-tracker[postgres]'``.

        Args:
            url: ``postgresql://user:password@host:5432/database``, of a role that may execute the functions of
                krai_core, as ``postgres`` and ``service_role`` may; a pooler may be in transaction mode.
            websocket_callback: As for AsyncStageTracker.
            timeout: As for AsyncStageTracker.
            retry_for: As for AsyncStageTracker.

        Raises:
            ConfigurationError: The URL cannot be read, or psycopg is not installed.
        """
        try:
            from processors_v2._async.postgres import AsyncPostgresTransport  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError(
                f"from_postgres needs psycopg: {error}", hint="pip install 'stage-tracker[postgres]'"
            ) from error
        tracker = cls.__new__(cls)
        transport = AsyncPostgresTransport(url, timeout=timeout, retry_for=retry_for)
        tracker._set_up(transport, None, websocket_callback)  # noqa: SLF001 - it is made here
        return tracker

    def _set_up(
        self,
        transport: AsyncTransport,
        client: AsyncClient | None,
        websocket_callback: Callable[..., Any] | None,
    ) -> None:
        super().__init__()
        self._transport = transport
        self.supabase = client
        self.websocket_callback = websocket_callback
        # Heartbeats come from a thread, which has no event loop: a blocked one must not cost a lease.
        self._heart = Heart(for_threads(transport).send)

    def __repr__(self) -> str:
        return f"AsyncStageTracker({self._transport!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AsyncStageTracker holds a key and is not pickled: build it in the other process, "
            "for instance by AsyncStageTracker.from_env()"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that are not in use; a later call opens others."""
        await self._transport.close()
