"""Layers and metanetworks."""
