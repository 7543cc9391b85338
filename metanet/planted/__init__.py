"""Random networks together with the group that they were built to have."""
