"""Segmentation of volumes on the device: loss and overlap, windows; and pictures of it."""
