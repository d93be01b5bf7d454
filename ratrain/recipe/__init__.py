"""How a model is trained: learning rate, activation, optimizers, weight pruning."""
