"""Losses over all alignments of a text with the frames of its recording, on the device."""
