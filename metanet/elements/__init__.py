"""How elements of a symmetry group act: permutations, freedoms of units, actions."""
