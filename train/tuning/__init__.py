"""`velocity tune-lr`: short runs at several learning rates, to choose one for a long run."""
