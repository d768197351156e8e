"""What every stage shares: the error tree, the files that stages exchange, the one image rule.

A leaf: it imports nothing else of Convoy.
"""
