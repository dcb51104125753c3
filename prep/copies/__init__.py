"""--dedup: which documents are copies of earlier ones, exact or near, and units without them.
New kinds of copies go here, and nothing that reads sources.
"""
