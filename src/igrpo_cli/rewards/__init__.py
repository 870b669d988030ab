"""Rewards of completions. This room alone uses math_verify and sympy.

Nothing here imports sympy before a pair is compared, and a `GradingPool` compares pairs in other processes.
"""
