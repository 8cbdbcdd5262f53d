"""Do tools made for safety keep capabilities, and tools made against forgetting keep refusals?"""
