"""Texts from a model: one token a step, chosen, spelled, ended."""
