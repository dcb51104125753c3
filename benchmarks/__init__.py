"""Scripts that measure this project against its peers; each prints one line of JSON.

A room for each thing that is measured: what all share is here.
"""
