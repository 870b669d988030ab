"""The reward of a completion: the answer it gives and the format it keeps. Owns math_verify, knows no other room.

Nothing here imports sympy until a pair is compared, and a `GradingPool` does that in other processes.
"""
