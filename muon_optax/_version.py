"""The version, of the package and of its distribution."""

__version__ = "0.1.0"
