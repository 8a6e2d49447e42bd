"""Stages on a Dask cluster: two machines here, as two processes, one of which dies under way.

    pip install "stage-tracker[local,dask]"
    python examples/distributed_dask.py

The embedded database is started, forty documents are put in, and one StageWorker claims their stages, hands them to the
cluster, and reports how they ended. Halfway one process of the cluster is killed, as by kill -9. Nothing is lost: Dask
gives what it had to the other one, and what Dask cannot save the database hands out again.

On a cluster of your own, replace LocalCluster by the address of its scheduler, and LocalSupabase by
StageTracker.from_env(). Handlers must be importable on its machines, or stand in the program that is run, as here.
"""

import os
import signal
import threading
import time

from dask.distributed import Client, LocalCluster

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

DOCUMENTS = 40


def extract_text(ctx: RunContext) -> dict[str, object]:
    """Take its time, and say where."""
    time.sleep(0.1)
    return {"process": os.getpid(), "pages": len(ctx.filename or "")}


def extract_images(ctx: RunContext) -> dict[str, object] | None:
    """Skip every other document."""
    if ctx.document_id < "8":
        ctx.skip("No images found in PDF")
        return None
    return {"process": os.getpid()}


def kill_one_soon(client: Client, worker: StageWorker) -> None:
    """Kill one process of the cluster when a quarter of the work is done."""
    processes = client.run(os.getpid)
    victim = next(iter(processes.values()))
    while worker.counts["completed"] < DOCUMENTS / 4:
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    print(f"Killed process {victim}, one of {sorted(processes.values())}, at {worker.counts['completed']} stages.")


def main() -> None:
    """Run two stages of each document, and show what became of every stage."""
    with (
        LocalSupabase() as local,
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        supabase = local.client()
        tracker = StageTracker(supabase)
        rows = [{"filename": f"manual-{number}.pdf"} for number in range(DOCUMENTS)]
        ids = [row["id"] for row in supabase.schema("krai_core").table("documents").insert(rows).execute().data]
        for document in ids:
            tracker.complete_stage(document, "upload")

        worker = StageWorker(
            tracker,
            {"text_extraction": extract_text, "image_processing": extract_images},
            executor=client.get_executor(),
            # As many as the cluster has threads, and some on their way.
            concurrency=4,
        )
        threading.Thread(target=kill_one_soon, args=(client, worker), daemon=True).start()
        worker.run(until_empty=True)

        print(f"The worker counts {worker.counts}.")
        for name, counts in tracker.get_statistics().items():
            print(
                f"{name:20} {counts['completed']:3} completed {counts['skipped']:3} skipped {counts['failed']:3} failed"
            )


if __name__ == "__main__":
    main()
