"""How big: the model's hyperparameters and shapes, and the memory that weights and cache take."""
