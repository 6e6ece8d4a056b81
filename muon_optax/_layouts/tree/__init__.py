"""What lies around a leaf: names, scopes, stacks of layers."""
