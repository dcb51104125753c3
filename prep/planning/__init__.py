"""What will be done, fixed before the first document is read: the plan, its comparison with what
was asked before, its forecast.
"""
