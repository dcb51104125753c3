"""A set elsewhere: in object storage, and in other trainers' formats."""
