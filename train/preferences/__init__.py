"""Training on preferences: pairs of answers in a batch, DPO's loss of them, and its reference."""
