"""Sets of chats: which of their tokens are trained on, and where each chat begins."""
