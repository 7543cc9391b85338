"""Training networks with optimizers, learned and other: tasks, baselines, the benchmark and its report."""
