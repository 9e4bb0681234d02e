"""From bytes on disk to named tensors, and from those to a built model.

`safetensors` reads and writes the one format that models are loaded from, `pickles` reads the old pickled ones
without running anything in them, `convert` turns the second into the first, and `folders` knows where people keep
their files.
"""
