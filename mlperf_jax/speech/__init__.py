"""What recognisers of speech are trained by."""
