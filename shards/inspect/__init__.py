"""Inspects a set and changes nothing."""
