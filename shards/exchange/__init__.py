"""A set in other places: object storage, and other trainers' formats."""
