"""States that must last: where they lie (``shardings.py``), how earlier ones are carried over (``carry_over.py``)."""
