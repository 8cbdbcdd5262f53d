"""Does training on the rows of moderate gradient keep an aligned model's behaviours?"""
