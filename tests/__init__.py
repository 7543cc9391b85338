"""Tests, mirroring the packages; helpers are imported as `tests.…`."""
