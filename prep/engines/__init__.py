"""Who does the units: local processes or tasks on a cluster, and the files fetched meanwhile. A new
engine is one file here and one line of ENGINES in prep/request.py; it does not change the output.
"""
