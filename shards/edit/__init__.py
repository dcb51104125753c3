"""A finished set changes only by a new version of it; every change is made here."""
