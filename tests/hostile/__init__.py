"""The table of hostile inputs, how they are made, and the runner."""
