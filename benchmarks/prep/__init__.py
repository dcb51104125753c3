"""Text to shards: how fast prep is beside its peers, and where its time goes."""
