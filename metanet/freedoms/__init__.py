"""What acts on the units beside permutation, derived from the operations of a network."""
