"""Files that survive a crash: their names, durable writes, locks, free space. Knows nothing of
tokens.
"""
