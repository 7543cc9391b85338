"""Matching checkpoints in files: the element, its file, the proof, the aligned model."""
