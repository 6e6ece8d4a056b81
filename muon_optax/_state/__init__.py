"""What must last: where a state lies (``shardings.py``), how an earlier one is carried over (``carry_over.py``)."""
