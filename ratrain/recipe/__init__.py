"""How a model is trained: data, schedule, activation, optimizers, pruning."""
