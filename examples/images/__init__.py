"""The parts of get_images.py: archives, concepts with their captions and splits, drawing styles, stamps."""
