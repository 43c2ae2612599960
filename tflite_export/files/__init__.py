"""`.tflite` files: read, write, validate, what they cost and what metadata they carry."""
