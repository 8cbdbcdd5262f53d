"""Row selection by gradient norm over four tasks in sequence, from an aligned model."""
