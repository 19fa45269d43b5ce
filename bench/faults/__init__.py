"""The fault bench: pairs of models whose answer is known, and the score of how often qtrace names it.

A case's answer is where its fault was put, written down beside the code that puts it there.
"""
