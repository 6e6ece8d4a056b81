"""Settings by path: what a user gives for some parameters, which ones it acts on, and the parts that ask for it."""
