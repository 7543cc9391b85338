"""Meta-training of learned optimizers: inner tasks, estimators of the meta-gradient, and the loop."""
