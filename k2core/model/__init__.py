"""A model's checkpoint as it lies on disk: its geometry, its tensors, its INT4 wire format."""
