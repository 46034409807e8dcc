"""Training: losses, optimiser, augmentation, data, the loop that survives being killed, and the recipes' runs."""
