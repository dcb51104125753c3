"""Who does the units: processes here, tasks on a cluster, and the files that must arrive meanwhile.
A new engine is one file here and one line in choose.py; it changes no byte.
"""
