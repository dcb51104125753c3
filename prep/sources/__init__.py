"""Where source files are: on this machine, on the Hub, at URLs. New places of documents go here,
and nothing that knows about tokens.
"""
