"""An op as a checkpoint of its own: weights that leave nothing but the op, and how its result is read and judged."""
