"""Who rated what, for recommendation from implicit feedback."""
