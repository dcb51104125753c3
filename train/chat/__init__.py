"""Training on sets of chats: which tokens are targets, where chats begin, what checkpoints keep."""
