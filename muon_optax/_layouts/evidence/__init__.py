"""What tells how the axes of a parameter are used: one file a kind of evidence."""
