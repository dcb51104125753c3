"""A finished or running run held against its documents: which step saw which. Needs no torch."""
