"""From a module to dimension variables: tracing, interpretation, unification, names."""
