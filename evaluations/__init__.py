"""Image metrics: arrays of uint8 images in, numbers and a JSON report out."""
