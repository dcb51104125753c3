"""Arrow IPC files and streams, of which a window of rows is read at a time. Knows nothing of
documents.
"""
