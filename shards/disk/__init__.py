"""Files that survive: their names, durable writes, locks, free room. Knows no token and imports
nothing else of ours.
"""
