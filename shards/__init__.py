"""Token shards on disk: format, writer, reader, sample order, verify, trace.

    shards/
      manifest.json              written last: it exists = the set is complete
      train-00000.bin            little-endian token ids, uint16 or uint32, nothing else
      train-00000.docs.parquet   one row per document: its place, and where it came from
      validation-00000.bin       ...
      tokenizer.json             what made the ids

docs/shards.md describes the format. Nothing here imports torch.
"""
