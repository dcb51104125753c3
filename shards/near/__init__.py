"""Near-duplicates: texts to shingles, shingles to signatures, signatures to clusters. Knows
nothing of sources, and of sets only how their documents become text again.
"""
