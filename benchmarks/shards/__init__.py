"""Reading a set: batches for training, and commands on thousands of shards."""
