"""Writes from the code what tells people about it: sample file, man pages, tables in docs/.

``make manual`` writes; tests/unit/test_manual.py fails where something is not current.
"""
