"""Values and gradients of a function on Keras' backend, from and to NumPy."""
