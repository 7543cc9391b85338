"""Which groups may permute independently for every unit of another."""
