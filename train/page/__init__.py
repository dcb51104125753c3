"""A run's page: the log of a run, or of several over each other, as one HTML file and pictures.

Needs no torch.
"""
