"""Layouts, which read parameters as matrices: leaf paths, the default rules, assignment and labels."""
