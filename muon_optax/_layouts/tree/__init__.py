"""The surroundings of a leaf: names, scopes, stacks of layers."""
