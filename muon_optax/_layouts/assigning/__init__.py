"""From evidence to the layout of every leaf, and to what a user reads of it."""
