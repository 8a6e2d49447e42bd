"""The parts of StageWorker: who claims, who runs, who reports, who keeps the leases; each in a thread of its own."""
