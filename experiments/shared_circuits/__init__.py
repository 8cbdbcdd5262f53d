"""The circuit study: does a new task wash a skill away by its words, or by what it computes?"""
