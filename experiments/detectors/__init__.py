"""The detectors study: how often each cries wolf, and how late it is when the wolf comes."""
