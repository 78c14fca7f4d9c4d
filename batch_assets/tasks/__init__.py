"""Tasks: what a model does with a text, how its answers are read, and how they are measured."""
