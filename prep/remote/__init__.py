"""Source files that are not on this machine: on the Hub, in buckets, at URLs; listed, pinned, and
fetched whole. New places of documents go here, and nothing that reads them.
"""
