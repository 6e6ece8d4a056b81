"""The family of transforms that came after Muon, one in each file."""
