"""Temporal units: attention stays inside units of a few latent frames, whose borders move in every other block."""


def segments(extent: int, size: int, shifted: bool) -> list[int]:
    """Returns lengths that sum to extent: size each, the last one shorter; shifted, the first is size // 2.

    An extent of at most size is one segment. The paper's units are segments(20, 5, False) = 5-5-5-5 and
    segments(20, 5, True) = 2-5-5-5-3, without wrap-around.
    """
    if extent <= size:
        return [extent]
    first = [size // 2] if shifted and size > 1 else []
    whole, rest = divmod(extent - sum(first), size)
    return first + [size] * whole + [rest] * (rest > 0)
