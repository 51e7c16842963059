"""Builds the trees that MLPerf's submissions are made of, out of what runs left."""
