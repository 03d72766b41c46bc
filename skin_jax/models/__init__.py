"""Networks in Flax linen: no configuration, no files, no TensorFlow."""
