"""Losses over tokens, without all their logits at once."""
