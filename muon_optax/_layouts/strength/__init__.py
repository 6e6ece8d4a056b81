"""How far a decision can be trusted."""
