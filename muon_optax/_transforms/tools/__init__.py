"""Tools of several parts of the family: blocks of a matrix, the attention layers of a tree."""
