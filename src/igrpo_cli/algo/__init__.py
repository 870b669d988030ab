"""The maths: arrays in, arrays out. No files, no settings, no randomness that was not passed in."""
