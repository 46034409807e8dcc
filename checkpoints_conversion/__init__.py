"""Foreign weights → jaxclip checkpoints: open the file, map every name, write the folder, compare the outputs."""
