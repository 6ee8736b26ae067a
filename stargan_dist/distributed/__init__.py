"""The process group of a run, its collectives, and the heartbeats of its ranks."""
