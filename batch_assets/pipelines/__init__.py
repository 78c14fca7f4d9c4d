"""Pipelines: what their files say, and which of them a deployment has."""
