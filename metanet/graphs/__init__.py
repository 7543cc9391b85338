"""Parameter graphs: units as nodes, parameters as edges."""
