"""A matrix product with weights in nn.Linear's order."""

from k2core.oracle.arrays import AnyFloat, Float64, exact


def linear(x: AnyFloat, weight: AnyFloat) -> Float64:
    """y = x Wᵀ.

    Args:
        x: (…, in).
        weight: (out, in).

    Returns:
        (…, out).
    """
    return exact(x) @ exact(weight).T
