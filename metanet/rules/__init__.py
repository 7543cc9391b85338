"""Dimension-inference rules, one family of operations per file."""
