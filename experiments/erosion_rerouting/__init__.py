"""Features of a behaviour are held, and training goes on: does the erosion come round by others?"""
