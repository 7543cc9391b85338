"""Checkpoints, zoos and everything else that exists: loading, storing, fitting."""
