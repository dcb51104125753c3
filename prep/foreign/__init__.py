"""Token files that others made become a set. A new kind of file is one check and one reader
here.
"""
