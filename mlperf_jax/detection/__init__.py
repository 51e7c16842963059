"""From predictions at anchors to boxes, and back: static shapes, everything on the device."""
