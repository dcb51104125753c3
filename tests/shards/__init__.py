"""A set on its own: format, order, versions, and its way to other places."""
