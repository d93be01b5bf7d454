"""Foreign modules: how they are made, and how they stand in a layer of the model."""
