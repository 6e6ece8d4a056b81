"""The table of hostile inputs: each row an input, how it is made, and what is promised of it."""

from hostile.calls import ARGUMENTS, BETWEEN_STEPS, LAYOUTS, STATES
from hostile.gradients import DTYPES, SHAPES, VALUES
from hostile.leaves import LEAVES, MODES, TREES

ROWS = (*VALUES, *SHAPES, *DTYPES, *LEAVES, *TREES, *MODES, *LAYOUTS, *BETWEEN_STEPS, *STATES, *ARGUMENTS)
