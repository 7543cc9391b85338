"""Canonical forms: the freedoms of single units taken out exactly."""
