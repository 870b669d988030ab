"""The gradient step: groups of completions in, a new policy directory out.

batch        the groups of one optimiser step as flat arrays, checked
packing      which of their tokens stand in which row, so that a prompt is computed once
policy       a model directory as a trainable body and its output head
logprobs     log-probs and entropy of tokens without ever holding all logits
optimizer    AdamW and the clipping of its gradient
step         one step over a batch
measures     what a step says of itself: metrics and the audit of each completion
checkpoint   policies and optimiser states as safetensors
"""
