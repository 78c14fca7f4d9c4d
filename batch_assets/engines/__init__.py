"""Engines that run models, one module each, and the choice among them."""
