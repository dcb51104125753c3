"""What will be done, fixed before the first document is read: the plan, its comparison with an
earlier request, and its forecast.
"""
