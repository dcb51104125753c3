"""One unit of work, from its sources to its receipt, and which units are done. All that must
survive a kill is here; whoever changes the order of a commit changes it here.
"""
