"""A twin experiment with the Lorenz-96 model: from scattered observations to initial state and forcing."""
