"""The folder of a run: lock, checkpoints, records, digests, provenance, archive."""
