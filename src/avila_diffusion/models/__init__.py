"""The networks: tensors in, tensors out. They know no file, no device policy, no sampler and no family's name."""
