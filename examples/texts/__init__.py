"""The parts of get_text.py: readers of markups, documents and parallel text, and the table of sources."""
