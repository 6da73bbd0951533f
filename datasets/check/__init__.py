"""`python -m datasets.check DIR`: whether pairs are fit for a training, before one takes a day."""
