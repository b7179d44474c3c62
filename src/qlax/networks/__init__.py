"""Q-networks, in JAX and in NumPy."""
