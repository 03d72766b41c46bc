"""Skin lesion classification with GAN data augmentation, on JAX and Flax."""
