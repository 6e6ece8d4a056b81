"""What must last: where the optimizer's state lies (``shardings.py``)."""
