"""Windows of convolutions, by their shapes."""

LARGEST_WINDOW = 31


def has_trailing_window(shape: tuple[int, ...]) -> bool:
    """Whether equal axes behind the first two are a window, (out, in, k, k): small, and smaller than both."""
    window = shape[2:]
    return len(window) > 1 and len(set(window)) == 1 and 1 < window[0] <= LARGEST_WINDOW and window[0] < min(shape[:2])
