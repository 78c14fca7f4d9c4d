"""Summary quality: ROUGE against a reference, and reference-free measures."""
