"""Evidence of how the axes of a parameter are used, with a file for each kind."""
