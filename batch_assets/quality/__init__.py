"""How good a summary is: ROUGE against a reference, and measures that need none."""
