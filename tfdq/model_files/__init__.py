"""Model files are untrusted input: they are checked before a Keras reads them."""
