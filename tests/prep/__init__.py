"""From documents to shards: every source, option, engine and fault of `velocity prep`."""
