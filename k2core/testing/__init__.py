"""What tests of plugins and agents import: scripted models, small deterministic stand-ins, checkpoints made on the spot."""
