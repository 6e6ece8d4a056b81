"""How a parameter is seen as matrices: layouts, leaf paths, the default rules, assignment and labels."""
