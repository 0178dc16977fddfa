"""How the embedded model is made: a procedural world, its autoencoder, and flow-matching training on it."""
