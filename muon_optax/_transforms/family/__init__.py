"""The family: what came after Muon, one small transform a file."""
