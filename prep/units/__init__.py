"""One unit of work, from its sources to its receipt, and which units are done. Everything
that must survive a kill is here, and so is the order of a commit.
"""
