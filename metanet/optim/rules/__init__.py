"""Update rules: the structured one, networks on top of it, and those of the literature."""
