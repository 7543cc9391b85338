"""Merging checkpoints in files: sources, plan, engine, output."""
