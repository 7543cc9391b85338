"""Fitting zoos, thousands of networks at a time."""
