"""Measurements, each a command: README.md names them."""
