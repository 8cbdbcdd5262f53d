"""False-alarm rates and detection delays of the detectors."""
