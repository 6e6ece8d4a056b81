"""What several parts of the family need: blocks of a matrix, the attention layers of a tree."""
