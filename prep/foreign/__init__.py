"""Token files made by other tools become a set. A new kind of file is one check and one reader
here.
"""
