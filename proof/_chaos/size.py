"""How large a run of chaos is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """What is to be done, and what is to go wrong meanwhile.

    Attributes:
        documents: how many, of eight stages each.
        workers: processes at a time.
        plain: so many of them are a plain loop over the calls, the others StageWorkers.
        kills: kill -9 of a worker, which is replaced at once.
        stops: SIGSTOP for longer than the lease.
        restarts: immediate restarts of Postgres.
        postgrest_kills: kills of PostgREST, which is started again at once.
        dropped: share of the answers that are dropped after the server has done its work.
        lease_seconds: for which a run is held without a sign of life.
    """

    documents: int = 2500
    workers: int = 8
    plain: int = 4
    kills: int = 1000
    stops: int = 200
    restarts: int = 20
    postgrest_kills: int = 50
    dropped: float = 0.1
    lease_seconds: float = 1.5

    @property
    def stage_runs(self) -> int:
        """Stages to be ended."""
        return self.documents * 8


FULL = Size()
SHORT = Size(documents=500, kills=200, stops=40, restarts=4, postgrest_kills=10)
