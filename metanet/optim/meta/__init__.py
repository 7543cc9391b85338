"""Meta-training of learned optimizers: inner tasks, evolution strategies, and the loop around them."""
