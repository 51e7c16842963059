"""Judges results by the rules: what the official checkers say, and what they let pass."""
