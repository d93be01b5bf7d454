"""The training recipe: learning rate, activation, optimizers, weight pruning."""
