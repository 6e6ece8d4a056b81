"""Refusing what is wrong where it can first be known: arguments at construction, gradients before anything runs."""
