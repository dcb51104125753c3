"""From documents to token shards: sources, tokenizer, units of work, workers."""
