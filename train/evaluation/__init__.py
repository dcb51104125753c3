"""`velocity eval`: how well checkpoints predict texts, and how many tasks they solve."""
