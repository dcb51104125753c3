"""Files on this machine before anything is made of them: looked at, opened, decompressed. New
compressions go here.
"""
