"""Learning per token: nanoGPT's recipe beside ours, at the same number of tokens and of trials."""
