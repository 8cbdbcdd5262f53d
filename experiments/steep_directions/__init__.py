"""The steep study: does a task act on a behaviour's steep directions where cosines are near 0?"""
