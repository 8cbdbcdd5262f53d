"""The depth study: does a more deeply installed behaviour leave more time to see it go?"""
