"""Fast–slow training on problems with verifiable rewards: text, weights, and both."""
