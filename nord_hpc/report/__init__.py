"""Reports: pictures and a page of a search from the rows of its trials; where these come from is left to the caller.

The pictures need matplotlib, the extra "report"; importing this package does not.
"""
